"""The hook runs on the Python of the endpoint's image, which may be as old as 3.8."""

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import package

OLDEST, NEWEST = 8, 13  # minor versions


def interpreters():
    """Return version -> path of a Python of this machine, and what GLASSBOX_PYTHONS lists."""
    found = {}
    for minor in range(OLDEST, NEWEST + 1):
        installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python3.{minor}"))
        path = str(installed[-1]) if installed else shutil.which(f"python3.{minor}")
        if path is not None:
            found[f"3.{minor}"] = path
    given = filter(None, os.environ.get("GLASSBOX_PYTHONS", "").split(os.pathsep))
    return found | {path: path for path in given}


PYTHONS = interpreters()


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hook")
    package.write_hook(folder)
    return folder


# Compiles all files. Imports those that need the standard library alone, and with torch all of them.
IMPORTS = """
import importlib.util, pathlib, sys
folder = pathlib.Path(sys.argv[1])
for path in folder.rglob("*.py"):
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
modules = folder / "glassbox_hook"
sys.path.insert(0, str(modules))
from glassbox import errors, replay_marker, settings
from glassbox.explanation import trace_format
import served_requests
if importlib.util.find_spec("torch"):
    for path in sorted(modules.glob("*.py")):
        __import__(path.stem)
    from recorder import read_settings
    read = read_settings({"tensors_output": "s3://b/x", "TRACE_MEMORY_MIB": "64", "BLUR_TEST": "off"})
    assert (read.tensors_output, read.trace_memory_mib, read.blur_test) == ("s3://b/x", 64, False), read
    assert read.replay_key is None
print("imported")
"""


@pytest.mark.parametrize("version", PYTHONS or [None])
def test_the_files_load(hook, version):
    if version is None:
        pytest.skip(f"no Python 3.{OLDEST} to 3.{NEWEST} on the path or in pyenv")
    ran = subprocess.run(
        [PYTHONS[version], "-c", IMPORTS, str(hook)], capture_output=True, text=True, timeout=300
    )
    assert ran.stdout == "imported\n", ran.stderr


def hook_files():
    """Return the files of the hook in the repository."""
    names = [*package.HOOK, *package.CAPTURE, "hook/sitecustomize.py"]
    return [package.HERE / name for name in names] + [package.CORE / name for name in package.CORE_MODULES]


@pytest.mark.parametrize("path", hook_files(), ids=lambda path: path.name)
def test_the_files_use_nothing_newer(path):
    """Without Python 3.8 on the machine: its grammar, and what fails at run time only."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, OLDEST))
    assert list(newer(tree)) == []


def newer(tree):
    """Yield the lines that Python 3.8 refuses at run time."""
    annotations = {id(part) for node in ast.walk(tree) for part in annotated(node)}
    is_late = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    from_abc = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "collections.abc"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if is_late and id(node) in annotations:
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            yield node.value.lineno, "zip(strict=…)"
        elif isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix", "UnionType"):
            yield node.lineno, node.attr
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr) and is_dict(node.value):
            yield node.lineno, "|= of a dict"
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            if node.value.id in from_abc | {"dict", "list", "set", "tuple", "type", "frozenset", "deque"}:
                yield node.lineno, f"{node.value.id}[…]"
        elif (
            isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and is_none(node.left, node.right)
        ):
            yield node.lineno, "… | None"


def annotated(node):
    """Return the nodes of the annotations that a node holds."""
    given = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [part for annotation in given if annotation is not None for part in ast.walk(annotation)]


def is_none(*values):
    """Return whether one of the expressions is None."""
    return any(isinstance(value, ast.Constant) and value.value is None for value in values)


def is_dict(value):
    """Return whether an expression is surely a dict."""
    return isinstance(value, (ast.Dict, ast.DictComp))


@pytest.mark.parametrize(
    "text",
    [
        "Alias = list[int]",
        "from collections.abc import Mapping\nAlias = Mapping[str, int]",
        "def f(x: int | None): pass",
        "zip(a, b, strict=True)",
        "d |= {1: 2}",
        "'ab'.removeprefix('a')",
    ],
)
def test_finds_what_is_newer(text):
    assert list(newer(ast.parse(text)))
    if text.startswith("def"):
        assert not list(newer(ast.parse(f"from __future__ import annotations\n{text}")))
