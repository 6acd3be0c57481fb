"""The deploy tool runs in its own environment, which must contain the dependencies of what it imports."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from deploy import ROOT

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is not in requirements-deploy.txt")

sys.meta_path.insert(0, Blocked())
import {module}
"""


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def modules_of_the_core():
    found = set()
    for path in sorted((ROOT / "deploy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("glassbox"):
                found.add(node.module)
    return sorted(found)


def test_the_imported_modules_are_found():
    assert "glassbox.aws.incidents_table" in modules_of_the_core()


@pytest.mark.parametrize("module", modules_of_the_core())
def test_requirements_deploy_contains_the_dependencies_of_the_imported_modules(module):
    pins = {
        normal(line.partition("==")[0])
        for line in (ROOT / "requirements-deploy.txt").read_text().splitlines()
        if "==" in line
    }
    blocked = {
        name
        for name, packages in packages_distributions().items()
        if not any(normal(package) in pins for package in packages)
    } - {"glassbox"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=sorted(blocked), module=module)],
        env={"PYTHONPATH": str(ROOT / "layers/core/python")},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
