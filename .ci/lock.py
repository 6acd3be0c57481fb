"""Write the lock files: an exact version of each package that pyproject.toml requires, directly or through others.

`make lock` keeps the versions that still fit; `make lock UPGRADE=1` takes the newest ones.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMDEBUG = "smdebug==1.0.34"
# lock file -> extras and groups of pyproject.toml. The core's dependencies are in the first two.
LOCKS = {
    "requirements.txt": ("core", "explanation", "torch", "demo", "smdebug", "test", "check"),
    "requirements-deploy.txt": ("core", "deploy"),
    "requirements-sam.txt": ("sam",),
    "requirements-checkov.txt": ("checkov",),
    "requirements-torchserve.txt": ("torchserve",),
}
TORCH = "requirements-torch.txt"  # apart, so that TORCH_ARGS can choose its build


def requirements() -> dict[str, list[str]]:
    """Return the direct requirements by extra or group of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    return {"core": project["project"]["dependencies"]} | extras | project["dependency-groups"]


def pins(lock: str) -> list[str]:
    """Return the pins of a lock file, without its comments."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def comment(lock: str) -> list[str]:
    """Return the comment at the head of a lock file."""
    return [line for line in (ROOT / lock).read_text(encoding="utf-8").splitlines() if line.startswith("#")]


def resolve(wanted: list[str], constraints: list[str]) -> list[str]:
    """Return the pins that pip would install for the requirements, in alphabetical order."""
    with tempfile.TemporaryDirectory() as folder:
        given, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        given.write_text("\n".join(constraints))
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"]
        command += [*os.environ.get("TORCH_ARGS", "").split(), "-c", str(given), "--report", str(report)]
        subprocess.run([*command, *wanted], check=True)  # noqa: S603 -- pip, with the names of pyproject.toml
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return sorted(
        (f"{item['name']}=={item['version'].partition('+')[0]}" for item in found), key=str.casefold
    )


def main() -> None:
    """Write all lock files."""
    groups, upgrade = requirements(), bool(os.environ.get("UPGRADE"))
    for lock, names in LOCKS.items():
        with_torch = "demo" in names
        kept = [] if upgrade else pins(lock) + (pins(TORCH) if with_torch else [])
        found = resolve([text for name in names for text in groups[name]], kept)
        # a CUDA build requires more packages, which the CPU build does not have
        found = [pin for pin in found if not pin.startswith(("cuda-", "nvidia-", "triton=="))]
        torch = [pin for pin in found if pin.startswith("torch==")]
        if with_torch:
            found = sorted([pin for pin in found if pin not in torch] + [SMDEBUG], key=str.casefold)
            (ROOT / TORCH).write_text("\n".join([*comment(TORCH), *torch]) + "\n", encoding="utf-8")
        (ROOT / lock).write_text("\n".join([*comment(lock), *found]) + "\n", encoding="utf-8")
        print(f"{lock}: {len(found)} packages")


if __name__ == "__main__":
    main()
