"""Try a model offline before it is deployed: load it as the endpoint does, trace one request and explain it.

    make check-model MODEL=model.tar.gz [IMAGE=sign.png] [HEATMAP=heatmap.png]

MODEL may also be a state dict that package.py accepts. Nothing is uploaded. The exit status is 1 if the model does not
load or a request fails; an incomplete explanation is a warning.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from package import HERE, package, unpacked

CORE = HERE.parent / "layers" / "core" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model.tar.gz, or a state dict")
    parser.add_argument("--image", type=Path, help="the image to explain (default: noise)")
    parser.add_argument("--heatmap", type=Path, help="where to write the heat map")
    chosen = parser.parse_args()
    options = [f"--{name}={path}" for name, path in vars(chosen).items() if name != "model" and path]
    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = chosen.model
            if not tarfile.is_tarfile(archive):
                archive = Path(folder) / "model.tar.gz"
                package(chosen.model, archive)
            # The whole core comes before the part of it that the archive holds.
            with unpacked(archive, CORE) as (root, environment):
                report = [sys.executable, "-P", str(HERE / "model_report.py"), str(root), str(chosen.model)]
                status = subprocess.run([*report, *options], env=environment).returncode  # noqa: S603 (our own code)
    except (OSError, ValueError, tarfile.TarError) as error:
        sys.exit(f"check-model: {' '.join(str(error).split())}")
    sys.exit(status)


if __name__ == "__main__":
    main()
