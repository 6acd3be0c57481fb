"""From capture files to counts: our code and the article's loop (counts_storage measures DynamoDB).

``make bench MODULE=counting ARGS="--megabytes 1024"`` runs the container on a gigabyte.
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
from collections.abc import Callable, Iterator
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

Respond = Callable[[int, random.Random], Any]  # predicted class -> response


# ---------------------------------------------------------------- records


def _ours(predicted_class: int, chance: random.Random) -> Any:
    """Return a response of the project's model."""
    best = sorted((chance.random() for _ in range(3)), reverse=True)
    top = [
        {"class": (predicted_class + i) % CLASSES, "label": "Speed limit (50km/h)", "probability": p}
        for i, p in enumerate(best)
    ]
    return {"predictions": [top[0] | {"top3": top}]}


def _article(predicted_class: int, chance: random.Random) -> Any:
    """Return a response of the article's model."""
    return [[predicted_class]]


def records(n: int, respond: Respond, image: bool) -> Iterator[str]:
    """Yield capture lines over ten minutes with uniformly random classes."""
    chance = random.Random(14)
    # the size of a .npy file; random bytes, because pixels do not compress
    images = [
        base64.b64encode(chance.randbytes(IMAGE_BYTES + 128)).decode() for _ in range(8 if image else 0)
    ]
    for i in range(n):
        response = respond(chance.randrange(CLASSES), chance)
        sides = {
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                # TorchServe writes a list over several lines
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
    """Count as the function and the container do, with windows and confidences."""
    with path.open("rb", buffering=0) as file:
        return tally(read(chunks(file), str(path)), HOUR, low_confidence=0.5).counts.classes


def count_article(path: Path) -> Counter[Any]:
    """Count as the article does, with json.loads of each line and of its output."""
    counts: Counter[Any] = Counter()
    with path.open() as file:
        for line in file:
            output = json.loads(json.loads(line)["captureData"]["endpointOutput"]["data"])
            counts[output["predictions"][0]["class"] if isinstance(output, dict) else output[0][0]] += 1
    return counts


def per_record(folder: Path) -> Iterator[dict[str, Any]]:
    """Compare the time of one record."""
    cases: tuple[tuple[str, Respond, bool, int, str], ...] = (
        ("output only, our response", _ours, False, 20_000, "2.5x"),
        ("output only, [[14]]", _article, False, 20_000, "2.5x"),
        ("with a 128x128x3 npy image", _ours, True, 400, "1.3x"),
    )
    for what, respond, image, n, reach in cases:
        path = folder / "records.jsonl"
        path.write_text("".join(records(n, respond, image)))
        if count_ours(path) != count_article(path):
            raise AssertionError(f"{what}: the counts differ")
        ways = {way.__name__: functools.partial(way, path) for way in (count_ours, count_article)}
        times = milliseconds(ways, rounds=7)
        size = path.stat().st_size // n
        ours, theirs = (t / n * 1000 for t in times.values())
        yield row(f"a record, {what} ({size:,} B)", "µs", ours, "the article's loop", theirs, reach)


# ---------------------------------------------------------------- the container


def container(folder: Path, megabytes: int) -> Iterator[dict[str, Any]]:
    """Compare the container's time and memory with one and two processes."""
    root = folder / "opt" / "ml"
    hour = root / "processing" / "endpointdata" / "traffic-signs" / "AllTraffic" / "2026" / "11" / "23" / "10"
    hour.mkdir(parents=True)
    line_bytes = len("".join(records(1000, _ours, False))) / 1000
    first = hour / "0.jsonl"
    first.write_text("".join(records(int(megabytes * 1e6 / FILES / line_bytes), _ours, False)))
    for number in range(1, FILES):
        os.link(first, hour / f"{number}.jsonl")
    one, _ = _run(root, 1)  # warms up the page cache
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
    """Return the seconds and the peak of all processes' resident memory in MB."""
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
    except psutil.NoSuchProcess:  # it ended meanwhile
        pass
    return found


def run(megabytes: int = 512) -> list[dict[str, Any]]:
    """Measure all rows."""
    with tempfile.TemporaryDirectory() as folder:
        return [*per_record(Path(folder)), *container(Path(folder), megabytes)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="for the container (default: %(default)s)")
    show(__doc__, run(parser.parse_args().megabytes))
