"""A stub of the monitor image: a processing container that its environment controls."""

import json
import os
import sys
import time
from pathlib import Path

root = Path(os.environ["OPT_ML"])
time.sleep(float(os.environ.get("SLEEP", 0)))
config = json.loads((root / "config" / "processingjobconfig.json").read_text())
hosts = json.loads((root / "config" / "resourceconfig.json").read_text())
lines = sum(len(p.read_text().splitlines()) for p in (root / "processing" / "input").rglob("*.jsonl"))
report = {
    "lines": lines,
    "environment": config["Environment"],
    "hosts": hosts["hosts"],
    "arguments": sys.argv[1:],
}
output = root / "processing" / "output"
(output / "sub").mkdir(parents=True, exist_ok=True)
(output / "sub" / "report.json").write_text(json.dumps(report))
(output / "link.json").symlink_to(output / "sub" / "report.json")
if "MESSAGE" in os.environ:
    (root / "output" / "message").write_bytes(
        os.environ["MESSAGE"].encode(os.environ.get("ENCODING", "utf-8"))
    )
print("seen", lines, "lines")
sys.exit(int(os.environ.get("EXIT", 0)))
