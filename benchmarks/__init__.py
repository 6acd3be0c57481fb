"""The measured claims: ours beside a peer, in one run, on one thread.

Every module has ``run() -> list[dict]``, one dict a row of its table. ``python -m benchmarks`` runs them all.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Before numpy and torch are imported: they read it then, and a ratio of one thread to two means nothing.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")
