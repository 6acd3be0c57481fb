"""Small classifiers of four families for 48 px images, and their training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet import BasicBlock
from train import Samples, augmented, normalised

SIZE, CLASSES, BATCH = 48, 43, 64


def resnet() -> nn.Module:
    """Return a network of residual blocks with BatchNorm and ReLU."""
    return nn.Sequential(
        *_stem(16, nn.ReLU()),
        BasicBlock(16, 16, 1),
        BasicBlock(16, 32, 2),
        BasicBlock(32, 32, 1),
        BasicBlock(32, 64, 2),
        BasicBlock(64, 64, 1),
        *_head(64),
    )


def efficientnet() -> nn.Module:
    """Return a network of inverted residuals with SiLU and squeeze and excitation."""
    return nn.Sequential(
        *_stem(12, nn.SiLU()),
        InvertedResidual(12, 16, 1),
        InvertedResidual(16, 32, 2),
        InvertedResidual(32, 32, 1),
        InvertedResidual(32, 64, 2),
        InvertedResidual(64, 64, 1),
        *_head(64),
    )


def convnext() -> nn.Module:
    """Return a network of ConvNeXt blocks, with LayerNorm over the channels and GELU."""
    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4),
        ChannelNorm(48),
        ConvNeXtBlock(48),
        ConvNeXtBlock(48),
        ChannelNorm(48),
        nn.Conv2d(48, 96, 2, 2),
        ConvNeXtBlock(96),
        ConvNeXtBlock(96),
        ConvNeXtBlock(96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(96),
        nn.Linear(96, CLASSES),
    )


def vit() -> nn.Module:
    """Return a vision transformer with 8×8 tokens and a class token."""
    return VisionTransformer(96, depth=4, heads=4, patch=6)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ResNet": resnet,
    "EfficientNet": efficientnet,
    "ConvNeXt": convnext,
    "ViT": vit,
}

LEARNING_RATES = {"ResNet": 4e-3, "EfficientNet": 6e-3, "ConvNeXt": 2e-3, "ViT": 1e-3}

VIEWS = {"ResNet": 26_000, "EfficientNet": 17_000, "ConvNeXt": 70_000, "ViT": 86_000}
"""Images, with repetition, that a network is trained on: two to four minutes on one core."""


def last_feature_map(family: str, network: nn.Module) -> nn.Module:
    """Return the module whose output Grad-CAM weighs.

    It is the last block, and the first norm of a ViT's last block.
    """
    if family == "ViT":
        return cast("nn.Module", network.blocks[-1].norm1)  # type: ignore[index,union-attr]
    blocks = (BasicBlock, InvertedResidual, ConvNeXtBlock)
    return [module for module in network.modules() if isinstance(module, blocks)][-1]


def _stem(channels: int, activation: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(3, channels, 3, 2, padding=1, bias=False), nn.BatchNorm2d(channels), activation]


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


class InvertedResidual(nn.Module):
    """Expand the channels by 4, convolve each of them, weigh them, and reduce them again."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = 4 * in_channels
        self.expand = nn.Sequential(
            nn.Conv2d(in_channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
        )
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, in_channels // 4, 1),
            nn.SiLU(),
            nn.Conv2d(in_channels // 4, wide, 1),
            nn.Sigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.is_residual = in_channels == channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.weigh(y))
        return cast("Tensor", x + y if self.is_residual else y)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Convolve each channel, then mix the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.reduce = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        mixed = self.reduce(F.gelu(self.expand(y)))
        return x + cast("Tensor", mixed).permute(0, 3, 1, 2)


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each after a LayerNorm and beside a shortcut."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.expand, self.reduce = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, channels = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, channels // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, channels))
        return cast("Tensor", x + self.reduce(F.gelu(self.expand(self.norm2(x)))))


class VisionTransformer(nn.Module):
    """Classify the class token of a sequence of patches."""

    def __init__(self, channels: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, channels))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (SIZE // patch) ** 2, channels))
        self.blocks = nn.Sequential(*(EncoderBlock(channels, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(images), -1, -1), tokens), 1) + self.positions
        return cast("Tensor", self.head(self.norm(self.blocks(tokens))[:, 0]))


def trained(
    family: str,
    seed: int,
    samples: Callable[[], Samples],
    weights: Path | None,
    effort: float = 1.0,
    start: nn.Module | None = None,
) -> nn.Module:
    """Return a trained network in eval mode.

    Args:
        family: of :data:`FAMILIES`.
        seed: of the weights, the order of the images, and their augmentation.
        samples: returns the training images; called only if there are no weights.
        weights: file to read, or to write after the training; None keeps none.
        effort: factor of :data:`VIEWS`.
        start: trained network to continue from; by default the weights are random.
    """
    torch.manual_seed(seed)
    network = FAMILIES[family]()
    if weights is not None and weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.eval()
    if start is not None:
        network.load_state_dict(start.state_dict())
    _fit(network, samples(), effort * VIEWS[family], seed, LEARNING_RATES[family])
    if weights is not None:
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), weights)
    return network.eval()


def _fit(network: nn.Module, samples: Samples, views: float, seed: int, rate: float) -> None:
    random = torch.Generator().manual_seed(seed)
    batches = math.ceil(len(samples.images) / BATCH)
    epochs = max(1, round(views / len(samples.images)))
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * batches)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(samples.images), generator=random).tensor_split(batches):
            images = normalised(augmented(samples.images[chosen], random))
            loss = F.cross_entropy(network(images), samples.classes[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
