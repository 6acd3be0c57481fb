"""Heat maps of one image: ours, other ways of adding its terms, and those of captum and pytorch-grad-cam."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.small_networks import last_feature_map
from complete_gradients import Decomposition, Term, complete_gradients
from gradients import heat_map

Map = npt.NDArray[np.float32]

OURS, RANDOM = "Glassbox", "random"


def maps_of(
    network: nn.Module, family: str, image: Tensor, target: int, seed: int, variants: bool
) -> dict[str, Map]:
    """Return a map (H, W) for each method, higher where the class depends more on the pixel.

    Args:
        network: in eval mode.
        family: of :data:`benchmarks.small_networks.FAMILIES`.
        image: (1, 3, H, W) float32, normalised.
        target: class.
        seed: of the random map.
        variants: also add our terms in the other ways of :func:`variants_of`.
    """
    (found,) = complete_gradients(network, image, [target], keep_values=variants)
    maps = {
        OURS: heat_map(found),
        RANDOM: np.random.default_rng(seed).random(image.shape[2:], np.float32),
    }
    if variants:
        maps |= variants_of(found)
    return (
        maps | dict(_of_captum(network, image, target)) | dict(_of_grad_cam(network, family, image, target))
    )


def variants_of(found: Decomposition) -> dict[str, Map]:
    """Return maps of terms that were added in other ways than ours.

    Ours takes absolute values and rescales each term to 0 to 1, then adds all terms that have places.
    """
    return {
        "input and convolutions": _rescaled(found, lambda term: term.type.startswith(("Conv", "BatchNorm"))),
        "without tokens": _rescaled(found, lambda term: not _is_of_tokens(term)),
        "without Linear": _rescaled(found, lambda term: term.type != "Linear"),
        "input only": _rescaled(found, lambda term: False),
        "absolute": _added(found, Tensor.abs),
        "signed": _added(found, lambda values: values),
        "signed, input only": _folded(found.terms[0], found, lambda values: values).numpy(),
    }


def peers() -> list[str]:
    """Return what is missing for the maps of other libraries, in words."""
    missing = []
    for library, package in (("captum", "captum"), ("pytorch-grad-cam", "pytorch_grad_cam")):
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError) as error:  # RuntimeError: of a torchvision for another torch
            missing.append(f"{library}: cannot be imported ({error}), its maps are left out")
    return missing


def _is_of_tokens(term: Term) -> bool:
    """Return whether a constant enters at tokens or channels last, not at a feature map (N, C, h, w)."""
    return term.type == "Linear" or term.type.startswith(("LayerNorm", "ChannelNorm"))


def _rescaled(found: Decomposition, is_kept: Callable[[Term], bool]) -> Map:
    terms = [term for i, term in enumerate(found.terms) if i == 0 or is_kept(term)]
    return heat_map(_Terms(terms))  # type: ignore[arg-type]


class _Terms:
    """The part of a Decomposition that its heat map is made of."""

    def __init__(self, terms: list[Term]) -> None:
        self.terms = terms


def _added(found: Decomposition, of_values: Callable[[Tensor], Tensor]) -> Map:
    """Add the terms in units of the score."""
    folded = [_folded(term, found, of_values) for term in found.terms if term.map is not None]
    return torch.stack(folded).sum(0).numpy()


def _folded(term: Term, found: Decomposition, of_values: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the sum over the channels at the size of the image, where a pixel is spread over those it covers."""
    assert term.values is not None and found.terms[0].map is not None
    folded = of_values(term.values).sum(1, keepdim=True)
    height, width = found.terms[0].map.shape
    spread = folded.shape[2] * folded.shape[3] / (height * width)
    return F.interpolate(folded, (height, width), mode="bilinear", align_corners=False)[0, 0] * spread


def _of_captum(network: nn.Module, image: Tensor, target: int) -> Iterator[tuple[str, Map]]:
    try:
        from captum.attr import InputXGradient, IntegratedGradients
    except (ImportError, RuntimeError):
        return
    methods: dict[str, Callable[[], Any]] = {
        "input × gradient": lambda: InputXGradient(network).attribute(image.clone().requires_grad_(), target),
        "Integrated Gradients": lambda: IntegratedGradients(network).attribute(
            image, target=target, n_steps=32
        ),
    }
    for name, attribute in methods.items():
        yield name, attribute().detach().abs().sum(1)[0].float().numpy()


def _of_grad_cam(network: nn.Module, family: str, image: Tensor, target: int) -> Iterator[tuple[str, Map]]:
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except (ImportError, RuntimeError):
        return
    layer = last_feature_map(family, network)
    with GradCAM(network, [layer], reshape_transform=_as_map if family == "ViT" else None) as method:
        found = method(image.clone(), [ClassifierOutputTarget(target)])
    yield "Grad-CAM", np.asarray(found[0], np.float32)


def _as_map(tokens: Tensor) -> Tensor:
    """Return tokens after the class token as (N, C, h, w)."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)
