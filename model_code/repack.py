"""Write a copy of an owner's model.tar.gz that loads the hook by itself, where PYTHONPATH cannot.

    python model_code/repack.py model.tar.gz --out hooked.tar.gz

The owner's files stay as they are. A new program loads the hook and then the owner's program. SageMaker's inference
toolkits import the program that SAGEMAKER_PROGRAM names; ``make twin MODEL_DATA=…`` sets it.
"""

import argparse
import gzip
import io
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

from package import HERE, write_hook

PROGRAM = "glassbox_program.py"
FILES = "glassbox_program_files"


def repack(archive: Path, out: Path) -> None:
    """Write the hook and then all members of ``archive`` into ``out``.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: not a tar archive, a damaged one, or one that contains the hook.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        out.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=0, fileobj=raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as written,
    ):
        write_hook(Path(folder))
        _add(written, f"code/{PROGRAM}", HERE / "hook" / PROGRAM)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            _add(written, f"code/{FILES}/{path.relative_to(folder).as_posix()}", path)
        try:
            with tarfile.open(archive) as packed:
                for member in packed:
                    if member.name.removeprefix("./").startswith(
                        ("code/glassbox_program", "code/recorder.py")
                    ):
                        raise ValueError(
                            f"{archive}: expected an archive without the hook, got {member.name}"
                        )
                    written.addfile(member, packed.extractfile(member) if member.isreg() else None)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{archive}: expected a whole tar archive: {error}") from error


def _add(written: tarfile.TarFile, name: str, path: Path) -> None:
    content = path.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    written.addfile(entry, io.BytesIO(content))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="model.tar.gz of the owner")
    parser.add_argument("--out", type=Path, default=Path("hooked.tar.gz"))
    given = parser.parse_args()
    unproved = given.out.with_name(f".{given.out.name}.new")
    try:
        repack(given.archive, unproved)
        unproved.replace(given.out)
    except (OSError, ValueError) as error:
        sys.exit(f"repack: {error}")
    finally:
        unproved.unlink(missing_ok=True)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
