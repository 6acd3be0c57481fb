"""Write docs/imports.md: the imports between the modules of the core, as a diagram."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE, PAGE = ROOT / "layers/core/python/glassbox", ROOT / "docs" / "imports.md"
HEAD = """# Imports of the core

`make docs` writes this page; a test compares it with the code. An arrow is an import. The diagram
omits arrows that follow from others: if `a` imports `b` and `b` imports `c`, it omits `a` to `c`.
A test finds import cycles.

```mermaid
flowchart LR
"""


def imported(path: Path) -> Iterator[str]:
    """Yield the names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph() -> dict[str, set[str]]:
    """Return the modules of the core that each of them imports, by their names within the core."""
    paths = [path for path in sorted(CORE.rglob("*.py")) if path.name != "__init__.py"]
    files = {".".join(path.relative_to(CORE).with_suffix("").parts): path for path in paths}
    inside = {name: {n.removeprefix("glassbox.") for n in imported(path)} for name, path in files.items()}
    return {name: others & files.keys() for name, others in inside.items()}


def page(graph: dict[str, set[str]]) -> str:
    """Return the page, with one subgraph per package."""
    lines = []
    for package in sorted({name.rpartition(".")[0] for name in graph}):
        nodes = [name for name in graph if name.rpartition(".")[0] == package]
        lines += [f"  subgraph {package or 'glassbox'}", *(f"    {_node(name)}" for name in nodes), "  end"]
    for name, others in graph.items():
        following = set().union(*(_reachable(graph, other) for other in others))
        lines += [f"  {_id(name)} --> {_id(other)}" for other in sorted(others - following)]
    return HEAD + "\n".join([*lines, "```", ""])


def _reachable(graph: dict[str, set[str]], name: str) -> set[str]:
    return graph[name].union(*(_reachable(graph, other) for other in graph[name]))


def _id(name: str) -> str:
    return name.replace(".", "_")


def _node(name: str) -> str:
    return f"{_id(name)}[{name.rpartition('.')[2]}]"


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    PAGE.write_text(page(import_graph()), encoding="utf-8")
