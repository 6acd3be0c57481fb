"""Run a network beside the owner's threads, without a change of what they use: its modules and the random state.

A flag, an attribute or a random number of a repeated pass must not reach a live request that is answered meanwhile.
Not isolated: hooks of the owner, which run in the repeated pass too, and random numbers of numpy and of Python.

Needs torch 2.1 or later and the standard library; runs on Python 3.8 or later.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict, deque
from typing import Any

import torch
from torch import Tensor, nn

from gradient_rules import UnexplainableError, tensors_in

_REGISTERED = ("_parameters", "_buffers", "_modules")
_DEPTH = 3  # of containers in an attribute
_IN_PLACE = {"rand_like": "uniform_", "randn_like": "normal_"}  # older torch gives them no generator
_SWITCHES = ("train", "dropout_p", "dropout")  # arguments that, at zero, make an operator draw nothing


def light_copy(model: nn.Module) -> nn.Module:
    """Return a network of new modules on the memory of the same parameters and buffers.

    No parameter of the copy requires a gradient. An attribute that is set on a module of the copy does not change the
    original. A module whose class has ``__del__`` is not copied, because its end would release what the original uses.
    """
    copies: dict[int, Any] = {}
    copied: nn.Module = _copied(model, copies)
    for made in copies.values():
        if isinstance(made, nn.Module) and not isinstance(made, torch.jit.ScriptModule):
            space = vars(made)
            for name in [name for name in space if name not in _REGISTERED]:
                space[name] = _redirected(space[name], copies, _DEPTH)
    return copied


def _copied(module: Any, copies: dict[int, Any]) -> Any:
    """Return the copy of a module, which each module has once."""
    if module is None or hasattr(type(module), "__del__"):
        return module
    if id(module) not in copies:
        if isinstance(module, torch.jit.ScriptModule):
            copies[id(module)] = _copied_script(module)
        else:
            copies[id(module)] = made = object.__new__(type(module))
            space = dict(vars(module))
            for name in ("_parameters", "_buffers"):
                space[name] = copy.copy(space[name])
                space[name].update({key: _detached(t, copies) for key, t in space[name].items()})
            space["_modules"] = copy.copy(space["_modules"])
            space["_modules"].update({key: _copied(m, copies) for key, m in space["_modules"].items()})
            if space.get("_compiled_call_impl") is not None:  # of nn.Module.compile, bound to the original
                space["_compiled_call_impl"] = None
            vars(made).update(space)
    return copies[id(module)]


def _detached(tensor: Tensor | None, copies: dict[int, Any]) -> Tensor | None:
    if tensor is None or not tensor.requires_grad:
        return tensor
    if id(tensor) not in copies:  # tied parameters stay tied
        detached = tensor.detach()
        is_plain = type(tensor) is nn.Parameter
        copies[id(tensor)] = nn.Parameter(detached, requires_grad=False) if is_plain else detached
    found: Tensor = copies[id(tensor)]
    return found


def _copied_script(module: torch.jit.ScriptModule) -> Any:
    def copied(part: Any) -> Any:
        made = copy.copy(part)
        for name, child in torch._C.ModuleDict(part).items():
            made.setattr(name, copied(child))
        for name, parameter in torch._C.ParameterDict(part).items():  # type: ignore[attr-defined]
            made.setattr(name, parameter.detach())
        return made

    original = getattr(module, "_c", None)
    if original is None:
        return module
    return torch.jit._recursive.wrap_cpp_module(copied(original))  # type: ignore[no-untyped-call]


def _redirected(value: Any, copies: dict[int, Any], depth: int) -> Any:
    """Return an attribute that refers to the copied modules, with containers that the pass may change."""
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in copies:
        return types.MethodType(value.__func__, copies[id(value.__self__)])
    if depth == 0:
        return value
    if isinstance(value, functools.partial):
        args = [_redirected(part, copies, depth - 1) for part in value.args]
        keywords = {key: _redirected(part, copies, depth - 1) for key, part in value.keywords.items()}
        return functools.partial(value.func, *args, **keywords)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _redirected(part, copies, depth - 1)) for key, part in value.items())
    if type(value) in (list, tuple):
        return type(value)(_redirected(part, copies, depth - 1) for part in value)
    return value.copy() if type(value) in (set, deque) else value


class PrivateRandom:
    """Calls operators of random numbers with generators of its own.

    The generators of the process and of the owner do not change. The numbers are the same for each object.

    Attributes:
        drawn: operators that drew numbers.
    """

    def __init__(self) -> None:
        self.drawn: set[str] = set()
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the output of an operator that may draw random numbers.

        Raises:
            UnexplainableError: the operator draws from the generator of the process, and has no argument to change it.
        """
        values = {
            argument.name: args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            for i, argument in enumerate(func._schema.arguments)
        }
        if any(name in values and not values[name] for name in _SWITCHES):
            return func(*args, **kwargs)
        self.drawn.add(func.overloadpacket.__name__.strip("_"))
        tensors = list(tensors_in(args))
        device = torch.device(kwargs.get("device") or (tensors[0].device if tensors else "cpu"))
        packet = func.overloadpacket
        with_generator = func if "generator" in values else _with_generator(packet, [*values])
        if with_generator is not None:
            return with_generator(*args, **{**kwargs, "generator": self._generator(device)})
        if packet.__name__ in _IN_PLACE:
            made = torch.ops.aten.empty_like.default(*args, **kwargs)
            return getattr(made, _IN_PLACE[packet.__name__])(generator=self._generator(device))
        raise UnexplainableError(
            f"{packet.__name__}: expected an operator that takes a generator, got one that draws random numbers from "
            "the generator of the process. Live requests draw from it too; serve the network without randomness."
        )

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(0)
        return self._generators[device]


@functools.lru_cache(maxsize=256)
def _overloads(packet: Any) -> list[tuple[Any, list[str]]]:
    found = [getattr(packet, name) for name in packet.overloads()]
    return [(overload, [argument.name for argument in overload._schema.arguments]) for overload in found]


def _with_generator(packet: Any, names: list[str]) -> Any:
    """Return the overload with the same arguments and a generator, or None."""
    for overload, found in _overloads(packet):
        if "generator" in found and [name for name in found if name != "generator"] == names:
            return overload
    return None
