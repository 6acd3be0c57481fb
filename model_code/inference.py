"""Serve the model: ``model_fn`` and ``transform_fn``, as SageMaker's PyTorch containers call them.

``tensors_output`` (an S3 URI) in the environment makes this the hooked model, which traces requests.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decode import RequestError, read_images
from glassbox.errors import BadInputError
from glassbox.model_config import RESNET18, ModelConfig, read_config
from glassbox.network import build_network, one_line, read_checkpoint
from recorder import TensorRecorder, connected, read_settings
from resnet import from_state_dict

TOP = 3


@dataclass(frozen=True)
class Classifier:
    """The network, the preparation of its input, and the recorder of the hooked model.

    Attributes:
        image_size: (H, W).
        mean: (C, 1, 1) float32, for channels in 0 to 1; and so is ``std``.
        labels: the K classes' names, or None.
    """

    network: nn.Module
    image_size: tuple[int, int]
    mean: Tensor
    std: Tensor
    labels: list[str] | None
    recorder: TensorRecorder | None = None

    def close(self) -> None:
        """Upload the waiting traces."""
        if self.recorder is not None:
            self.recorder.close()


def model_fn(model_dir: str, context: object = None) -> Classifier:
    """Load ``model/model.pt`` and ``model/config.json`` of an unpacked model.tar.gz.

    Raises:
        BadInputError: invalid weights or config; names the problem.
        SettingsError: invalid environment.
    """
    folder = Path(model_dir) / "model"
    config = read_config(folder / "config.json")
    network = load_network(folder / "model.pt", config)
    settings = read_settings(os.environ)
    mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (config.mean, config.std))
    recorder = connected(settings, settings.tensors_output, network) if settings.tensors_output else None
    return Classifier(network, config.image_size, mean, std, config.labels, recorder)


def load_network(weights: Path, config: ModelConfig) -> nn.Module:
    """Return the config's network with these weights, in eval mode, after a trial on noise.

    ``resnet18`` takes its sizes from the weights. ``module:Class`` is a class in ``code/`` of model.tar.gz; its
    ``forward`` takes (N, C, H, W) float32 and returns (N, K ≥ 2) logits. Weights of any float type are converted to the
    network's, which is float32 by default.

    Raises:
        BadInputError: the weights or the class cannot be loaded, the weights are not of this network, it does not take
            the config's images, or it does not return logits.
    """
    architecture = config.architecture
    checkpoint = read_checkpoint(weights)
    network = (
        from_state_dict(checkpoint)
        if architecture == RESNET18
        else build_network(architecture, config.arguments, checkpoint)
    )
    shape = (2, len(config.mean), *config.image_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            logits = network(noise)
    except Exception as error:
        # The network's own code may raise anything: timm's asserts the size of the image.
        raise BadInputError(
            f"{architecture}: expected a network that takes images of {shape[1:]} (channels, height, width), "
            f"got {type(error).__name__}: {one_line(error)}"
        ) from error
    classes = _check_logits(architecture, logits, len(noise))
    if config.labels is not None and len(config.labels) != classes:
        raise BadInputError(
            f"config.json: labels must be null or {classes} texts, found {len(config.labels)}"
        )
    return network


def _check_logits(architecture: str, logits: object, samples: int) -> int:
    """Return K; raise BadInputError unless the network returned (N, K ≥ 2) finite logits."""
    wanted = f"{architecture}: expected logits of the shape (N, K) with K >= 2 classes, got"
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise BadInputError(f"{wanted} a {kind}. Return the tensor of logits alone from forward().")
    if logits.ndim != 2 or len(logits) != samples:
        raise BadInputError(f"{wanted} {tuple(logits.shape)} for {samples} images.")
    if logits.shape[1] < 2:
        raise BadInputError(
            f"{wanted} {logits.shape[1]} output unit, whose softmax is 1 for every image. For a logit z of class 1, "
            "return torch.cat([torch.zeros_like(z), z], 1)."
        )
    if not logits.is_floating_point():
        raise BadInputError(f"{wanted} {logits.dtype}. Return floats, before any argmax.")
    if not logits.isfinite().all():
        raise BadInputError(f"{wanted} NaN or infinity for an image of noise.")
    if bool((logits >= 0).all()) and torch.allclose(
        logits.double().sum(1), torch.ones(()).double(), atol=1e-3
    ):
        raise BadInputError(f"{wanted} probabilities. Leave out the softmax at the end of forward().")
    return logits.shape[1]


def transform_fn(
    model: Classifier, data: bytes | str, content_type: str, accept: str, context: Any = None
) -> tuple[str, str]:
    """Predict the classes of a request's images.

    Args:
        data: ``image/png`` or ``image/jpeg``: one image. ``application/x-npy``: (H, W, C), or N ≤ 64 images
            (N, H, W, C), as uint8 or as floats from 0 to 1, which are rounded to 8 bits. Images of another size are
            resized to the model's. Files are turned upright by their EXIF orientation; 16 bits become 8.
        context: the request's headers, as ``.headers`` or as the PyTorch toolkit's ``get_all_request_header``.

    Returns:
        ``{"predictions": [{"class", "label", "probability", "top3": [{"class", "label", "probability"}, …]}, …]}``, one
        entry per image, and its content type.

    Raises:
        RequestError: 400 (not an image, or too large), 406 or 415.
    """
    if not _accepts_json(accept):
        raise RequestError(406, f"Accept: expected application/json, got {accept[:100]!r}.")
    # The PyTorch toolkit gives JSON and CSV as text.
    data = data.encode() if isinstance(data, str) else bytes(data)
    input_images = read_images(data, content_type, len(model.mean), model.image_size)
    x = (torch.from_numpy(input_images).permute(0, 3, 1, 2).contiguous() / 255 - model.mean) / model.std
    headers = _headers(context)
    request = model.recorder and model.recorder.wants(
        data,
        headers.get("x-amzn-sagemaker-custom-attributes"),
        headers.get("x-amzn-sagemaker-inference-id"),
    )
    if model.recorder and request:
        logits = model.recorder.predict(x, input_images, request, model.labels)
    else:
        with torch.inference_mode():
            logits = model.network(x)
    if not logits.isfinite().all():
        raise ArithmeticError("expected finite logits, got NaN or infinity")
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


def _headers(context: Any) -> Mapping[str, str]:
    """Return the request's headers by lower-case name, from serve.py's context or the PyTorch toolkit's."""
    if context is None:
        return {}
    toolkit = getattr(context, "get_all_request_header", None)
    return {name.lower(): value for name, value in (toolkit(0) if toolkit else context.headers).items()}
