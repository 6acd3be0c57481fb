"""The core's imports: no circle, and AWS in one package only."""

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "layers/core/python/glassbox"
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
