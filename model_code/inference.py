"""The model behind the endpoint: ``model_fn`` and ``transform_fn``, as SageMaker's PyTorch containers call them.

``tensors_output`` (an S3 URI) in the environment turns the hook on; without it, this is the plain model.
"""

import hashlib
import io
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from glassbox.settings import from_env, setting
from resnet import from_state_dict

BYTES = 6 << 20  # InvokeEndpoint's limit
PIXELS = 4096 * 4096
BATCH = 64
TOP = 3


class RequestError(Exception):
    """The request cannot be answered: an HTTP status and one sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Settings:
    """See README, "The endpoint"."""

    tensors_output: str | None = None
    traces_per_minute: float = setting(10.0, within=(0, None))
    trace_form: str = "reduced"


@dataclass
class Classifier:
    """What ``model_fn`` gives: the network, how its images are prepared, and the tracer of the hooked twin."""

    network: nn.Module
    image_size: tuple[int, int]
    mean: Tensor
    std: Tensor
    labels: list[str] | None
    tracer: Any = field(default=None)

    def close(self) -> None:
        """Upload the traces that are still waiting."""
        if self.tracer is not None:
            self.tracer.close()


def model_fn(model_dir: str, context: Any = None) -> Classifier:
    """Load ``model/model.pt`` and ``model/config.json`` of an unpacked model.tar.gz."""
    folder = Path(model_dir) / "model"
    config = json.loads((folder / "config.json").read_text())
    state_dict = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    classifier = Classifier(
        from_state_dict(state_dict).eval().requires_grad_(False),
        tuple(config["image_size"]),
        *(torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std")),
        config.get("labels"),
    )
    environment = dict(os.environ) | {"TENSORS_OUTPUT": os.environ.get("tensors_output", "")}
    settings = from_env(Settings, environment)
    if settings.tensors_output:
        classifier.tracer = _tracer(classifier.network, settings)
    return classifier


def _tracer(network: nn.Module, settings: Settings) -> Any:
    import boto3
    from botocore.config import Config
    from hook import Tracer

    # short: a trace is not worth waiting for
    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 2})
    return Tracer(
        network,
        settings.tensors_output,
        client=boto3.client("s3", config=config),
        traces_per_minute=settings.traces_per_minute,
        form=settings.trace_form,
        clock=time.monotonic,
        utcnow=lambda: datetime.now(UTC),
    )


def transform_fn(
    model: Classifier, data: bytes, content_type: str, accept: str, context: Any = None
) -> tuple[str, str]:
    """Images in, predictions out.

    Args:
        data: ``application/x-npy`` (H, W, C) or (N, H, W, C), uint8 or float 0..1; ``image/png``; ``image/jpeg``.
        context: gives the request's headers (inference id, custom attributes).

    Returns:
        ``{"predictions": [{"class", "label", "probability", "top3"}, …]}``, one per image, and its content type.

    Raises:
        RequestError: 400 (not an image, too large, pickled), 406 or 415.
    """
    if accept and not any(kind in accept for kind in ("application/json", "*/*", "application/*")):
        raise RequestError(406, f"Accept {accept!r}: only application/json is given.")
    images = _images(bytes(data), content_type)
    pictures = np.stack([_resized(image, model.image_size) for image in images])
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - model.mean) / model.std
    attributes, inference_id = _header(context, "Custom-Attributes"), _header(context, "Inference-Id")
    if model.tracer is not None and model.tracer.wants(attributes):
        request = {
            "inference_id": inference_id,
            "custom_attributes": attributes,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        logits = model.tracer.predict(x, pictures, request, model.labels)
    else:
        with torch.no_grad():
            logits = model.network(x)
    return json.dumps({"predictions": [_prediction(p, model.labels) for p in logits.softmax(1)]}), "application/json"


def _prediction(probabilities: Tensor, labels: list[str] | None) -> dict[str, Any]:
    best, classes = probabilities.topk(min(TOP, len(probabilities)))
    top = [
        {"class": c, "label": labels[c] if labels else None, "probability": round(p, 6)}
        for p, c in zip(best.tolist(), classes.tolist(), strict=True)
    ]
    return {**top[0], f"top{TOP}": top}


def _images(data: bytes, content_type: str) -> list[np.ndarray]:
    if len(data) > BYTES:
        raise RequestError(413, f"The body has {len(data)} bytes, at most {BYTES} are read.")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-npy":
        return _npy(data)
    if kind in ("image/png", "image/jpeg"):
        return [_picture(data, kind.removeprefix("image/").upper())]
    raise RequestError(415, f"Content type {kind!r} is none of application/x-npy, image/png, image/jpeg.")


def _npy(data: bytes) -> list[np.ndarray]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise RequestError(400, f"The body is not a .npy array of numbers: {error}.") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        shape = getattr(array, "shape", None)
        raise RequestError(400, f"The array has shape {shape}, (H, W, 3) or (N, H, W, 3) is needed.")
    batch = array if array.ndim == 4 else array[None]
    if len(batch) > BATCH or batch.shape[1] * batch.shape[2] > PIXELS:
        raise RequestError(400, f"The array has shape {array.shape}, at most {BATCH} images are taken.")
    if batch.dtype == np.uint8:
        return list(batch)
    if batch.dtype.kind != "f" or not np.isfinite(batch).all() or batch.min() < 0 or batch.max() > 1:
        raise RequestError(400, f"The array is {batch.dtype}; uint8, or floats from 0 to 1, are needed.")
    return list((batch * 255).round().astype(np.uint8))


def _picture(data: bytes, kind: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[kind])
            if image.width * image.height > PIXELS:
                raise RequestError(400, f"The image has {image.width}x{image.height} pixels, at most {PIXELS} are read.")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(400, f"The body is not a readable {kind} image: {error}.") from error
    except Image.DecompressionBombWarning as error:
        raise RequestError(400, f"The image is too large: {error}.") from error


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def _header(context: Any, name: str) -> str | None:
    """A SageMaker header of the request, from our server's context or the PyTorch toolkit's."""
    wanted = f"x-amzn-sagemaker-{name}".lower()
    if context is None:
        return None
    if hasattr(context, "get_request_header"):
        return context.get_request_header(0, f"X-Amzn-SageMaker-{name}")
    return next((value for key, value in dict(context.headers).items() if key.lower() == wanted), None)
