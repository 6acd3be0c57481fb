"""Two ways of doing the same, timed in turns so that whatever else the machine does meets both."""

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

SLICE = 0.05


def milliseconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median time of one call of each way, over ``rounds`` rounds in turns.

    In a round each way is called as often as fits into SLICE seconds, once at least; the first call is not timed.
    """
    calls = {}
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        way()
        calls[name] = max(1, int(SLICE / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                way()
            times[name].append((time.perf_counter() - start) / calls[name] * 1000)
    return {name: median(measured) for name, measured in times.items()}


def row(
    what: str, unit: str, ours: float, peer: str, theirs: float | None, reach: str = ""
) -> dict[str, Any]:
    """One comparison; ``ratio`` is how many times the peer needs what we need. ``theirs`` None: not measured here."""
    ratio = None if theirs is None else theirs / ours
    return {
        "what": what,
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "theirs": theirs,
        "ratio": ratio,
        "reach": reach,
    }


def run_module(name: str) -> list[dict[str, Any]]:
    """The rows of one of the benchmarks."""
    rows: list[dict[str, Any]] = importlib.import_module(f"benchmarks.{name}").run()
    return rows


def show(title: str | None, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows of any columns as a table."""
    rows = list(rows)
    table = Table(title=(title or "").strip().partition("\n")[0], title_justify="left")
    for column in dict.fromkeys(name for r in rows for name in r):
        number = any(isinstance(r.get(column), int | float) for r in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for r in rows:
        table.add_row(*(_cell(r.get(column.header)) for column in table.columns))
    Console(width=160).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
