"""Weights and code -> the model.tar.gz that SageMaker unpacks to /opt/ml/model.

    python model_code/package.py --weights model.pt --out model.tar.gz [--config config.json]

The same content gives the same bytes, so an upload that changed nothing is one.
"""

import argparse
import gzip
import io
import json
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
CORE = HERE.parent / "layers" / "core" / "python" / "glassbox"

CODE = ("inference.py", "hook.py", "resnet.py", "requirements.txt")
CORE_MODULES = ("__init__.py", "errors.py", "settings.py", "tensor_names.py")

# ImageNet's, with which torchvision's networks are trained
DEFAULT_CONFIG = {
    "architecture": "resnet18",
    "image_size": [48, 48],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "labels": None,
}


def model_config(weights: Path) -> dict:
    """The config beside the weights (the same name, ``.json``), or the default one."""
    beside = weights.with_suffix(".json")
    return DEFAULT_CONFIG | (json.loads(beside.read_text()) if beside.is_file() else {})


def package(weights: Path, out: Path, config: dict | None = None) -> None:
    """Write ``out``: ``model/model.pt``, ``model/config.json`` and ``code/``."""
    config = model_config(weights) if config is None else DEFAULT_CONFIG | config
    files = {"model/model.pt": weights.read_bytes(), "model/config.json": json.dumps(config, indent=2).encode()}
    files |= {f"code/{name}": (HERE / name).read_bytes() for name in CODE}
    files |= {f"code/glassbox/{name}": (CORE / name).read_bytes() for name in CORE_MODULES}
    with gzip.GzipFile(out, "wb", mtime=0) as compressed, tarfile.open(fileobj=compressed, mode="w") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("model.tar.gz"))
    parser.add_argument("--config", type=Path, help="default: the .json beside the weights")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text()) if arguments.config else None
    package(arguments.weights, arguments.out, config)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
