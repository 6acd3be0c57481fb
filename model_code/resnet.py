"""ResNet18 (He et al. 2016, arXiv:1512.03385) of any width, with torchvision's parameter names.

It loads weights of ``torchvision.models.resnet18`` without torchvision.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from glassbox.errors import BadInputError
from glassbox.network import first_five, state_dict_in, without_prefix


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
            f"(classes, 8·width), got {first or 'none'} and {last or 'none'}; keys: {first_five(shapes)}"
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
        raise BadInputError(f"state dict: expected a ResNet18's; {first_five(differing, '; ')}")
    network = ResNet18(**sizes)
    network.load_state_dict(state_dict)
    return network.eval()


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_channels, channels, stride), BasicBlock(channels, channels, 1))


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state_dict.items()}
