"""The model behind the endpoint: ``model_fn`` and ``transform_fn``, as SageMaker's PyTorch containers call them.

``tensors_output`` (an S3 URI) in the environment turns the hook on; without it, this is the plain model.
"""

import importlib
import io
import json
import logging
import math
import os
import pickle
import re
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor, nn

from glassbox.errors import BadInputError
from glassbox.replay_marker import PublicKey
from glassbox.settings import from_env, setting
from resnet import from_state_dict

logger = logging.getLogger(__name__)

PIXELS = 1 << 24  # of one image; 48 MB decoded
BATCH = 64
FLOAT32 = torch.finfo(torch.float32)
TOP = 3
SIDE = 1024  # of the model's input
RESNET18 = "resnet18"

# What torch.load raises at a file that is no state dict, or half of one: only the first is its own word for it.
_NO_WEIGHTS = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)

_CLASS = re.compile(r"[A-Za-z_]\w*:[A-Za-z_]\w*")

# Not Image.open, which refuses what is very large without saying how large it is.
_PICTURES = {"image/png": ("PNG", PngImageFile), "image/jpeg": ("JPEG", JpegImageFile)}

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class RequestError(Exception):
    """The request cannot be answered: an HTTP status, and one sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Settings:
    """The container's environment."""

    tensors_output: str | None = None
    traces_per_minute: int = setting(10, within=(0, None))
    trace_form: str = "reduced"
    replay_key: str | None = None
    replay_key_arn: str | None = None


@dataclass(frozen=True)
class Classifier:
    """The network, how its input is made of a picture, and the tracer of the hooked twin.

    Attributes:
        image_size: (H, W).
        mean: (C, 1, 1) float32, for channels in 0..1; and so is ``std``.
        labels: the K classes' names, or None.
    """

    network: nn.Module
    image_size: tuple[int, int]
    mean: Tensor
    std: Tensor
    labels: list[str] | None
    tracer: Any = None

    def close(self) -> None:
        """Upload the traces that are still waiting."""
        if self.tracer is not None:
            self.tracer.close()


def model_fn(model_dir: str, context: Any = None) -> Classifier:
    """Load ``model/model.pt`` (a state dict) and ``model/config.json`` of an unpacked model.tar.gz.

    Raises:
        BadInputError: weights or config cannot be used; names what is wrong.
        SettingsError: the environment is wrong.
    """
    folder = Path(model_dir) / "model"
    config = read_config(folder / "config.json")
    network = load_network(folder / "model.pt", config)
    settings = from_env(Settings, {name.upper(): value for name, value in os.environ.items()})
    mean, std = (torch.tensor(config[name], dtype=torch.float32).view(-1, 1, 1) for name in ("mean", "std"))
    tracer = _tracer(network, settings.tensors_output, settings) if settings.tensors_output else None
    return Classifier(network, tuple(config["image_size"]), mean, std, config["labels"], tracer)


def read_config(path: Path) -> dict[str, Any]:
    """``config.json``.

    Raises:
        BadInputError: names everything that is wrong.
    """

    def numbers(value: Any) -> bool:
        # as float32 holds them: JSON's may be NaN, infinite, or larger than any float
        return isinstance(value, list) and all(
            type(v) in (int, float) and abs(v) <= FLOAT32.max for v in value
        )

    try:
        config = {"arguments": {}, "labels": None, **json.loads(path.read_text(encoding="utf-8"))}
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInputError(f"{path}: not a JSON object: {error}") from error
    size, mean, std, labels = (config.get(name) for name in ("image_size", "mean", "std", "labels"))
    problems = {
        "architecture must be 'resnet18' or 'module:Class'": config.get("architecture") == RESNET18
        or bool(_CLASS.fullmatch(str(config.get("architecture")))),
        "arguments must be an object": isinstance(config["arguments"], dict),
        f"image_size must be two whole numbers (H, W) from 1 to {SIDE}": numbers(size)
        and len(size) == 2
        and all(type(side) is int and 1 <= side <= SIDE for side in size),
        "mean must be 1 or 3 numbers": numbers(mean) and len(mean) in (1, 3),
        "std must be as many numbers, above 0": numbers(std)
        and len(std) == len(mean if isinstance(mean, list) else ())
        and min(std) >= FLOAT32.tiny,
        "labels must be null or texts": labels is None
        or (isinstance(labels, list) and all(isinstance(label, str) for label in labels)),
    }
    if not all(problems.values()):
        raise BadInputError(
            f"{path}: " + "; ".join(problem for problem, fine in problems.items() if not fine)
        )
    return config


def load_network(weights: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network of ``config["architecture"]`` with these weights, in eval mode; tried on one empty picture.

    ``resnet18`` reads its sizes off the weights. ``module:Class`` is a class in ``code/module.py`` of model.tar.gz,
    called with ``config["arguments"]``; its ``forward`` takes (N, C, H, W) float32 and gives (N, K) logits.

    Raises:
        BadInputError: the weights or the class cannot be loaded, the weights are not of this network, or it does not
            take the config's pictures.
    """
    architecture = config["architecture"]
    try:
        state_dict = torch.load(weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInputError(f"{weights}: {error.strerror}") from error
    except _NO_WEIGHTS as error:
        raise BadInputError(
            f"{weights}: no state dict of tensors alone, and nothing else is read: "
            f"torch.save(network.state_dict(), …) writes one ({type(error).__name__}: {_line(error)[:200]})"
        ) from error
    network = from_state_dict(state_dict) if architecture == RESNET18 else _own(config, state_dict)
    shape = (1, len(config["mean"]), *config["image_size"])
    try:
        with torch.inference_mode():
            logits = network(torch.zeros(shape))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise BadInputError(
            f"{architecture}: a picture of {shape} does not go through it: {_line(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != 1:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInputError(f"{architecture}: one picture gives {found}, and not logits of the shape (1, K)")
    if config["labels"] is not None and len(config["labels"]) != logits.shape[1]:
        raise BadInputError(
            f"config.json: labels must be null or {logits.shape[1]} texts, found {len(config['labels'])}"
        )
    return network


def _own(config: Mapping[str, Any], state_dict: Any) -> nn.Module:
    architecture, arguments = config["architecture"], config["arguments"]
    module, _, name = architecture.partition(":")
    try:
        network = getattr(importlib.import_module(module), name)(**arguments)
    except (
        ImportError,
        SyntaxError,
        AttributeError,
        TypeError,
        ValueError,
        RuntimeError,
        LookupError,
    ) as error:
        raise BadInputError(
            f"{architecture}: code/{module}.py gives no network with the arguments {arguments}: "
            f"{type(error).__name__}: {_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise BadInputError(f"{architecture}: a {type(network).__name__}, and no torch.nn.Module")
    try:
        network.load_state_dict(state_dict)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BadInputError(f"{architecture}: these are not its weights: {_line(error)}") from error
    return network.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _tracer(network: nn.Module, destination: str, settings: Settings) -> Any:
    # Not at the top: only the hooked twin needs them, and has smdebug.
    import boto3
    from botocore.config import Config

    from hook import Tracer

    # A trace is not worth a long wait: while it lasts, others are dropped.
    patience = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 2})
    return Tracer(
        network,
        destination,
        client=boto3.client("s3", region_name=os.environ.get("AWS_REGION"), config=patience),
        traces_per_minute=settings.traces_per_minute,
        form=settings.trace_form,
        clock=time.monotonic,
        utcnow=lambda: datetime.now(UTC),
        replay_key=_replay_key(settings),
    )


def _replay_key(settings: Settings) -> PublicKey | None:
    """The public key of the replays: REPLAY_KEY, or read once of the KMS key REPLAY_KEY_ARN.

    A twin that cannot read it does not start: it would answer every replay untraced.
    """
    if settings.replay_key:
        return PublicKey.from_text(settings.replay_key)
    if settings.replay_key_arn:
        import boto3

        kms = boto3.client("kms", region_name=settings.replay_key_arn.split(":")[3])
        return PublicKey.from_der(kms.get_public_key(KeyId=settings.replay_key_arn)["PublicKey"])
    logger.warning("REPLAY_KEY and REPLAY_KEY_ARN are not set: replays are answered like live traffic.")
    return None


def transform_fn(
    model: Classifier, data: bytes, content_type: str, accept: str, context: Any = None
) -> tuple[str, str]:
    """Pictures in, predictions out.

    Args:
        data: ``image/png`` or ``image/jpeg``: one picture. ``application/x-npy``: (H, W, C), or N ≤ 64 pictures
            (N, H, W, C), as uint8 or as floats from 0 to 1, which are rounded to 8 bits. Pictures of another size are
            resized to the model's.
        context: the request's headers, as ``.headers`` or as the PyTorch toolkit's ``get_all_request_header``.

    Returns:
        ``{"predictions": [{"class", "label", "probability", "top3": [{"class", "label", "probability"}, …]}, …]}``, one
        entry per picture, and its content type.

    Raises:
        RequestError: 400 (no picture, or too large), 406 or 415.
    """
    if not _accepts_json(accept):
        raise RequestError(406, f"Accept is {accept[:100]!r}; only application/json is given.")
    data = bytes(data)
    images = _images(data, content_type, channels=len(model.mean))
    picture = np.stack([_resized(image, model.image_size) for image in images])
    x = (torch.from_numpy(picture).permute(0, 3, 1, 2) / 255 - model.mean) / model.std
    headers = _headers(context)
    traced = None
    if model.tracer is not None:
        traced = model.tracer.wants(
            data,
            headers.get("x-amzn-sagemaker-custom-attributes"),
            headers.get("x-amzn-sagemaker-inference-id"),
        )
    if traced:
        logits = model.tracer.predict(x, picture, traced, model.labels)
    else:
        with torch.inference_mode():
            logits = model.network(x)
    if not logits.isfinite().all():
        raise ArithmeticError("the logits are not finite")
    return json.dumps({"predictions": _predictions(logits, model.labels)}), "application/json"


def _predictions(logits: Tensor, labels: list[str] | None) -> list[dict[str, Any]]:
    values, classes = logits.double().softmax(1).topk(min(TOP, logits.shape[1]))
    predictions = []
    for row in zip(classes.tolist(), values.tolist(), strict=True):
        top = [
            {"class": c, "label": labels[c] if labels else None, "probability": p}
            for c, p in zip(*row, strict=True)
        ]
        predictions.append({**top[0], "top3": top})
    return predictions


def _accepts_json(accept: str | None) -> bool:
    ranges = {media_range.partition(";")[0].strip().lower() for media_range in (accept or "").split(",")}
    return bool(ranges & {"", "application/json", "application/*", "*/*"})


def _images(data: bytes, content_type: str | None, channels: int) -> list[np.ndarray]:
    """The pictures of a body, each (H, W, C) uint8."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == "application/x-npy":
        return _npy(data, channels)
    if kind in _PICTURES:
        return [_picture(data, *_PICTURES[kind], channels)]
    raise RequestError(
        415, f"The content type is {kind[:100]!r}; application/x-npy, image/png and image/jpeg are read."
    )


def _npy(data: bytes, channels: int) -> list[np.ndarray]:
    stream = io.BytesIO(data)
    try:
        # The header first: np.load allocates what it asks for.
        shape, _, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:
        # Whatever numpy raises at foreign bytes (a SyntaxError, a TokenError, …): it is of no fixed kind.
        raise RequestError(400, "The body is not an array in the .npy format.") from error
    if dtype.hasobject:
        raise RequestError(400, "The array holds pickled objects, which are not read.")
    # `type(…) is int`: a header may say True, which numpy lets pass
    if (
        len(shape) not in (3, 4)
        or not all(type(side) is int and side >= 1 for side in shape)
        or shape[-1] != channels
    ):
        raise RequestError(
            400, f"The array has shape {shape}; (H, W, {channels}) or (N, H, W, {channels}) is read."
        )
    if (len(shape) == 4 and shape[0] > BATCH) or shape[-3] * shape[-2] > PIXELS:
        raise RequestError(
            400, f"The array has shape {shape}; at most {BATCH} pictures of {PIXELS} pixels are read."
        )
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise RequestError(400, f"The array's header promises {shape} {dtype}, which the body does not hold.")
    unread = RequestError(400, f"The array is {dtype}; uint8, or floats from 0 to 1, are read.")
    if dtype != np.uint8 and dtype.kind != "f":
        raise unread
    array = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1, *shape[-3:])
    if dtype == np.uint8:
        return list(array)
    # `not all(inside)`, so that NaN counts as outside
    if not ((array >= 0) & (array <= 1)).all():
        raise unread
    return list((array * 255).round().astype(np.uint8))


def _picture(data: bytes, kind: str, file: Callable[[io.BytesIO], Image.Image], channels: int) -> np.ndarray:
    try:
        with file(io.BytesIO(data)) as image:
            if image.width * image.height > PIXELS:
                raise RequestError(
                    400, f"The picture has {image.width}×{image.height} pixels; at most {PIXELS} are read."
                )
            if image.mode.startswith(("I", "F")):
                raise RequestError(400, "The picture has more than 8 bits a channel, which are not read.")
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except RequestError:
        raise
    except Exception as error:
        # As above: at a broken file, Pillow raises even an AssertionError.
        raise RequestError(400, f"The body is not a {kind} picture that can be read.") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8, bilinear."""
    if image.shape[:2] == size:
        return image
    plain = image if image.shape[2] == 3 else image[..., 0]
    resized = Image.fromarray(plain).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(*size, -1)


def _headers(context: Any) -> Mapping[str, str]:
    """The request's headers by lower-case name, from our server's context or the PyTorch toolkit's."""
    if context is None:
        return {}
    toolkit = getattr(context, "get_all_request_header", None)
    return {name.lower(): value for name, value in (toolkit(0) if toolkit else context.headers).items()}
