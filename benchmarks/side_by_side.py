"""Alternating timing of several implementations, so that other load affects all of them equally."""

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

SLICE = 0.05


def milliseconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median time of one call of each implementation over alternating rounds.

    A round calls each implementation for about SLICE seconds, at least once; the first call is not timed.
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
    """Return one comparison as a row of the table.

    Args:
        theirs: the peer's value; None if it was not measured. ``ratio`` is theirs / ours.
        reach: the target.
    """
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
    """Run a benchmark and return its rows."""
    rows: list[dict[str, Any]] = importlib.import_module(f"benchmarks.{name}").run()
    return rows


def show(title: str | None, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows, which may have any columns, as a table."""
    rows = list(rows)
    table = Table(title=(title or "").strip().partition("\n")[0], title_justify="left")
    columns = list(dict.fromkeys(name for r in rows for name in r))
    for column in columns:
        number = any(isinstance(r.get(column), int | float) for r in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for r in rows:
        table.add_row(*(_cell(r.get(column)) for column in columns))
    Console(width=160).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
