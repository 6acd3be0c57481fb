"""The measured claims: our code and a peer, in one run, on one thread.

Every module has ``run() -> list[dict]``, one dict for each row of its table. ``make bench`` runs them all.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

# numpy and torch read these at their import. Both sides of a ratio must use one thread.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")
