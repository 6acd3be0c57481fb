"""The inference script of the demo's foreign endpoint, as SageMaker's PyTorch toolkit runs it: plain torch code."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network import Signs
from torch import Tensor, nn


def model_fn(model_dir: str) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network and its config."""
    torch.set_num_threads(1)
    config = json.loads((Path(model_dir) / "config.json").read_text())
    weights = torch.load(Path(model_dir) / "model.pth", weights_only=True)
    network = Signs(len(weights["fc.bias"]), len(weights["bn1.bias"]))
    network.load_state_dict(weights)
    return network.eval(), config


def input_fn(body: bytes, content_type: str) -> Tensor:
    """Read an image (H, W, 3) uint8 in NumPy's format."""
    image = np.load(io.BytesIO(body), allow_pickle=False)
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def predict_fn(image: Tensor, model: tuple[nn.Module, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the class of an image with its name and probability."""
    network, config = model
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        probabilities = network((image - mean) / std).softmax(1)[0]
    best, labels = int(probabilities.argmax()), config["labels"]
    found = {"class": best, "label": labels[best] if labels else None}
    return [found | {"probability": float(probabilities[best])}]


def output_fn(predictions: list[dict[str, Any]], accept: str) -> str:
    """Write the predictions as JSON."""
    return json.dumps({"predictions": predictions})
