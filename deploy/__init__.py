"""The deploy tool behind `make plan, deploy, twin, explain, remove, push` (docs/deploy.md)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class DeployError(RuntimeError):
    """A command cannot succeed, for the reason in the message, which also names what to do."""
