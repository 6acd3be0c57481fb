"""Pixel flipping: does the class depend on the pixels that a heat map marks?

Samek et al. 2017 (arXiv:1509.06321), Petsiuk et al. 2018 (arXiv:1806.07421), Adebayo et al. 2018 (arXiv:1810.03292).
Cells of 4×4 pixels are blurred, a tenth more at each step: the most relevant first (MoRF) and the least relevant first
(LeRF). An area is the mean of the class's probability over the steps. The areas' difference is the measure: 0 for a
random map, higher for a better map. The insertion area of a blurred image is the LeRF area: both are the same images.

    make bench MODULE=pixel_flipping ARGS="--weights FOLDER"
"""

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.attribution_maps import OURS, RANDOM, Map, maps_of, peers
from benchmarks.side_by_side import show
from benchmarks.small_networks import FAMILIES, SIZE, trained
from train import Samples, class_folders, drawn, normalised, read_folder

CELL = 4
STEPS = 10
SIGMA = SIZE / 12
"""Standard deviation of the blur in pixels."""

SIGNS = "signs"
TRAINING_IMAGES = 8_600
FINE_TUNING = 0.15
"""Effort of the training on other images than drawn signs."""
HELD_OUT = 1_000_000
"""Seed of the drawn images that no network is trained on."""

Order = npt.NDArray[np.int64]


class Areas(NamedTuple):
    """Mean probabilities of the class, 0 to 1.

    Attributes:
        morf, lerf: over the steps in which the most or the least relevant cells are blurred first.
        deletion: over the steps in which the most relevant cells become the mean colour first.
        tenth: after the best tenth of the cells is blurred.
    """

    morf: float
    lerf: float
    deletion: float
    tenth: float

    @property
    def difference(self) -> float:
        """LeRF − MoRF."""
        return self.lerf - self.morf


@dataclass(frozen=True)
class Data:
    """Images to train on and to explain.

    Attributes:
        name: of the data.
        training: returns the training images for a network's seed.
        held_out: other images, in random order.
    """

    name: str
    training: Callable[[int], Samples]
    held_out: Samples


def signs() -> Data:
    """Return drawn signs.

    The seed of a network is also that of its training images.
    """
    return Data(SIGNS, lambda seed: drawn(TRAINING_IMAGES, seed, SIZE), drawn(1_000, HELD_OUT, SIZE))


def folders(training: Path, held_out: Path) -> Data:
    """Return the images of two folders, each with a folder per class."""
    classes = class_folders(training)
    found = read_folder(held_out, SIZE, classes)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(found.images)))
    return Data(
        training.parent.name,
        lambda seed: read_folder(training, SIZE, classes),
        Samples(found.images[order], found.classes[order]),
    )


def ranked(relevance: Map) -> Order:
    """Return the cells, the most relevant first."""
    height, width = relevance.shape
    cells = relevance.reshape(height // CELL, CELL, width // CELL, CELL).mean((1, 3))
    return np.argsort(-cells.ravel(), kind="stable")


def blurred(image: Tensor) -> Tensor:
    """Return (1, C, H, W) after a Gaussian filter, which reflects the border."""
    reach = 2 * round(SIGMA)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    channels = image.shape[1]
    padded = nn.functional.pad(image, (reach,) * 4, mode="reflect")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = weights.reshape(shape).repeat(channels, 1, 1, 1)
        padded = nn.functional.conv2d(padded, kernel, groups=channels)
    return padded


@torch.no_grad()
def areas(network: nn.Module, image: Tensor, target: int, orders: Sequence[Order]) -> list[Areas]:
    """Flip the cells of one image in several orders.

    Args:
        network: in eval mode.
        image: (1, C, H, W) float32, normalised; sides are multiples of the cell.
        target: class.
        orders: of all cells, the most relevant first.
    """
    smooth, mean = blurred(image), torch.zeros_like(image)
    masks = [_flipped(order, image.shape[-1]) for order in orders]
    images = torch.cat(
        [
            torch.where(mask, other, image)
            for first, last in masks
            for mask, other in ((first, smooth), (last, smooth), (first, mean))
        ]
    )
    curves = torch.cat([network(part).softmax(1)[:, target] for part in torch.split(images, 256)])
    curves = curves.reshape(len(orders), 3, STEPS + 1)
    tenths = curves[:, 0, 1].tolist()
    return [
        Areas(morf, lerf, deletion, tenth)
        for (morf, lerf, deletion), tenth in zip(curves.mean(2).tolist(), tenths, strict=True)
    ]


def _flipped(order: Order, side: int) -> tuple[Tensor, Tensor]:
    """Return (STEPS + 1, 1, side, side), the flipped pixels at each step from either end of the order."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    counts = np.round(np.linspace(0, len(order), STEPS + 1)).astype(int)[:, None]
    masks = []
    for flipped in (places < counts, places >= len(order) - counts):
        cells = flipped.reshape(STEPS + 1, 1, side // CELL, side // CELL)
        masks.append(torch.from_numpy(cells.repeat(CELL, 2).repeat(CELL, 3)))
    return masks[0], masks[1]


def interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of paired differences and the bounds of its 95 % bootstrap interval.

    Resamples the images: one difference is that of one image.
    """
    values = np.asarray(differences)
    chosen = np.random.default_rng(seed).integers(len(values), size=(2_000, len(values)))
    low, high = np.percentile(values[chosen].mean(1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def randomised(network: nn.Module, seed: int, *, head_only: bool) -> nn.Module:
    """Return a copy with permuted parameters, each permuted within itself.

    Args:
        network: unchanged.
        seed: of the permutations.
        head_only: permute the last layer, not all layers.
    """
    copied, random = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    parameters = list(copied.parameters())
    with torch.no_grad():
        for parameter in parameters[-2:] if head_only else parameters:
            order = torch.randperm(parameter.numel(), generator=random)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return copied


def attacked(
    network: nn.Module, image: Tensor, target: int, reach: float = 8 / 255, steps: int = 10
) -> Tensor:
    """Return an image that the network should misclassify.

    The attack is projected gradient ascent (Madry et al. 2018, arXiv:1706.06083).

    Args:
        network: in eval mode.
        image: (1, 3, H, W) in 0 to 1.
        target: class to leave.
        reach: largest change of a value.
        steps: of a quarter of the reach.
    """
    changed = image.clone()
    for _ in range(steps):
        changed.requires_grad_()
        loss = nn.functional.cross_entropy(network(normalised(changed)), torch.tensor([target]))
        (gradient,) = torch.autograd.grad(loss, changed)
        step = changed.detach() + reach / 4 * gradient.sign()
        changed = (image + (step - image).clamp(-reach, reach)).clamp(0, 1)
    return changed.detach()


def inputs(
    network: nn.Module, held_out: Samples, count: int, *, adversarial: bool
) -> list[tuple[Tensor, int]]:
    """Return normalised images (1, 3, H, W) with the class to explain, the predicted one.

    Takes the first ``count`` correctly classified images; adversarial: those of a successful attack.

    Raises:
        ValueError: there are none.
    """
    chosen = []
    for pixels, class_id in zip(held_out.images, held_out.classes.tolist(), strict=True):
        image = pixels[None] / 255
        with torch.no_grad():
            predicted = int(network(normalised(image)).argmax())
        if predicted != class_id:
            continue
        if adversarial:
            image = attacked(network, image, class_id)
            with torch.no_grad():
                predicted = int(network(normalised(image)).argmax())
            if predicted == class_id:
                continue
        chosen.append((normalised(image), predicted))
        if len(chosen) == count:
            break
    if not chosen:
        what = "misclassified after an attack" if adversarial else "correctly classified"
        raise ValueError(
            f"held-out images: expected some that are {what}, got none of {len(held_out.images)}"
        )
    return chosen


def flipping_rows(
    networks: Mapping[int, nn.Module],
    family: str,
    held_out: Samples,
    count: int,
    *,
    adversarial: bool,
    variants: bool,
) -> list[dict[str, Any]]:
    """Return a row per map of one family, over the images of all seeds."""
    found: dict[str, list[Areas]] = {}
    for network in networks.values():
        for number, (image, target) in enumerate(inputs(network, held_out, count, adversarial=adversarial)):
            maps = maps_of(network, family, image, target, number, variants)
            measured = areas(network, image, target, [ranked(m) for m in maps.values()])
            for name, area in zip(maps, measured, strict=True):
                found.setdefault(name, []).append(area)
    ours = found.get(OURS, [])
    rows = []
    for name, measured in found.items():
        gain = interval([a.difference - b.difference for a, b in zip(measured, ours, strict=True)])
        mean = Areas(*np.mean(measured, 0))
        rows.append(
            {
                "family": family,
                "images": f"{len(measured)} {'adversarial' if adversarial else 'clean'}",
                "map": name,
                "MoRF": mean.morf,
                "LeRF": mean.lerf,
                "LeRF − MoRF": mean.difference,
                "difference to ours": "–" if name == OURS else "{:+.3f} ({:+.3f} to {:+.3f})".format(*gain),
                "deletion": mean.deletion,
                "best tenth": mean.tenth,
            }
        )
    return rows


def randomisation_rows(
    network: nn.Module, family: str, held_out: Samples, count: int
) -> list[dict[str, Any]]:
    """Measure the rank correlation of maps with those of networks with permuted parameters."""
    others = {
        what: randomised(network, 0, head_only=what == "last layer") for what in ("last layer", "all layers")
    }
    correlations: dict[str, dict[str, list[float]]] = {}
    for number, (image, target) in enumerate(inputs(network, held_out, count, adversarial=False)):
        maps = maps_of(network, family, image, target, number, variants=False)
        for what, other in others.items():
            for name, changed in maps_of(other, family, image, target, number, variants=False).items():
                if name != RANDOM:
                    correlation = _rank_correlation(maps[name], changed)
                    correlations.setdefault(name, {}).setdefault(what, []).append(correlation)
    return [
        {"family": family, "map": name}
        | {f"{what} permuted": "{:.2f} ({:.2f} to {:.2f})".format(*interval(c)) for what, c in found.items()}
        for name, found in correlations.items()
    ]


def _rank_correlation(a: Map, b: Map) -> float:
    """Return Spearman's correlation of two maps; 0 if one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def networks_of(
    data: Data, family: str, seeds: Sequence[int], weights: Path | None, effort: float = 1.0
) -> dict[int, nn.Module]:
    """Return trained networks by seed.

    Networks for images of a folder start from those for drawn signs, so both must have the same classes.
    """
    start = {} if data.name == SIGNS else networks_of(signs(), family, seeds, weights)
    return {
        seed: trained(
            family,
            seed,
            lambda seed=seed: data.training(seed),  # type: ignore[misc]
            weights and weights / f"{data.name}-{family}-{seed}.pt",
            effort if data.name == SIGNS else FINE_TUNING,
            start.get(seed),
        )
        for seed in seeds
    }


def run() -> list[dict[str, Any]]:
    """Measure 20 drawn signs per family, with networks of a fifth of the training."""
    torch.set_num_threads(1)
    data = signs()
    return [
        row
        for family in FAMILIES
        for row in flipping_rows(
            networks_of(data, family, [0], None, effort=0.2),
            family,
            data.held_out,
            20,
            adversarial=False,
            variants=True,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pixel_flipping", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="folder of trained weights; missing ones are added"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with train/ and test/, of the same classes as the drawn signs (default: drawn signs)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--images", type=int, default=100, help="per seed (default: 100)")
    parser.add_argument("--adversarial", action="store_true", help="explain attacked images")
    parser.add_argument("--variants", action="store_true", help="also add our terms in other ways")
    parser.add_argument(
        "--randomise", action="store_true", help="compare with maps of permuted networks instead"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for line in peers():
        print(line)
    data = folders(options.data / "train", options.data / "test") if options.data else signs()
    for family in options.families:
        networks = networks_of(data, family, options.seeds, options.weights)
        if options.randomise:
            rows = randomisation_rows(networks[options.seeds[0]], family, data.held_out, options.images)
        else:
            rows = flipping_rows(
                networks,
                family,
                data.held_out,
                options.images,
                adversarial=options.adversarial,
                variants=options.variants,
            )
        show(f"{data.name}, seeds {options.seeds}", rows)


if __name__ == "__main__":
    main()
