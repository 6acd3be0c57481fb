"""Imports of a cold start on Lambda's Python: the layers of `make build` and those of `sam build` alone."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ROOT
from benchmarks.side_by_side import row, show

BUILT = ROOT / ".aws-sam" / "build"
LAYERS = ("CoreLayer", "DependenciesLayer", "ImagingLayer")
ROUNDS = 9
PEER = "without byte code"
IMPORTS = {
    "numpy and Pillow": "import numpy, PIL.Image, PIL.ImageDraw, PIL.ImageFont, PIL.PngImagePlugin",
    "render_saliency, all imports": "import app",
    "count_predictions, all imports": "import app",
}


def python313() -> str | None:
    """Return Python 3.13 from the PATH or pyenv, or None."""
    candidates = ["python3.13", *map(str, Path.home().glob(".pyenv/versions/3.13.*/bin/python3.13"))]
    works = (c for c in candidates if shutil.which(c) and not subprocess.call([c, "-c", ""], stderr=-3))
    return next(works, None)


def seconds(python: str, layers: Path, function: str, statement: str) -> float:
    """Return the seconds of one import in a process that has only the layers, as on Lambda."""
    timed = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    environment = {
        "PYTHONPATH": str(layers),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "POWERTOOLS_SERVICE_NAME": "glassbox",
        "POWERTOOLS_METRICS_NAMESPACE": "Glassbox",
    }
    done = subprocess.run(
        [python, "-S", "-c", timed],
        cwd=ROOT / "functions" / function,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def run() -> list[dict[str, Any]]:
    python = python313()
    missing = [layer for layer in LAYERS if not (BUILT / layer / "python").is_dir()]
    if python is None or missing:
        return [row("skipped: needs Python 3.13 and make build", "ms", 0.0, PEER, None)]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        for copy, ignored in ((ours, None), (theirs, shutil.ignore_patterns("__pycache__"))):
            for layer in LAYERS:
                shutil.copytree(BUILT / layer / "python", copy, dirs_exist_ok=True, ignore=ignored)
        rows = []
        for what, statement in IMPORTS.items():
            function = what.partition(",")[0] if "," in what else "render_saliency"
            times: dict[Path, list[float]] = {ours: [], theirs: []}
            for _ in range(ROUNDS):
                for layers, measured in times.items():
                    measured.append(1e3 * seconds(python, layers, function, statement))
            reach = "400 ms at most" if function == "render_saliency" else ""
            rows.append(row(what, "ms", median(times[ours]), PEER, median(times[theirs]), reach))
        megabytes = sum(f.stat().st_size for f in (BUILT / "ImagingLayer").rglob("*") if f.is_file()) / 1e6
        rows.append(row("the imaging layer, unzipped", "MB", megabytes, "", None, "90 MB at most"))
        return rows


if __name__ == "__main__":
    show(__doc__, run())
