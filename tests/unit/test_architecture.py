"""Imports: no cycle in the core, AWS in one package of it, folders in one direction, no edits of sys.path."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "layers/core/python/glassbox"
MODULES = {
    "glassbox." + ".".join(path.relative_to(CORE).with_suffix("").parts): path
    for path in CORE.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(path):
    """The names of all modules that a file imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


GRAPH = {name: set(imports(path)) & MODULES.keys() for name, path in MODULES.items()}


def test_imports_have_no_cycle():
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"cycle: {' -> '.join([*open_[open_.index(name) :], name])}"
        if name not in done:
            open_.append(name)
            for other in sorted(GRAPH[name]):
                visit(other)
            done.add(open_.pop())

    for name in sorted(GRAPH):
        visit(name)
    assert done == MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_adapters_import_aws(name):
    if not name.startswith("glassbox.aws."):
        packages = {module.split(".")[0] for module in imports(MODULES[name])}
        assert not packages & {"boto3", "botocore"}
        assert not any(other.startswith("glassbox.aws.") for other in GRAPH[name])


def test_monitoring_imports_neither_incidents_nor_explanation():
    for name in MODULES:
        if name.startswith("glassbox.monitoring."):
            assert not [
                n for n in GRAPH[name] if n.startswith(("glassbox.incidents", "glassbox.explanation"))
            ]


# The folders of the repository that a folder may import; the core and the standard library are allowed everywhere.
FOLDERS = ("functions", "model_code", "monitor_container", "deploy", "local", "demo", "benchmarks", "tests")
ALLOWED = {
    "functions": set(),
    "model_code": {"demo"},  # train.py draws its images
    "monitor_container": set(),
    "deploy": {"model_code", "monitor_container"},
    "local": {"model_code"},
    "demo": {"deploy", "local", "model_code"},
    "benchmarks": {"local", "demo", "model_code", "monitor_container", "tests"},
}


def owners():
    """Return the folder of each top-level module: a folder, or a file of those that are on the path."""
    on_path = ("model_code", "monitor_container", "tests")
    top_level = {path.stem: folder for folder in on_path for path in (ROOT / folder).glob("*.py")}
    return top_level | {folder: folder for folder in FOLDERS}


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_each_other_in_one_direction(folder):
    owner = owners()
    found = {
        (str(path.relative_to(ROOT)), owner[module])
        for path in (ROOT / folder).rglob("*.py")
        for name in imports(path)
        if (module := name.partition(".")[0]) in owner
    }
    assert {(path, other) for path, other in found if other not in {folder, *ALLOWED[folder]}} == set()


def test_the_demo_imports_the_embedded_aws():
    names = {name for path in (ROOT / "demo").glob("*.py") for name in imports(path)}
    assert "local.stack" in names  # the check above finds such imports


# make and pytest set the path. These files import code whose folder is known at run time only.
SYS_PATH = {
    "local/gaps/functions.py": "Lambda's path, in the process of a function",
    "model_code/serve.py": "the code of model.tar.gz, after SageMaker has extracted it",
    "tests/deploy/test_deploy_tool.py": "a program that stands in for docker",
    "tests/unit/test_architecture.py": "this list",
    "tests/unit/test_hook_on_old_python.py": "the hook's folder, in a process of another Python",
}


EDIT = re.compile(r"sys\.path(\.(append|clear|extend|insert|pop|remove)\b|\[[^\]]*\] *=|  *\+?= )")


def test_no_other_file_edits_sys_path():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    editing = {
        file for file in listed.stdout.split() if EDIT.search((ROOT / file).read_text(encoding="utf-8"))
    }
    assert editing == SYS_PATH.keys()


@pytest.mark.parametrize(
    ("line", "edits"),
    [
        ("sys.path.insert(0, here)", True),
        ("sys.path[:] = []", True),
        ("sys.path[0:1] = [core]", True),
        ("sys.path += [here]", True),
        ("sys.path = []", True),
        ("environment = {'PYTHONPATH': ':'.join(sys.path)}", False),
        ("if sys.path == before:", False),
        ("first = sys.path[0]", False),
        ("sys.path_hooks.append(hook)", False),
    ],
)
def test_edits_of_sys_path_are_found(line, edits):
    assert bool(EDIT.search(line)) == edits
