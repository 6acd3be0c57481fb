"""Which module may import which: no circle in the core, AWS in one package, and folders one way."""

import ast
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
    """The names of all modules that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


GRAPH = {name: set(imports(path)) & MODULES.keys() for name, path in MODULES.items()}


def test_no_module_imports_itself_through_others():
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"circle: {' -> '.join([*open_[open_.index(name) :], name])}"
        if name not in done:
            open_.append(name)
            for other in sorted(GRAPH[name]):
                visit(other)
            done.add(open_.pop())

    for name in sorted(GRAPH):
        visit(name)
    assert done == MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_adapters_know_aws(name):
    if not name.startswith("glassbox.aws."):
        known = {module.split(".")[0] for module in imports(MODULES[name])}
        assert not known & {"boto3", "botocore"}
        assert not any(other.startswith("glassbox.aws.") for other in GRAPH[name])


def test_counting_knows_nothing_of_incidents():
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
    "demo": {"local", "model_code"},
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
