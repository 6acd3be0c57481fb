"""Scripts of owners, each of which a hook could disturb in a way of its own.

Each function loads its network and returns what predicts: from an image (H, W, 3) uint8 to bytes, to JSON, or to parts
of JSON.
"""

import io
import json
import os
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from network import Signs
from torch import Tensor, nn

Predict = Callable[[np.ndarray], bytes | str | Iterator[str]]
CLASSES = 10
torch.set_num_threads(1)


def signs(seed: int = 0, width: int = 8) -> Signs:
    """Return a network with random weights and statistics."""
    torch.manual_seed(seed)
    network = Signs(CLASSES, width)
    for name, buffer in network.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def tensor(image: np.ndarray) -> Tensor:
    """Return (1, 3, H, W) float32 from 0 to 1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def probabilities() -> Predict:
    """Return probabilities as JSON, computed under no_grad."""
    network = signs()

    @torch.no_grad()
    def predict(image: np.ndarray) -> str:
        return json.dumps(network(tensor(image)).softmax(1).tolist())

    return predict


def torchscript() -> Predict:
    """Trace the network at the start, and return logits in NumPy's format."""
    network = torch.jit.trace(signs(), torch.rand(1, 3, 32, 32))

    @torch.inference_mode()
    def predict(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.save(file, network(tensor(image)).numpy())
        return file.getvalue()

    return predict


def bfloat16() -> Predict:
    """Predict under autocast, and keep the network in a dict."""
    model = {"network": signs(), "labels": [f"sign {i}" for i in range(CLASSES)]}

    def predict(image: np.ndarray) -> str:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            (scores,) = model["network"](tensor(image)).float().tolist()
        return json.dumps(dict(zip(model["labels"], scores, strict=True)))

    return predict


class Transformer(nn.Module):
    """A vision transformer for 32 × 32 pixels, called with a keyword, that returns a dict."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.positions = nn.Parameter(torch.randn(1, 16, width))
        self.block = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, CLASSES)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions
        return {"logits": self.head(self.block(tokens).mean(1))}


def transformer() -> Predict:
    """Call a transformer with a keyword."""
    torch.manual_seed(0)
    network = Transformer().eval()

    @torch.no_grad()
    def predict(image: np.ndarray) -> str:
        resized = nn.functional.interpolate(tensor(image), (32, 32))
        return json.dumps(network(pixel_values=resized)["logits"].tolist())

    return predict


def random_numbers() -> Predict:
    """Draw from the random generators of the process before and after the network."""
    network = signs()

    @torch.no_grad()
    def predict(image: np.ndarray) -> str:
        torch.manual_seed(zlib.crc32(image.tobytes()))
        x = tensor(image)
        scores = network(x + 0.1 * torch.randn_like(x))
        return json.dumps([scores.tolist(), torch.rand(4).tolist()])

    return predict


def one_buffer() -> Predict:
    """Keep one input tensor for all requests, write into it, and return what is left in it."""
    network, kept = signs(), torch.empty(1, 3, 32, 32)

    @torch.no_grad()
    def predict(image: np.ndarray) -> bytes:
        kept.copy_(nn.functional.interpolate(tensor(image), (32, 32)))
        scores = network(kept.sub_(0.5).div_(0.25))
        kept.relu_()
        return scores.numpy().tobytes() + kept.numpy().tobytes()

    return predict


def input_gradient() -> Predict:
    """Return the gradients of the input and of the parameters beside the scores."""
    network = signs()

    def predict(image: np.ndarray) -> bytes:
        network.zero_grad()
        x = tensor(image).requires_grad_()
        scores = network(x)
        scores.max().backward()
        gradients = [x.grad, *(parameter.grad for parameter in network.parameters())]
        return b"".join(found.detach().numpy().tobytes() for found in (scores, *gradients))

    return predict


def two_networks() -> Predict:
    """Send the mean of two networks in parts, computed while they are sent."""
    networks = [signs(seed) for seed in (0, 1)]

    def predict(image: np.ndarray) -> Iterator[str]:
        yield '{"scores": '
        with torch.no_grad():
            yield json.dumps(torch.stack([network(tensor(image)) for network in networks]).mean(0).tolist())
        yield "}"

    return predict


def photographs() -> Predict:
    """Return the class of an image, by a network of the width in ``$WIDTH``."""
    network = signs(width=int(os.environ["WIDTH"]))

    @torch.inference_mode()
    def predict(image: np.ndarray) -> str:
        return json.dumps(int(network(tensor(image)).argmax()))

    return predict
