"""Capture files to counts: ours and the article's loop. What DynamoDB is asked is in counts_storage.

``python -m benchmarks.counting --megabytes 1024`` runs the container on a gigabyte.
"""

import argparse
import base64
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks import ROOT
from benchmarks.side_by_side import milliseconds, row, show
from glassbox.monitoring.capture import chunks, read
from glassbox.monitoring.counts import tally

HOUR = datetime(2026, 11, 23, 10, tzinfo=UTC)
CLASSES = 43
IMAGE_BYTES = 128 * 128 * 3
FILES = 32


# ---------------------------------------------------------------- records


def _ours(label: int, chance: random.Random) -> Any:
    """A response of the project's own model."""
    best = sorted((chance.random() for _ in range(3)), reverse=True)
    top = [
        {"class": (label + i) % CLASSES, "label": "Speed limit (50km/h)", "probability": p}
        for i, p in enumerate(best)
    ]
    return {"predictions": [top[0] | {"top3": top}]}


def _article(label: int, chance: random.Random) -> Any:
    return [[label]]


def records(n: int, form: Any, image: bool) -> Iterator[str]:
    """Capture lines over ten minutes, their classes drawn evenly."""
    chance = random.Random(14)
    # as numpy.save writes it, by its size; random, as pixels are
    images = [
        base64.b64encode(chance.randbytes(IMAGE_BYTES + 128)).decode() for _ in range(8 if image else 0)
    ]
    for i in range(n):
        response = form(chance.randrange(CLASSES), chance)
        sides = {
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                # TorchServe prints a list over several lines
                "data": json.dumps(response, indent=2 if isinstance(response, list) else None),
                "encoding": "JSON",
            }
        }
        if image:
            type_ = {"observedContentType": "application/x-npy", "mode": "INPUT"}
            sides = {"endpointInput": type_ | {"data": images[i % 8], "encoding": "BASE64"}} | sides
        time_ = f"2026-11-23T10:{i * 10 // n:02d}:{i % 60:02d}Z"
        metadata = {"eventId": "0f6f4a0e-5f39-4a3e-8a53-2f2f6d1a9c11", "inferenceTime": time_}
        line = {"captureData": sides, "eventMetadata": metadata, "eventVersion": "0"}
        yield json.dumps(line, separators=(",", ":")) + "\n"


# ---------------------------------------------------------------- per record


def count_ours(path: Path) -> Counter[Any]:
    """As both judges count: every check, the windows and the confidences included."""
    with path.open("rb", buffering=0) as file:
        return tally(read(chunks(file), str(path)), HOUR, low_confidence=0.5).counts.classes


def count_article(path: Path) -> Counter[Any]:
    """The article's loop: the line and its output through json.loads, the class counted."""
    counts: Counter[Any] = Counter()
    with path.open() as file:
        for line in file:
            output = json.loads(json.loads(line)["captureData"]["endpointOutput"]["data"])
            counts[output["predictions"][0]["class"] if isinstance(output, dict) else output[0][0]] += 1
    return counts


def per_record(folder: Path) -> Iterator[dict[str, Any]]:
    for what, form, image, n, reach in (
        ("output only, our response", _ours, False, 20_000, "2.5x"),
        ("output only, [[14]]", _article, False, 20_000, "2.5x"),
        ("with a 128x128x3 npy image", _ours, True, 400, "1.3x"),
    ):
        path = folder / "records.jsonl"
        path.write_text("".join(records(n, form, image)))
        if count_ours(path) != count_article(path):
            raise AssertionError(f"{what}: the two count differently")
        ways = {way.__name__: functools.partial(way, path) for way in (count_ours, count_article)}
        times = milliseconds(ways, rounds=7)
        size = path.stat().st_size // n
        ours, theirs = (t / n * 1000 for t in times.values())
        yield row(f"a record, {what} ({size:,} B)", "µs", ours, "the article's loop", theirs, reach)


# ---------------------------------------------------------------- the container


def container(folder: Path, megabytes: int) -> Iterator[dict[str, Any]]:
    root = folder / "opt" / "ml"
    hour = root / "processing" / "endpointdata" / "traffic-signs" / "AllTraffic" / "2026" / "11" / "23" / "10"
    hour.mkdir(parents=True)
    line_bytes = len("".join(records(1000, _ours, False))) / 1000
    first = hour / "0.jsonl"
    first.write_text("".join(records(int(megabytes * 1e6 / FILES / line_bytes), _ours, False)))
    for number in range(1, FILES):
        os.link(first, hour / f"{number}.jsonl")
    one, _ = _run(root, 1)  # the files are in memory now, for both
    runs = {n: [_run(root, n) for _ in range(3)] for n in (1, 2)}
    one, two = (min(seconds for seconds, _ in runs[n]) for n in (1, 2))
    what = f"the container, {megabytes:,} MB of records without images"
    yield row(f"{what}, 2 processes", "s", two, "1 process", one, "1.7x")
    for n in (1, 2):
        yield row(
            f"{what}, peak memory with {n}",
            "MB",
            max(peak for _, peak in runs[n]),
            "",
            None,
            "300 MB at most",
        )


def _run(root: Path, processes: int) -> tuple[float, float]:
    """Seconds, and the largest sum of the resident memory of all its processes in MB."""
    environment = {"OPT_ML": str(root), "THRESHOLD": "0.9", "PROCESSES": str(processes)}
    environment["PYTHONPATH"] = str(ROOT / "layers" / "core" / "python")
    start, most = time.perf_counter(), 0.0
    command = [sys.executable, str(ROOT / "monitor_container" / "evaluation.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            most = max(most, _resident(watched))
            time.sleep(0.01)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, most / 1e6


def _resident(process: psutil.Process) -> int:
    found = 0
    try:
        for each in (process, *process.children()):
            found += each.memory_info().rss
    except psutil.NoSuchProcess:  # it ended while we looked
        pass
    return found


def run(megabytes: int = 512) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return [*per_record(Path(folder)), *container(Path(folder), megabytes)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="for the container (default: %(default)s)")
    show(__doc__, run(parser.parse_args().megabytes))
