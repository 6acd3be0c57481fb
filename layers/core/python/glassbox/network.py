"""Build a network from a class and a checkpoint that were not written for Glassbox."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glassbox.errors import BadInputError

# Keys under which training loops store the state dict beside the optimizer's: PyTorch's tutorials, Lightning, timm.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module")


def read_checkpoint(weights: Path) -> object:
    """Read what ``torch.save`` wrote, with tensors alone.

    Raises:
        BadInputError: another file; names its kind.
    """
    try:
        return torch.load(weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInputError(f"{weights}: {error.strerror}") from error
    except Exception as error:
        # For other files torch.load raises any error of its parsers.
        found = _file_kind(weights) or f"{type(error).__name__}: {one_line(error)[:200]}"
        raise BadInputError(
            f"{weights}: expected a state dict of tensors alone, as torch.save(network.state_dict(), …) writes it, "
            f"got {found}"
        ) from error


def _file_kind(path: Path) -> str | None:
    """Return how a file that is not a state dict was saved, if its first bytes show it."""
    with path.open("rb") as file:
        head = file.read(16)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return "a TorchScript archive. Save torch.jit.load(…).state_dict() instead."
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "a safetensors file. Save what safetensors.torch.load_file(…) returns with torch.save."
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file, such as Keras writes. Only PyTorch's weights can be read."
    return None


def build_network(architecture: str, arguments: Mapping[str, Any], checkpoint: object = None) -> nn.Module:
    """Return the network of ``module:Class`` with the weights of a checkpoint, in eval mode.

    Args:
        architecture: ``Class`` may be a function; the module is imported by its name.
        arguments: of ``Class``.
        checkpoint: see :func:`state_dict_in`; by default the network keeps the weights that ``Class`` gives it.

    Raises:
        BadInputError: it is not a network, or the weights are not its own.
    """
    module, _, name = architecture.partition(":")
    try:
        network = getattr(importlib.import_module(module), name)(**arguments)
    except Exception as error:
        # The model's own code runs here, and may raise anything.
        raise BadInputError(
            f"{architecture}: expected a network of the module {module}, in code/ or installed, with the arguments "
            f"{arguments}, got {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise BadInputError(f"{architecture}: expected a torch.nn.Module, got a {type(network).__name__}")
    if checkpoint is None:
        return network.eval()
    expected = network.state_dict().keys()
    state_dict = without_prefix(state_dict_in(checkpoint), lambda keys: bool(keys & expected))
    try:
        network.load_state_dict(state_dict)
    except Exception as error:
        # A network may override load_state_dict, so anything may be raised here too.
        raise BadInputError(
            f"{architecture}: expected its own weights, got others: {one_line(error)}"
        ) from error
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
            f"state dict: expected dense CPU tensors by name, got something else under {first_five(foreign)}"
        )
    broken = [key for key, value in state_dict.items() if value.is_floating_point() and not _finite(value)]
    if broken:
        raise BadInputError(
            f"state dict: expected finite weights, got NaN or infinity in {first_five(broken)}"
        )
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


def _loads(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and not (value.is_quantized or value.is_nested or value.is_meta or value.is_complex())
        and value.layout == torch.strided
    )


def _finite(value: Tensor) -> bool:
    # float8 does not implement isfinite.
    return bool(value.float().isfinite().all())


def one_line(error: Exception) -> str:
    """Return the error's text on one line, without control characters, shortened."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def first_five(items: Iterable[object], separator: str = ", ") -> str:
    """List the first five.

    Keys come from a file, so control characters are escaped and long ones cut.
    """
    listed = [item if isinstance(item, str) and item.isprintable() else ascii(item) for item in items]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return separator.join(item[:200] for item in listed[:5]) + more
