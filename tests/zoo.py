"""Networks of every kind that the recorder may meet, and the terms of their full gradient by torch autograd alone.

``ZOO`` holds small untrained networks with the traps of real ones: BatchNorms with all statistics random, channels of
tiny and of no variance, modules used twice or never, in-place activations, parts for which FullGrad is not exact.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet import ResNet18

BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Net:
    """A network, the shape (C, H, W) of its input, and whether FullGrad is exact for it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    exact: bool = True


def conv_bn(in_channels, channels, kernel=3, stride=1, groups=1, activation=None):
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        activation or nn.ReLU(inplace=True),
    )


def head(channels, classes=10):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Bottleneck(nn.Module):
    """He et al. 2016, with a projected shortcut."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class Inception(nn.Module):
    """Branches of several kernels, their outputs concatenated (Szegedy et al. 2015)."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 12, stride=2)
        self.one = conv_bn(12, 6, 1)
        self.three = nn.Sequential(conv_bn(12, 4, 1), conv_bn(4, 8, 3))
        self.five = nn.Sequential(conv_bn(12, 4, 1), conv_bn(4, 6, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(12, 4, 1))
        self.head = head(24)

    def forward(self, x):
        x = self.stem(x)
        return self.head(
            F.relu(torch.cat([branch(x) for branch in (self.one, self.three, self.five, self.pool)], 1))
        )


class Shared(nn.Module):
    """One block used twice at different sizes: the same biases enter the logit twice."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = head(8)

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.head(self.block(F.max_pool2d(x, 2)))


class Auxiliary(nn.Module):
    """A second head that only training uses, and a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = conv_bn(3, 8, stride=2), conv_bn(8, 16, stride=2)
        self.auxiliary, self.head = head(8), head(16)
        self.forgotten = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = self.stem(x)
        out = self.head(self.body(x))
        return (out, self.auxiliary(x)) if self.training else out


class Gated(nn.Module):
    """Squeeze and excitation: a product of activations, of which FullGrad is not the decomposition."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.head = head(8)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x * self.gate(x))


class Functional(nn.Module):
    """An activation that no look at the modules can find."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8, stride=2), nn.Conv2d(8, 16, 3), head(16)

    def forward(self, x):
        return self.head(F.silu(self.body(self.stem(x))))


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 8 * 6, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 10),
    )  # fmt: skip


def bottleneck():
    return nn.Sequential(conv_bn(3, 16, 7, 2), Bottleneck(16, 8, 1), Bottleneck(32, 16, 2), head(64))


def depthwise(activation=nn.ReLU):
    return nn.Sequential(
        conv_bn(3, 8, stride=2, activation=activation(inplace=True)),
        conv_bn(8, 8, groups=8, activation=activation(inplace=True)), conv_bn(8, 16, 1, activation=activation()),
        conv_bn(16, 16, stride=2, groups=16, activation=activation()), conv_bn(16, 24, 1, activation=activation()),
        head(24),
    )  # fmt: skip


def frozen():
    net = nn.Sequential(conv_bn(3, 8, stride=2), conv_bn(8, 16, stride=2), head(16))
    net[:2].requires_grad_(False)
    return net


def grayscale():
    return nn.Sequential(conv_bn(1, 8, 5, 2), nn.AvgPool2d(2), conv_bn(8, 12), head(12))


def pixel():
    """Down to maps of 1×1 through a single channel, with BatchNorms of every kind."""
    return nn.Sequential(
        nn.Conv2d(3, 1, 3, 2, 1), nn.BatchNorm2d(1, eps=1e-3), nn.PReLU(),
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8, affine=False), nn.LeakyReLU(0.1),
        nn.AdaptiveMaxPool2d(1), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10, bias=False),
    )  # fmt: skip


def activated(activation):
    return nn.Sequential(
        conv_bn(3, 8, stride=2, activation=activation), nn.Conv2d(8, 16, 3), activation, head(16)
    )


def normalised(norm):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm, nn.ReLU(), conv_bn(8, 16), head(16))


ZOO = {
    "ResNet18 (BasicBlock)": Net(lambda: ResNet18(num_classes=10, width=8), (3, 48, 48)),
    "ResNet (bottleneck, grouped)": Net(bottleneck, (3, 40, 40)),
    "VGG, no BatchNorm, non-square": Net(vgg, (3, 32, 24)),
    "Inception-like branches": Net(Inception, (3, 32, 32)),
    "a block used twice": Net(Shared, (3, 32, 32)),
    "a branch unused in eval": Net(Auxiliary, (3, 32, 32)),
    "frozen backbone": Net(frozen, (3, 32, 32)),
    "depthwise convolutions": Net(depthwise, (3, 32, 32)),
    "grayscale, non-square": Net(grayscale, (1, 28, 20)),
    "1×1 maps, one channel": Net(pixel, (3, 16, 16)),
    "SiLU": Net(lambda: activated(nn.SiLU()), (3, 32, 32), exact=False),
    "GELU": Net(lambda: activated(nn.GELU()), (3, 32, 32), exact=False),
    "ReLU6": Net(lambda: depthwise(nn.ReLU6), (3, 32, 32), exact=False),
    "GroupNorm": Net(lambda: normalised(nn.GroupNorm(2, 8)), (3, 32, 32), exact=False),
    "LayerNorm": Net(lambda: normalised(nn.LayerNorm([8, 16, 16])), (3, 32, 32), exact=False),
    "sigmoid gate": Net(Gated, (3, 32, 32), exact=False),
    "functional SiLU": Net(Functional, (3, 32, 32), exact=False),
}


def randomize_bnorm(model, generator):
    """Statistics and parameters that training could have left, with channels of tiny and of no variance.

    Where the variance is tiny, so is the weight: as in trained networks, the channel's output stays in range.
    """
    for module in model.modules():
        if not isinstance(module, BATCH_NORM):
            continue

        def uniform(low, high, like=module.running_var):
            return torch.rand(like.shape, generator=generator) * (high - low) + low

        module.running_mean.copy_(uniform(-0.5, 0.5))
        module.running_var.copy_(uniform(0.5, 2.0))
        near_dead = torch.zeros_like(module.running_var, dtype=torch.bool)
        if module.affine and len(near_dead) >= 4:
            near_dead[1::4] = True
            module.running_var[near_dead] = 1e-6
            module.running_var[1] = 0.0
        if module.affine:
            with torch.no_grad():
                module.weight.copy_(uniform(0.5, 1.5) * torch.where(near_dead, module.eps**0.5, 1.0))
                module.bias.copy_(uniform(-0.5, 0.5))
    return model


def build(name, seed=0, samples=2):
    """The network of that name in eval mode, and images (N, C, H, W) float32 for it."""
    net = ZOO[name]
    torch.manual_seed(seed)
    model = net.build()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
    randomize_bnorm(model, torch.Generator().manual_seed(seed))
    return model.eval(), 2 * torch.randn(samples, *net.shape)


@dataclass(frozen=True)
class Terms:
    """The full gradient's parts: logits (N, K), image and its gradient, module[#call] -> (bias (C,), gradient)."""

    logits: Tensor
    target: Tensor
    image: Tensor
    image_gradient: Tensor
    modules: dict[str, tuple[Tensor, Tensor]]


def autograd_terms(model, image, target=None, dtype=torch.float64):
    """Every term by autograd, in float64, independently of the recorder.

    The gradient is that of a zero added to a module's output, and a bias is what the module answers to zeros.
    """
    model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    image = image.detach().to(dtype).requires_grad_()
    calls = {}

    def probe(module, name):
        def hook(_, inputs, output):
            zero = torch.zeros_like(output, requires_grad=True)
            answer = type(module).forward(module, torch.zeros_like(inputs[0][:1]))
            bias = answer.detach().flatten(2)[0, :, 0] if answer.ndim > 2 else answer.detach()[0]
            calls.setdefault(name, []).append((bias, zero))
            return output + zero

        return module.register_forward_hook(hook)

    biased = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, BATCH_NORM) or (isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None)
    ]
    handles = [probe(module, name) for name, module in biased]
    logits = model(image)
    target = logits.argmax(1) if target is None else target
    probes = [zero for uses in calls.values() for _, zero in uses]
    gradients = iter(torch.autograd.grad(logits.gather(1, target[:, None]).sum(), [image, *probes]))
    image_gradient = next(gradients)
    modules = {}
    for name, uses in calls.items():
        for i, (bias, _) in enumerate(uses):
            modules[f"{name}#{i}" if len(uses) > 1 else name] = (bias, next(gradients))
    for handle in handles:
        handle.remove()
    return Terms(logits.detach(), target, image.detach(), image_gradient, modules)
