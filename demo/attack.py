"""Adversarial images: nearly the same picture, another class."""

import foolbox
import numpy as np
import torch

# (epsilon, steps): each budget is tried only where the one before reaches too few pictures; the last is the bound.
BUDGETS = ((8 / 255, 40), (12 / 255, 80), (16 / 255, 160))


def targeted_pgd(model, preprocessing, images, target, budget=BUDGETS[0], *, batch=64, seed=0):
    """Targeted projected gradient descent (Madry et al. 2018) in the L∞ ball, by Foolbox.

    Args:
        model: gives (N, K) logits for normalised images; in eval mode.
        preprocessing: the ``mean`` and ``std`` per channel that the model's images are normalised with.
        images: (N, H, W, 3) uint8, of the size the model sees.
        target: the class to be predicted.
        budget: the most that a value may change, of 0..1, and the number of steps.
        seed: of the random start; another seed gives other adversarial images of the same picture.

    Yields:
        (N', H, W, 3) uint8, batch by batch: as a saved picture would be, so the attack survives 8 bits.
    """
    torch.manual_seed(seed)
    epsilon, steps = budget
    attacked = foolbox.PyTorchModel(
        model,
        bounds=(0, 1),
        device="cpu",
        preprocessing={"mean": preprocessing["mean"], "std": preprocessing["std"], "axis": -3},
    )
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=2.5 * epsilon / steps)
    for start in range(0, len(images), batch):
        clean = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
        wanted = foolbox.criteria.TargetedMisclassification(torch.full((len(clean),), target))
        _, adversarial, _ = attack(attacked, clean, wanted, epsilons=epsilon)
        yield (adversarial * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def predict(model, preprocessing, images, batch=128):
    """Class probabilities (N, K) float32 of (N, H, W, 3) uint8 images, without the endpoint."""
    mean, std = (torch.tensor(preprocessing[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    found = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            x = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
            found.append(model((x - mean) / std).softmax(1).numpy())
    return np.concatenate(found)
