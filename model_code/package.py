"""Pack weights and code into the model.tar.gz that SageMaker unpacks to /opt/ml/model.

    python model_code/package.py --weights model.pt --out model.tar.gz [--config config.json] [--labels labels.csv]
                                 [--network net.py:Net [--arguments '{"classes": 10}'] [--code more.py folder …]]

A network of your own is a class in your file or package folder, or MODULE:CLASS of an installed package such as
torchvision.models:resnet50, which is not packed (docs/your-model.md). The same content gives the same bytes, so an
unchanged archive need not be uploaded again.
"""

import argparse
import contextlib
import csv
import gzip
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CORE = HERE.parent / "layers" / "core" / "python" / "glassbox"

HOOK = (
    "blur_test.py",
    "complete_gradients.py",
    "gradient_rules.py",
    "gradient_self_test.py",
    "gradients.py",
    "isolation.py",
    "pixel_places.py",
    "recorder.py",
    "trace_memory.py",
    "trace_upload.py",
    "trace_writer.py",
)
CAPTURE = ("capture.py", "served_requests.py", "web_requests.py")
CODE = (*HOOK, "decode.py", "inference.py", "requirements.txt", "resnet.py")
CORE_MODULES = (
    "__init__.py",
    "errors.py",
    "explanation/__init__.py",
    "explanation/saliency.py",
    "explanation/trace_format.py",
    "model_config.py",
    "network.py",
    "replay_marker.py",
    "settings.py",
)

MAX_MEMBERS, MAX_BYTES = 100_000, 16 << 30
"""Of an archive that is unpacked."""

# Mean and std are ImageNet's, with which torchvision's networks are trained.
DEFAULT_CONFIG: dict[str, Any] = {
    "architecture": "resnet18",
    "image_size": [48, 48],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "labels": None,
}


def model_config(weights: Path) -> dict[str, Any]:
    """Return the ``.json`` beside the weights, completed by the default config.

    Raises:
        ValueError: it is not a JSON object.
    """
    beside = weights.with_suffix(".json")
    return DEFAULT_CONFIG | (_json_object(beside) if beside.is_file() else {})


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON object, got something else: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def read_class_names(path: Path) -> dict[str, str]:
    """Return class -> name from a CSV file with the columns ``class_id`` and ``name``.

    Raises:
        ValueError: a column is missing.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"class_id", "name"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: line 1: expected the columns class_id and name, got {rows.fieldnames}")
        return {row["class_id"]: row["name"] for row in rows}


def read_labels(path: Path) -> list[str]:
    """Return the classes' names in the order of their numbers, see :func:`read_class_names`.

    Raises:
        ValueError: a column is missing, or the classes are not numbered from 0 without a gap.
    """
    names = read_class_names(path)
    missing = [str(i) for i in range(len(names)) if str(i) not in names]
    if missing:
        raise ValueError(f"{path}: expected a name for every class, got none for {', '.join(missing[:5])}")
    return [names[str(i)] for i in range(len(names))]


def package(
    weights: Path, out: Path, config: dict[str, Any] | None = None, code: Sequence[Path] = ()
) -> None:
    """Write ``out``: ``model/model.pt``, ``model/config.json`` and ``code/``.

    Args:
        config: parts of the config that differ from the default one; by default those beside the weights.
        code: files and package folders of your own, packed beside ours.

    Raises:
        ValueError: two files have the same name, or the config holds unknown keys.
    """
    config = model_config(weights) if config is None else DEFAULT_CONFIG | config
    if unknown := config.keys() - DEFAULT_CONFIG.keys() - {"arguments"}:
        raise ValueError(
            f"config: expected the keys {', '.join(DEFAULT_CONFIG)}, got {', '.join(sorted(unknown))}"
        )
    files = {
        "model/model.pt": weights.read_bytes(),
        "model/config.json": json.dumps(config, indent=2, ensure_ascii=False).encode(),
    }
    files |= {f"code/{name}": (HERE / name).read_bytes() for name in CODE}
    files |= {f"code/glassbox/{name}": (CORE / name).read_bytes() for name in CORE_MODULES}
    for path in dict.fromkeys(path.resolve() for path in code):
        if path.name in {*CODE, CORE.name}:
            raise ValueError(
                f"{path}: expected another name, because code/{path.name} is a file of ours. Rename it."
            )
        found = _code(path)
        if twice := files.keys() & found:
            raise ValueError(f"{path}: expected different names, got {min(twice)} twice")
        files |= found
    # Times and owners are left out: they would differ between runs. Nothing is compressed: weights shrink by 7 % only,
    # and compressing takes 15 s for 500 MB at any level.
    with (
        out.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=0, fileobj=raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


def write_hook(folder: Path) -> None:
    """Write what PYTHONPATH must begin with on an endpoint that does not contain our code.

    ``folder`` itself holds ``sitecustomize.py`` alone. The modules are in a folder below it, off the path: their names
    must not hide modules of the owner.

    Raises:
        OSError: a file cannot be written.
    """
    files = {"sitecustomize.py": HERE / "hook" / "sitecustomize.py"}
    files |= {f"glassbox_hook/{name}": HERE / name for name in (*HOOK, *CAPTURE)}
    files |= {f"glassbox_hook/glassbox/{name}": CORE / name for name in CORE_MODULES}
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def _code(path: Path) -> dict[str, bytes]:
    """Return name in the archive -> content, of a file or a package folder.

    Compiled and hidden files are left out: they differ between machines.

    Raises:
        ValueError: the folder holds no file, or its name cannot be imported.
    """
    if not path.is_dir():
        return {f"code/{path.name}": path.read_bytes()}
    if not path.name.isidentifier():
        raise ValueError(
            f"{path}: expected the name of a Python package, got {path.name!r}. Rename the folder."
        )
    inside = [file.relative_to(path.parent) for file in path.rglob("*") if file.is_file()]
    names = [
        name
        for name in inside
        if name.suffix != ".pyc"
        and not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    ]
    if not names:
        raise ValueError(f"{path}: expected a package folder, got one without a file")
    return {f"code/{name.as_posix()}": (path.parent / name).read_bytes() for name in names}


def network_class(given: str) -> tuple[str, Path | None]:
    """Return the ``module:Class`` that ``--network`` names, and the path to pack.

    ``given`` is FILE.py:CLASS, FOLDER:CLASS or MODULE:CLASS. For a file in a package the path is the whole package,
    since its modules import one another. For MODULE:CLASS of an installed package it is None. CLASS may be any function
    that returns a network.

    Raises:
        ValueError: another form, or a name that Python cannot import.
    """
    file, _, name = given.rpartition(":")
    path = Path(file).resolve()
    if not file or not name.isidentifier():
        raise ValueError(f"--network {given}: expected FILE.py:CLASS, FOLDER:CLASS or MODULE:CLASS")
    if not (file.endswith(".py") or path.is_dir()):
        if not _installed(file):
            raise ValueError(
                f"--network {given}: expected FILE.py:CLASS, FOLDER:CLASS or MODULE:CLASS of an installed package, "
                f"got no module {file.partition('.')[0]}. Install it, or give its file."
            )
        return given, None
    module = [path.stem if path.suffix == ".py" else path.name]
    while (path.parent / "__init__.py").is_file():
        path = path.parent
        module.insert(0, path.name)
    if not all(part.isidentifier() and part.isascii() for part in module):
        raise ValueError(f"--network {given}: expected a Python module, got {'.'.join(module)}. Rename it.")
    return f"{'.'.join(module)}:{name}", path


def _installed(module: str) -> bool:
    """Return whether the top-level package of a dotted name is installed; nothing of it is imported."""
    parts = module.split(".")
    if not all(part.isidentifier() and part.isascii() for part in parts):
        return False
    return importlib.util.find_spec(parts[0]) is not None


def digest(archive: Path) -> str:
    """Return a short name of the content."""
    return hashlib.sha256(archive.read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def unpacked(archive: Path, *before: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the unpacked archive and the environment of a process that imports its code.

    Args:
        before: folders that the process searches for modules before ``code/``.

    Raises:
        tarfile.TarError: not a tar archive, or a member that would be written outside the folder.
        ValueError: more than MAX_MEMBERS files or MAX_BYTES, or a damaged archive.
    """
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as packed:
        try:
            packed.extractall(folder, members=_bounded(archive, packed), filter="data")
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{archive}: expected a whole archive, got a damaged one: {error}") from error
        # Without tracing; inference.py reads the name in lower and upper case.
        environment = {name: value for name, value in os.environ.items() if name.lower() != "tensors_output"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (*before, Path(folder) / "code")))
        yield Path(folder), environment


def _bounded(archive: Path, packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive, each before it is written."""
    size = 0
    for number, member in enumerate(packed, start=1):
        size += member.size
        if number > MAX_MEMBERS or size > MAX_BYTES:
            raise ValueError(
                f"{archive}: expected at most {MAX_MEMBERS} files and {MAX_BYTES} bytes decompressed, got more"
            )
        yield member


def load(archive: Path) -> None:
    """Load the model with its code in a process of its own, as the endpoint does.

    Raises:
        subprocess.CalledProcessError: it does not load; ``stderr`` holds the reason.
    """
    with unpacked(archive) as (folder, environment):
        script = "import sys, inference; inference.model_fn(sys.argv[1])"
        subprocess.run(  # noqa: S603 (our own code)
            [sys.executable, "-P", "-c", script, folder],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="a state dict")
    parser.add_argument("--out", type=Path, default=Path("model.tar.gz"))
    parser.add_argument("--config", type=Path, help="default: the .json beside the weights, or 48×48 pixels")
    parser.add_argument("--labels", type=Path, help="a CSV file with the columns class_id and name")
    parser.add_argument(
        "--network",
        metavar="FILE.py:CLASS",
        help="a network of your own; FOLDER:CLASS for a package, MODULE:CLASS for an installed one",
    )
    parser.add_argument(
        "--arguments", type=json.loads, default={}, help="the arguments of CLASS, as a JSON object"
    )
    parser.add_argument(
        "--code",
        type=Path,
        nargs="+",
        default=[],
        help="further files and package folders that FILE.py imports",
    )
    arguments = parser.parse_args()
    try:
        config = model_config(arguments.weights)
        if arguments.config:
            config = _json_object(arguments.config)
        if arguments.labels:
            config |= {"labels": read_labels(arguments.labels)}
        code, path = list(arguments.code), None
        if arguments.network:
            architecture, path = network_class(arguments.network)
            config |= {"architecture": architecture, "arguments": arguments.arguments}
            if path:
                code.append(path)
        # In a file of its own first: an archive that does not load must not replace a working one.
        unproved = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}")
        try:
            package(arguments.weights, unproved, config, code)
            load(unproved)
            unproved.replace(arguments.out)
        finally:
            unproved.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"package: {error}")
    except subprocess.CalledProcessError as error:
        # A killed process writes nothing.
        reason = error.stderr.strip().splitlines() or [f"its process ended with {error.returncode}"]
        sys.exit(f"package: {arguments.out} does not load: {reason[-1]}")
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    if arguments.network and path is None:
        module = architecture.partition(":")[0].partition(".")[0]
        print(f"{module} is not packed: the image of the endpoint must contain it, in the same version")


if __name__ == "__main__":
    main()
