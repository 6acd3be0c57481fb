"""`python -m benchmarks [module …]`: print every table, and write all rows to out/bench.json."""

import argparse
import importlib
import json
import multiprocessing
import pkgutil
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import benchmarks
from benchmarks.side_by_side import run_module, show

PARTS = {
    "__main__",
    "architectures",
    "attribution_maps",
    "causes",
    "owners",
    "served",
    "side_by_side",
    "small_networks",
}
MODULES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in PARTS]


def main() -> None:
    """Run the chosen benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("module", nargs="*", help=f"of {', '.join(MODULES)} (default: all)")
    chosen = parser.parse_args().module or MODULES
    if unknown := set(chosen) - set(MODULES):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(MODULES)}")
    results = {}
    for name in chosen:
        # one process each: smdebug caches its first S3 client, which has the endpoint of an earlier benchmark
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            results[name] = process.submit(run_module, name).result()
        show(importlib.import_module(f"benchmarks.{name}").__doc__, results[name])
    machine = {
        "system": platform.platform(),
        "processor": _processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    file = benchmarks.ROOT / "out" / "bench.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    print(f"All rows: {file.relative_to(benchmarks.ROOT)}")


def _processor() -> str:
    """Return the processor's name from /proc/cpuinfo, or Python's where that does not exist."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
