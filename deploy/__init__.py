"""From nothing to running on AWS: plan, deploy, twin, remove, push. Runs in `.venv-deploy` (docs/deploy.md)."""


class DeployError(RuntimeError):
    """It cannot be done: the text says what is in the way, and what to do about it."""
