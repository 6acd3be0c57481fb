"""ResNet18 (He et al. 2016, arXiv:1512.03385) of any width, with torchvision's parameter names.

It loads weights of ``torchvision.models.resnet18`` without torchvision.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import cast

import torch
from torch import Tensor, nn

from glassbox.errors import BadInputError

# Keys under which training loops store the state dict beside the optimizer's: PyTorch's tutorials, Lightning, timm.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, projected by 1×1 where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return cast("Tensor", self.relu(out + shortcut))


class ResNet18(nn.Module):
    """Classifies (N, in_channels, H, W) float32 images into (N, num_classes) float32 logits.

    Args:
        width: channels of the first layer; the four stages have 1, 2, 4 and 8 times as many. The paper's is 64.
    """

    def __init__(self, num_classes: int = 43, width: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast("Tensor", self.fc(self.avgpool(x).flatten(1)))


def from_state_dict(checkpoint: object) -> ResNet18:
    """Return the network of these weights in eval mode, with sizes from their shapes.

    Args:
        checkpoint: a state dict, or a checkpoint for :func:`state_dict_in`.

    Raises:
        BadInputError: not the weights of a ResNet18; names the keys that differ.
    """
    state_dict = without_prefix(state_dict_in(checkpoint), lambda keys: {"conv1.weight", "fc.weight"} <= keys)
    shapes = _shapes(state_dict)
    first, last = shapes.get("conv1.weight", ()), shapes.get("fc.weight", ())
    if len(first) != 4 or len(last) != 2 or 0 in (*first, *last):
        raise BadInputError(
            "state dict: expected a ResNet18's, with conv1.weight (width, channels, 7, 7) and fc.weight "
            f"(classes, 8·width), got {first or 'none'} and {last or 'none'}; keys: {_some(shapes)}"
        )
    sizes = {"num_classes": last[0], "width": first[0], "in_channels": first[1]}
    with torch.device("meta"):
        expected = _shapes(ResNet18(**sizes).state_dict())
    differing = [
        f"{key}: expected {expected.get(key, 'none')}, got {shapes.get(key, 'none')}"
        for key in sorted(expected.keys() | shapes.keys())
        if expected.get(key) != shapes.get(key)
    ]
    if differing:
        raise BadInputError(f"state dict: expected a ResNet18's; {_some(differing, '; ')}")
    network = ResNet18(**sizes)
    network.load_state_dict(state_dict)
    return network.eval()


def state_dict_in(checkpoint: object) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, name -> tensor.

    Training loops store it under a key such as ``state_dict`` or ``model``; torch.compile adds ``_orig_mod`` to names.

    Raises:
        BadInputError: no state dict, more than one, or a tensor that cannot be loaded into a network on a CPU.
    """
    if not isinstance(checkpoint, Mapping):
        raise BadInputError(
            f"checkpoint: expected a state dict, got a {type(checkpoint).__name__}. "
            "torch.save(network.state_dict(), …) writes one."
        )
    wrapped = [key for key in STATE_DICT_KEYS if isinstance(checkpoint.get(key), Mapping)]
    if len(wrapped) > 1:
        raise BadInputError(
            f"checkpoint: expected one state dict, got several: {', '.join(wrapped)}. Save one of them alone."
        )
    state_dict = checkpoint[wrapped[0]] if wrapped else checkpoint
    foreign = [key for key, value in state_dict.items() if not (isinstance(key, str) and _loads(value))]
    if foreign:
        raise BadInputError(
            f"state dict: expected dense CPU tensors by name, got something else under {_some(foreign)}"
        )
    broken = [key for key, value in state_dict.items() if value.is_floating_point() and not _finite(value)]
    if broken:
        raise BadInputError(f"state dict: expected finite weights, got NaN or infinity in {_some(broken)}")
    return {".".join(p for p in key.split(".") if p != "_orig_mod"): v for key, v in state_dict.items()}


def without_prefix(
    state_dict: Mapping[str, Tensor], fits: Callable[[Set[str]], bool]
) -> Mapping[str, Tensor]:
    """Drop a wrapper's prefix of every key (``module.``, ``model.``) if the rest ``fits``."""
    stripped = state_dict
    while not fits(stripped.keys()):
        heads = {key.partition(".")[0] for key in stripped}
        if len(heads) != 1 or not all("." in key for key in stripped):
            return state_dict
        stripped = {key.partition(".")[2]: value for key, value in stripped.items()}
    return stripped


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_channels, channels, stride), BasicBlock(channels, channels, 1))


def _loads(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and not (value.is_quantized or value.is_nested or value.is_meta or value.is_complex())
        and value.layout == torch.strided
    )


def _finite(value: Tensor) -> bool:
    # float8 does not implement isfinite.
    return bool(value.float().isfinite().all())


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def _some(items: Iterable[object], separator: str = ", ") -> str:
    """List the first five. Keys come from a file, so control characters are escaped and long ones cut."""
    listed = [item if isinstance(item, str) and item.isprintable() else ascii(item) for item in items]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return separator.join(item[:200] for item in listed[:5]) + more
