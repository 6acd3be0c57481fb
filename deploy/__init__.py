"""The deploy tool behind `make plan, deploy, twin, explain, remove, push` (docs/deploy.md)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class DeployError(RuntimeError):
    """A command cannot succeed. The message names the cause and what to do."""
