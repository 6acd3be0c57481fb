"""Explain the predictions of any torch module, without AWS: heat maps and their facts, as from the endpoint.

    python -m glassbox.explain --model torchvision.models:resnet50 --weights resnet50.pt --image cat.png --out heatmaps

``pip install '.[torch]'`` installs what it imports. In a notebook, call :func:`explain`.
"""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import nn

from glassbox.errors import BadInputError, printable
from glassbox.explanation import fullgrad, heatmap, trace_format
from glassbox.explanation.facts import Facts, Refusal, to_json
from glassbox.explanation.fullgrad import Explanation
from glassbox.explanation.trace_reader import Meta, Trace
from glassbox.model_config import ModelConfig, to_config
from glassbox.network import build_network, one_line, read_checkpoint
from gradient_rules import UnexplainableError
from gradients import Gradients, merged

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, with which torchvision's networks are trained."""

SIZE = (224, 224)
"""Pixels (H, W), of torchvision's classifiers."""

SUFFIXES = (".png", ".json")


@dataclass(frozen=True, eq=False)
class Heatmap:
    """The explanation of one prediction."""

    explanation: Explanation

    @property
    def saliency(self) -> npt.NDArray[np.float32]:
        """(H, W), ≥ 0, not rescaled."""
        return self.explanation.saliency

    @property
    def facts(self) -> Facts:
        """Class, score, completeness error, held places, and parts without a rule."""
        return heatmap.facts(self.explanation)

    def png(self, palette: str = heatmap.PERCEPTUAL) -> bytes:
        """Draw it, see :func:`glassbox.explanation.heatmap.render`."""
        return heatmap.render(self.explanation, palette)


def explain(
    module: nn.Module,
    images: npt.NDArray[np.uint8],
    *,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    labels: Sequence[str] | None = None,
    targets: Sequence[int] | None = None,
    blur_test: bool = True,
) -> list[Heatmap]:
    """Explain one class score of each image by the code that runs on the endpoint.

    The module gets ``(image / 255 - mean) / std`` on the device of its parameters, in eval mode. Afterwards its
    ``training`` and ``requires_grad`` flags are as before. Only CPUs have been tried.

    Args:
        module: takes (N, C, H, W) float32, returns (N, K ≥ 2) scores: logits, or the softmax or sigmoid of logits.
        images: (N, H, W, C) uint8 at the module's size, C 1 or 3.
        mean: C numbers, for channels in 0 to 1; and so is ``std``.
        labels: the names of the K classes.
        targets: N classes; by default the predicted ones.
        blur_test: measure the class's probability after blurring, by two more forward passes for each image.

    Returns:
        A heat map per image, also where it is not complete: see ``facts.completeness``.

    Raises:
        ValueError: images, mean, std, labels or targets of another shape.
        UnexplainableError: a ValueError with the reason why it has no explanation, such as quantized weights.
        SelfTestError: the installed torch does not behave as the rules expect.
        RuntimeError: by torch or by the module.
    """
    _check_images(images, mean, std, targets)
    _check_module(module)
    with _flags_restored(module):
        network = Gradients(module.eval(), trace_format.REDUCED, blur_test=blur_test)
        device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
        shift, scale = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))
        heatmaps = []
        for i, image in enumerate(images):
            pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
            x = ((pixels / 255 - shift) / scale)[None].to(device)
            target = None if targets is None else int(targets[i])
            heatmaps.append(Heatmap(_explanation(network, x, image, target, labels)))
        return heatmaps


def _check_images(
    images: npt.NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], targets: Sequence[int] | None
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise ValueError(f"images: expected uint8 (N, H, W, 1 or 3), got {images.dtype} {images.shape}")
    if not len(mean) == len(std) == images.shape[3]:
        raise ValueError(
            f"mean, std: expected {images.shape[3]} numbers, one per channel, got {len(mean)} and {len(std)}"
        )
    if targets is not None and len(targets) != len(images):
        raise ValueError(f"targets: expected {len(images)}, one per image, got {len(targets)}")


def _check_module(module: nn.Module) -> None:
    quantized = [
        name or type(part).__name__
        for name, part in module.named_modules()
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
    ]
    if quantized:
        raise UnexplainableError(
            f"{quantized[0]}: expected weights in floating point, got a quantized module. Integer operations have no "
            "gradient. Explain the network before its quantization."
        )


@contextlib.contextmanager
def _flags_restored(module: nn.Module) -> Iterator[None]:
    training = [(part, part.training) for part in module.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for part, flag in training:
            part.training = flag
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)


def _explanation(
    network: Gradients,
    x: torch.Tensor,
    input_image: npt.NDArray[np.uint8],
    target: int | None,
    labels: Sequence[str] | None,
) -> Explanation:
    sample = network.compute(x, target)
    classes = sample.output.shape[1]
    if classes < 2:
        raise UnexplainableError(
            f"{network.model_name}: expected scores of at least 2 classes, got 1 output unit. A regression has no "
            "class to explain. For a logit z of class 1, return torch.cat([torch.zeros_like(z), z], 1)."
        )
    if labels is not None and len(labels) != classes:
        raise ValueError(f"labels: expected {classes}, one per class, got {len(labels)}")
    entries, tensors = merged([sample])
    found = int(tensors[trace_format.TARGET][0])
    name = None if labels is None else printable(labels[found], trace_format.CLASS_NAME_CHARACTERS)
    described = {"trace_form": trace_format.REDUCED, "model": network.model_name, "request": {}}
    meta = msgspec.convert({**entries, **described, "class_names": [name]}, Meta)
    tensors = {trace_format.INPUT_IMAGE: input_image[None], **tensors}
    (explanation,) = fullgrad.explain(Trace(network.model_name, 0, meta, tensors))
    return explanation


def import_class(given: str) -> str:
    """Return the ``module:CLASS`` of FILE.py:CLASS or MODULE:CLASS, and load a file.

    Modules that the file imports are installed, in the working directory or on PYTHONPATH.

    Raises:
        ValueError: another form, or a file that cannot be imported.
    """
    file, _, name = given.rpartition(":")
    if not file or not name.isidentifier():
        raise ValueError(f"--model {given}: expected FILE.py:CLASS or MODULE:CLASS")
    if not file.endswith(".py"):
        if not all(part.isidentifier() for part in file.split(".")):
            raise ValueError(f"--model {given}: expected FILE.py:CLASS or MODULE:CLASS, got no module {file}")
        return given
    path = Path(file)
    if not path.stem.isidentifier() or path.stem in sys.modules:
        raise ValueError(
            f"--model {given}: expected another name, because {path.stem} is not free. Rename it."
        )
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    spec = importlib.machinery.ModuleSpec(path.stem, loader, origin=str(path))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import does: dataclasses and pickle look it up there
    try:
        loader.exec_module(module)
    except Exception as error:  # the file's own code runs here, and may raise anything
        del sys.modules[path.stem]
        raise ValueError(
            f"{path}: expected a Python module, got {type(error).__name__}: {one_line(error)}"
        ) from error
    return f"{path.stem}:{name}"


def read_preparation(path: Path | None, architecture: str) -> ModelConfig:
    """Return the members of a ``config.json``, completed by the defaults.

    The defaults are ImageNet's mean and std, and 224 × 224 pixels.

    Raises:
        ValueError: not a JSON object, or invalid members.
    """
    content: dict[str, Any] = {}
    if path:
        try:
            content = {**json.loads(path.read_text(encoding="utf-8"))}
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: expected a JSON object, got something else: {error}") from error
    defaults = {"image_size": list(SIZE), "mean": list(MEAN), "std": list(STD)}
    try:
        return to_config(defaults | content | {"architecture": architecture, "arguments": {}})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_image(path: Path, size: tuple[int, int], channels: int) -> npt.NDArray[np.uint8]:
    """Return an image file as the endpoint does: (H, W, C) uint8, upright, resized bilinearly.

    Raises:
        ValueError: not an image, or a damaged one.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "I;16":  # for 16 bits per colour Pillow itself takes the high byte
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGB" if channels == 3 else "L").resize(
                size[::-1], Image.Resampling.BILINEAR
            )
    except Exception as error:  # for a broken file Pillow raises any error
        raise ValueError(
            f"{path}: expected a readable image, got {type(error).__name__}: {one_line(error)}"
        ) from error
    return np.array(image).reshape(*size, channels)


def image_files(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the files of all paths in order, with the files of each folder.

    Hidden files of a folder are left out.

    Raises:
        ValueError: no file, two files whose heat maps would have the same name, or a file in ``out``.
    """
    files = []
    for path in paths:
        inside = (
            sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]
        )
        if not inside:
            raise ValueError(f"{path}: expected images, got an empty folder")
        files += inside
    if any(path.resolve().parent == out.resolve() for path in files):
        raise ValueError(f"--out {out}: expected another folder than that of the images")
    stem, count = Counter(path.stem for path in files).most_common(1)[0]
    if count > 1:
        raise ValueError(f"--image: expected different names, got {stem} twice. Rename one, or run it twice.")
    return files


def _line(path: Path, facts: Facts) -> str:
    name = f" ({facts.class_name})" if facts.class_name else ""
    found = facts.completeness
    error = (
        "the score is 0" if found.relative_error is None else f"error {found.relative_error:.1e} of the score"
    )
    held = ", ".join(f"{rule} {places}" for rule, places in sorted(found.held.items()))
    lines = [
        f"{path}: class {facts.predicted_class}{name}, probability {facts.probability:.1%}, score {facts.logit:.4g}; "
        f"{'complete' if found.complete else 'INCOMPLETE'}, {error}{f'; held: {held}' if held else ''}"
    ]
    return "\n".join([*lines, *(f"  unaccounted: {part}" for part in found.unaccounted)])


def explain_files(
    module: nn.Module,
    files: Sequence[Path],
    config: ModelConfig,
    out: Path,
    targets: Sequence[int] | None = None,
) -> Iterator[tuple[bool, str]]:
    """Write ``<stem>.png`` and ``<stem>.json`` for each file.

    Yields whether it worked, and a line for the terminal.

    A file that is not explained gets a ``.json`` with ``refused``, the reason, and no ``.png``.

    Raises:
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for path in files:
        png, facts = (out / (path.stem + suffix) for suffix in SUFFIXES)
        try:
            image = read_image(path, config.image_size, len(config.mean))
            (found,) = explain(
                module, image[None], mean=config.mean, std=config.std, labels=config.labels, targets=targets
            )
        except Exception as error:  # the module's own code runs here, and may raise anything
            reason = printable(
                str(error)
                if isinstance(error, (ValueError, BadInputError))
                else f"{type(error).__name__}: {error}",
                trace_format.REASON_CHARACTERS,
            )
            png.unlink(missing_ok=True)
            facts.write_bytes(to_json(Refusal(reason)))
            yield False, f"{path}: refused: {reason.removeprefix(f'{path}: ')}"
            continue
        png.write_bytes(found.png())
        facts.write_bytes(to_json(found.facts))
        yield True, _line(path, found.facts)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, with exit status 1 if an image was not explained."""
    parser = argparse.ArgumentParser(prog="python -m glassbox.explain", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", required=True, metavar="MODULE:CLASS", help="or FILE.py:CLASS; CLASS may be a function"
    )
    parser.add_argument(
        "--arguments", type=_object, default={}, help="the arguments of CLASS, as a JSON object"
    )
    parser.add_argument(
        "--weights", type=Path, help="a state dict (default: those that CLASS gives its network)"
    )
    parser.add_argument("--config", type=Path, help="image_size, mean, std and labels (docs/your-model.md)")
    parser.add_argument(
        "--image", type=Path, nargs="+", required=True, help="image files, or folders of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the heat maps and their facts")
    parser.add_argument("--target", type=int, help="class to explain (default: the predicted one)")
    given = parser.parse_args(arguments)
    try:
        files = image_files(given.image, given.out)
        architecture = import_class(given.model)
        config = read_preparation(given.config, architecture)
        checkpoint = read_checkpoint(given.weights) if given.weights else None
        module = build_network(architecture, given.arguments, checkpoint)
        (height, width), channels = config.image_size, len(config.mean)
        print(f"images: {height} × {width} px, {channels} channel(s), mean {config.mean}, std {config.std}")
        targets = None if given.target is None else [given.target]
        explained = True
        for worked, line in explain_files(module, files, config, given.out, targets):
            print(line, flush=True)
            explained &= worked
    except (OSError, ValueError, BadInputError) as error:
        sys.exit(f"explain: {one_line(error)}")
    sys.exit(not explained)


if __name__ == "__main__":
    main()
