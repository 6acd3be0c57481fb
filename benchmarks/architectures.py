"""Completeness errors of 46 architectures of torchvision and timm, and of 20 drawn ones; writes docs/architectures.md.

    pip install --no-deps --target /tmp/zoo timm==1.0.31 torchvision safetensors huggingface_hub pyyaml
    make bench MODULE=architectures ARGS=/tmp/zoo

Takes about 15 minutes on one core, and 16 GB of memory.
"""

import argparse
import importlib
import multiprocessing
import random
import site
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import ROOT
from complete_gradients import complete_gradients
from demo import signs
from gradient_rules import UnexplainableError

SEED = 20261126
"""Draws the 20."""

TORCHVISION: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50": {},
    "resnet101": {},
    "resnext50_32x4d": {},
    "wide_resnet50_2": {},
    "vgg16": {},
    "vgg16_bn": {},
    "alexnet": {},
    "densenet121": {},
    "squeezenet1_1": {},
    "shufflenet_v2_x1_0": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "mobilenet_v3_large": {},
    "mnasnet1_0": {},
    "efficientnet_b0": {},
    "efficientnet_v2_s": {},
    "regnet_y_400mf": {},
    "regnet_x_400mf": {},
    "convnext_tiny": {},
    "swin_t": {},
    "swin_v2_t": {},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "vit_b_16": {"image_size": 128},
    "maxvit_t": {"input_size": [224, 224]},
}
TIMM = (
    "repvgg_a0",
    "resnetv2_50",
    "hrnet_w18_small",
    "dla34",
    "ghostnet_100",
    "nfnet_f0",
    "vovnet39a",
    "mixer_s32_224",
    "deit_tiny_patch16_224",
    "resnest14d",
    "levit_128s",
    "seresnet18",
    "tf_efficientnet_lite0",
    "darknet53",
    "xception41",
    "edgenext_small",
    "convnextv2_atto",
    "coatnet_nano_rw_224",
    "mobilenetv4_conv_small",
    "fastvit_t8",
)
FIXED_SIZE = {"maxvit_t", "mixer_s32_224", "deit_tiny_patch16_224", "levit_128s"} | {
    "coatnet_nano_rw_224",
    "nfnet_f0",
    "fastvit_t8",
}
# Modules of timm that hold the families of torchvision's networks above, or a mixture of families.
SEEN = {"vgg", "densenet", "inception_v3", "mobilenetv3", "efficientnet", "regnet", "convnext", "resnet"} | {
    "swin_transformer",
    "swin_transformer_v2",
    "vision_transformer",
    "maxxvit",
    "byobnet",
}

PAGE = """# Architectures

The terms of these networks add up to the logit, as [completeness.md](completeness.md) explains. The
networks have random weights. Their BatchNorms are calibrated on drawn signs and then disturbed, and
their biases are random. One drawn sign is explained, for its predicted class.

| network | px | error / logit | error / Σ\\|terms\\| | verdict | held places |
|---|---:|---:|---:|---|---:|
{rows}

## Drawn architectures

{seed} is the seed of the draw: 20 of the {families} other families of timm, and a network of each.
None was replaced.

| network | px | error / logit | error / Σ\\|terms\\| | verdict | held places |
|---|---:|---:|---:|---|---:|
{drawn}

Written by `make bench MODULE=architectures`, with torch {torch}, torchvision {torchvision} and
timm {timm}.
"""


@dataclass(frozen=True)
class Architecture:
    """A network of torchvision or timm; ``size`` is None for the size of its configuration."""

    library: str
    name: str
    size: int | None

    def build(self) -> nn.Module:
        """Return the network with random weights."""
        torch.manual_seed(0)
        if self.library == "timm":
            made: nn.Module = importlib.import_module("timm").create_model(self.name, pretrained=False)
        else:
            models = importlib.import_module("torchvision.models")
            made = models.get_model(self.name, weights=None, **TORCHVISION[self.name])
        return made.eval()


def import_libraries(folder: Path) -> tuple[Any, Any]:
    """Return torchvision and timm of ``folder``, or of the environment."""
    site.addsitedir(str(folder))
    try:
        torchvision = importlib.import_module("torchvision")
    except RuntimeError:
        # Torchvision for another build of torch loads without its compiled operators, of which a classifier needs
        # none, but names these two.
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        torchvision = importlib.import_module("torchvision")
    return torchvision, importlib.import_module("timm")


def known() -> list[Architecture]:
    """Return the 46."""
    return [
        Architecture(library, name, 224 if name in FIXED_SIZE else 128)
        for library, names in (("torchvision", TORCHVISION), ("timm", TIMM))
        for name in names
    ]


def drawn(timm: Any) -> tuple[int, list[Architecture]]:
    """Return the number of other families of timm, and one network of 20 of them."""
    models = {family: sorted(timm.list_models(module=family)) for family in timm.list_modules()}
    seen = SEEN | {family for family, names in models.items() if set(TIMM) & set(names)}
    families = sorted(family for family, names in models.items() if names and family not in seen)
    draw = random.Random(SEED)
    chosen = draw.sample(families, 20)
    return len(families), [Architecture("timm", draw.choice(models[family]), None) for family in chosen]


@torch.no_grad()
def disturb(network: nn.Module, images: Tensor) -> None:
    """Give a new network random biases and the statistics of ``images``."""
    g = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=g)

    for module in network.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and module.bias is not None:
            module.bias.add_(0.1 * noise(module.bias))
        if isinstance(module, nn.Linear) and not module.weight.any():  # torchvision's head of a ViT is zero
            module.weight.copy_(0.05 * noise(module.weight))
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and module.weight is not None:
            module.weight.mul_(0.5 + torch.rand(module.weight.shape, generator=g))
            if module.bias is not None:
                module.bias.add_(0.2 * noise(module.bias))
    calibrate(network, images, noise)


def calibrate(network: nn.Module, images: Tensor, noise: Callable[[Tensor], Tensor]) -> None:
    """Give BatchNorms random parameters and the statistics of ``images``, disturbed."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        if module.weight is not None:
            module.weight.copy_(1 + 0.3 * noise(module.weight).tanh())
            module.bias.copy_(0.2 * noise(module.bias))
        module.reset_running_stats()
        module.momentum = None
        module.train()
    if norms:
        network(images)
    for module in norms:
        module.eval()
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean.add_(0.2 * module.running_var.sqrt() * noise(module.running_mean))
            module.running_var.mul_(torch.exp(0.3 * noise(module.running_var)))


def row(architecture: Architecture, folder: Path) -> str:
    """Return the row of the page, with the errors and the verdict, or the reason of a refusal."""
    import_libraries(folder)
    torch.set_num_threads(1)
    name = architecture.name if architecture.library == "torchvision" else f"timm {architecture.name}"
    network = architecture.build()
    size = architecture.size or getattr(network, "default_cfg", {}).get("input_size", (3, 224, 224))[1]
    pixels = torch.from_numpy(
        np.ascontiguousarray(signs.dataset(8 if size <= 256 else 2, seed=0, size=size)[0])
    )
    images = (pixels.permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    disturb(network, images)
    try:
        (found,) = complete_gradients(network, images[:1])
    except UnexplainableError as error:
        return f"| {name} | {size} | | | refused: {' '.join(str(error).split())} | |"
    verdict = "complete" if found.complete else "incomplete"
    if found.unaccounted:
        verdict += f": {'; '.join(found.unaccounted)}"
    of_logit = found.residual / max(abs(float(found.logits[found.target])), 1e-300)
    held = sum(found.held.values())
    return f"| {name} | {size} | {of_logit:.1e} | {found.residual / found.sum_abs:.1e} | {verdict} | {held} |"


def rows(architectures: list[Architecture], folder: Path) -> Iterator[str]:
    """Yield and print the rows, each from a process of its own, which returns its memory."""
    for architecture in architectures:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(row, architecture, folder).result()
        print(found, flush=True)
        yield found


def main() -> None:
    """Write docs/architectures.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with timm and torchvision")
    folder = parser.parse_args().folder
    torchvision, timm = import_libraries(folder)
    families, others = drawn(timm)
    print(f"Seed {SEED}: {', '.join(architecture.name for architecture in others)}", flush=True)
    page = PAGE.format(
        rows="\n".join(rows(known(), folder)),
        drawn="\n".join(rows(others, folder)),
        seed=SEED,
        families=families,
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        timm=timm.__version__,
    )
    (ROOT / "docs" / "architectures.md").write_text(page)


if __name__ == "__main__":
    main()
