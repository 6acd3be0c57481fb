"""Adversarial images: small changes of the pixels that give an image another predicted class."""

from collections.abc import Iterator, Mapping
from typing import Any

import foolbox
import numpy as np
import torch
from foolbox.models.pytorch import PyTorchModel
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Budget = tuple[float, int]

# (epsilon, steps): the attack tries the next budget only if the one before reaches too few images.
BUDGETS: tuple[Budget, ...] = ((8 / 255, 40), (12 / 255, 80), (16 / 255, 160))


def targeted_pgd(
    model: torch.nn.Module,
    preprocessing: Mapping[str, Any],
    images: Images,
    target: int,
    budget: Budget = BUDGETS[0],
    *,
    batch: int = 64,
    seed: int = 0,
) -> Iterator[Images]:
    """Attack images by targeted projected gradient descent in the L∞ ball, with Foolbox.

    Method: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks".

    Args:
        model: returns (N, K) logits for normalised images; in eval mode.
        preprocessing: ``mean`` and ``std`` by channel, with which the model's images are normalised.
        images: (N, H, W, 3) uint8, in the model's size.
        target: the class that the attack aims at.
        budget: the largest change of a value, of 0..1, and the number of steps.
        seed: of the random start; another seed gives other adversarial images of the same image.

    Yields:
        (N', H, W, 3) uint8, one batch at a time, rounded to 8 bits as a saved image is.
    """
    torch.manual_seed(seed)
    epsilon, steps = budget
    attacked = PyTorchModel(
        model,
        bounds=(0, 1),
        device="cpu",
        preprocessing={"mean": preprocessing["mean"], "std": preprocessing["std"], "axis": -3},
    )
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=2.5 * epsilon / steps)
    for start in range(0, len(images), batch):
        clean = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
        goal = foolbox.criteria.TargetedMisclassification(torch.full((len(clean),), target))
        _, adversarial, _ = attack(attacked, clean, goal, epsilons=epsilon)
        yield (adversarial * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def predict(
    model: torch.nn.Module, preprocessing: Mapping[str, Any], images: Images, batch: int = 128
) -> NDArray[np.float32]:
    """Return class probabilities (N, K) of images (N, H, W, 3), computed without the endpoint."""
    mean, std = (torch.tensor(preprocessing[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    found = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            x = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
            found.append(model((x - mean) / std).softmax(1).numpy())
    return np.concatenate(found)
