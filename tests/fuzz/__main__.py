"""Give every reader random input: ``make fuzz`` (INPUTS=1000000 in all, SEED=0)."""

import argparse
import hashlib
import io
import time

import coverage

from fuzz.readers import Reader, readers
from fuzz.run import CORPUS, FoundError, fuzz

COVERED = 3000  # inputs whose branches are measured, which is slow


def covered(reader: Reader, name: str, seed: int) -> float:
    """Return the share of the branches of the reader's modules that random input takes, 0..100."""
    files = [f"*/{module.replace('.', '/')}.py" for module in reader.modules]
    measured = coverage.Coverage(data_file=None, branch=True, include=files, config_file=False)
    measured.start()
    try:
        fuzz(reader, name, count=COVERED, seed=seed)
    finally:
        measured.stop()
    return measured.report(file=io.StringIO())


def main() -> int:
    """Run the readers, print what each did, and store input that breaks one."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all readers (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", help="run this one only")
    options = parser.parse_args()
    found = readers()
    chosen = {name: one for name, one in found.items() if options.reader in (None, name)}
    if not chosen:
        parser.error(f"--reader: expected one of {', '.join(found)}")
    broken = 0
    print(f"{'reader':<14}{'inputs':>10}{'parsed':>9}{'read':>9}{'slowest':>10}{'branches':>10}{'CPU s':>8}")
    for name, reader in chosen.items():
        started = time.process_time()
        try:
            result = fuzz(reader, name, count=options.inputs // len(chosen), seed=options.seed)
            branches = covered(reader, name, options.seed + 1)
        except FoundError as error:
            broken += 1
            folder = CORPUS / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / hashlib.sha256(error.data).hexdigest()[:12]
            file.write_bytes(error.data)
            print(f"{name:<14}{error}, stored as {file.relative_to(CORPUS.parent)}")
            continue
        print(
            f"{name:<14}{result.inputs:>10,}{result.parsed_share:>9.0%}{result.read / result.inputs:>9.0%}"
            f"{result.slowest * 1000:>7.0f} ms{branches:>8.0f} %{time.process_time() - started:>8.0f}",
            flush=True,
        )
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
