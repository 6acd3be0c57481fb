"""Trace the answers of an endpoint whose code is not ours: note its calls of networks, and repeat them afterwards.

The owner's code runs unchanged, under its own ``no_grad``, ``inference_mode`` or autocast, and gets the output object
of its own network. A call is noted if a ``torch.nn.Module`` is called with one float tensor (N, C, H, W) and returns
class scores (N, K); modules that it calls are part of it. The thread of the recorder repeats the call with gradients.

The requests of some servers are recognised, and with them replays. Elsewhere each noted call counts as a live request
without a name.

Needs torch, numpy, boto3 and the standard library.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import served_requests
import web_requests
from complete_gradients import scores
from glassbox.replay_marker import is_marked
from gradient_rules import UnexplainableError
from recorder import REPLAY_SECONDS, TensorRecorder, connected, explained_samples, read_settings
from served_requests import Request

logger = logging.getLogger(__name__)

_ADAPTERS = {**served_requests.ADAPTERS, **web_requests.ADAPTERS}
_CALLS = 2  # of a request that are kept: more than one is refused
_DEPTH = 3  # of the search for the image: [positional, keyword] arguments, an argument, a member of it
_REASONS = 100  # that are logged, each once


def install(environment: Mapping[str, str]) -> None:
    """Note the calls of all networks of this process from now on, if ``tensors_output`` is set.

    Raises:
        SettingsError: invalid environment.
    """
    settings = read_settings(environment)
    if not settings.tensors_output:
        return
    output = settings.tensors_output
    capture = Capture(lambda: connected(settings, output, adapter=served_requests.adapted(_ADAPTERS)))
    nn.Module.__call__ = _noted(nn.Module.__call__, capture)  # type: ignore[method-assign]
    os.register_at_fork(after_in_child=capture.forget)
    atexit.register(capture.close)
    served_requests.install(capture, _ADAPTERS)


@dataclass
class Call:
    """A call of a network.

    Attributes:
        network: that was called.
        arguments: [positional, keyword] arguments.
        places: paths of the images in ``arguments``.
        images: (n, C, H, W), a copy of the first samples, as many as a step may hold.
        answer: (N, K) float32, a copy of the class scores; None if the call cannot be explained.
        reason: why not.
    """

    network: nn.Module
    arguments: list[Any]
    places: list[tuple[Any, ...]]
    images: Tensor
    answer: Tensor | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The class of the network."""
        return type(self.network).__name__

    def finish(self, output: Any) -> None:
        """Take the class scores of the output, or the reason why there are none."""
        samples = len(_at(self.arguments, self.places[0]))
        try:
            found = scores(output)
        except UnexplainableError as error:
            self.reason = f"{self.name}: {error}"
            return
        if len(self.places) > 1:
            self.reason = f"{self.name}: expected one image tensor as argument, got {len(self.places)}"
        elif found.ndim != 2 or len(found) != samples or not found.is_floating_point():
            shape = f"{found.dtype} {tuple(found.shape)}"
            self.reason = f"{self.name}: expected class scores ({samples}, K) as output, got {shape}"
        elif found.shape[1] < 2:
            self.reason = (
                f"{self.name}: expected scores of at least 2 classes, got {found.shape[1]} output unit. A regression "
                "has no class to explain"
            )
        else:
            self.answer = found.detach().float().clone()


class Capture:
    """The recorder of a process, and what passes the noted calls to it.

    Args:
        connect: returns the recorder; runs in a thread of its own at the first call, because it loads the AWS SDK.
    """

    def __init__(self, connect: Callable[[], TensorRecorder]) -> None:
        self._connect = connect
        self._logged: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Start without a recorder.

        A forked process has neither the threads nor the connections of its parent.
        """
        self._lock, self._ready = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._recorder: TensorRecorder | None = None
        self._inside = threading.local()

    def close(self) -> None:
        """Upload the waiting traces."""
        if self._recorder is not None:
            self._recorder.close()

    @property
    def is_noting(self) -> bool:
        """Whether a call is noted now.

        Neither the calls below a noted one are, nor those of the recorder's own thread.
        """
        if getattr(self._inside, "call", False) or torch._C._is_tracing():
            return False
        return self._recorder is None or not self._recorder.is_own_thread()

    def call(
        self, plain: Callable[..., Any], network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a network, note the call, and return its output."""
        call = self.guarded(lambda: _begun(network, args, kwargs))
        if call is None:
            return plain(network, *args, **kwargs)
        self._inside.call = True
        try:
            output = plain(network, *args, **kwargs)
        except Exception as error:
            recorder = self._recorder
            if recorder is not None:
                self.guarded(functools.partial(recorder.failed, error))
            raise
        finally:
            self._inside.call = False
        self.guarded(lambda: self._end(call, output))
        return output

    def answered(self, request: Request) -> None:
        """Pass an answered request to the recorder."""
        self.guarded(lambda: self._record(request))

    def guarded(self, work: Callable[[], Any]) -> Any:
        """Return the result of ``work``, or log its error, which must never fail the request."""
        try:
            return work()
        except Exception as error:
            self._log(f"{type(error).__name__}: {error}")
            return None

    def _end(self, call: Call, output: Any) -> None:
        call.finish(output)
        request = served_requests.current.get()
        if request is None:
            if call.answer is None:
                self._log(call.reason)
                return
            # The body is not visible here: the hash is of the network's input.
            body = call.images.float().cpu().contiguous().numpy().tobytes()
            self._record(Request(body, None, None, [call]))
        elif len(request.calls) < _CALLS:
            request.calls.append(call)

    def _record(self, request: Request) -> None:
        marked = is_marked(request.custom_attributes)
        recorder = self._connected(REPLAY_SECONDS if marked else 0)
        if recorder is None:
            return
        call, reason = _explainable(request.calls)
        if call is None and not marked:
            self._log(reason)
            return
        traced = recorder.wants(request.body, request.custom_attributes, request.inference_id)
        if traced is None:
            return
        if call is None or call.answer is None:
            self._log(reason)
            recorder.refuse(traced, reason, request.calls[0].name if request.calls else "")
            return
        gradients = recorder.gradients_of(_repeatable(call))
        shown, response = _input_images(call.images), request.response or b""
        recorder.record(gradients, call.images, shown, call.answer, traced, response=response)

    def _connected(self, seconds: float) -> TensorRecorder | None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trace-connect", daemon=True)
                self._thread.start()
        self._ready.wait(seconds)
        return self._recorder

    def _run(self) -> None:
        self._recorder = self.guarded(self._connect)
        self._ready.set()

    def _log(self, reason: str) -> None:
        if len(self._logged) < _REASONS and reason not in self._logged:
            self._logged.add(reason)
            logger.warning("not traced: %s", " ".join(reason.split()))


def _noted(plain: Callable[..., Any], capture: Capture) -> Callable[..., Any]:
    is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", torch._C._is_tracing)

    @functools.wraps(plain)
    def call(network: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        # The compiler must not see the capture: it would compile it, and again for each change of its state.
        if is_compiling() or not capture.is_noting:
            return plain(network, *args, **kwargs)
        return capture.call(plain, network, args, kwargs)

    return call


def _begun(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Return the call with a copy of its images, or None without an image among the arguments."""
    arguments: list[Any] = [list(args), kwargs]
    places = list(_places(arguments, _DEPTH))
    if not places:
        return None
    images = _at(arguments, places[0])
    # The network or the owner's code may write into its input.
    copied = images[: explained_samples(images)].detach().clone()
    # A network of half precision is repeated in float32.
    is_half = copied.dtype in (torch.float16, torch.bfloat16)
    return Call(network, arguments, places, copied.float() if is_half else copied)


def _places(value: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of the float tensors (N, C, H, W) in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        if value.ndim == 4 and value.is_floating_point() and value.numel():
            yield ()
        return
    if depth == 0 or not isinstance(value, (list, tuple, dict)):
        return
    for key, member in value.items() if isinstance(value, dict) else enumerate(value):
        for place in _places(member, depth - 1):
            yield (key, *place)


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _replaced(value: Any, place: tuple[Any, ...], image: Tensor) -> Any:
    """Return a copy of nested containers with ``image`` at ``place``."""
    if not place:
        return image
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = _replaced(value[key], tuple(rest), image)
    return tuple(copy) if isinstance(value, tuple) else copy


def _explainable(calls: list[Call]) -> tuple[Call | None, str]:
    """Return the call that gave the answer, or None and the reason."""
    if not calls:
        return None, (
            "request: expected a call of a torch.nn.Module with a float tensor (N, C, H, W), got none. "
            "The network runs in another framework, or in another process."
        )
    answering = [call for call in calls if call.answer is not None]
    if len(answering) == 1:
        return answering[0], ""
    if answering:
        found = ", ".join(call.name for call in answering)
        return None, f"request: expected one network that returns class scores, got several: {found}"
    return None, calls[-1].reason


class _Repeat(nn.Module):
    """A network with all its arguments but the image.

    A wrapper such as DataParallel is often left in train mode, which changes nothing if its layers are in eval mode.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.training = False  # of this module alone: the owner's network keeps its flags
        self.original_name = call.name
        self.network = _uncompiled(call.network)
        self._arguments, self._place = call.arguments, call.places[0]

    def forward(self, image: Tensor) -> Any:
        args, kwargs = _replaced(self._arguments, self._place, image)
        return self.network(*args, **kwargs)


def _repeatable(call: Call) -> nn.Module:
    """Return a network of the image alone, in eval mode unless a part of it is not."""
    args, kwargs = call.arguments
    is_alone = len(args) == 1 and not kwargs and call.places == [(0, 0)]
    network = _uncompiled(call.network)
    return network if is_alone and not network.training else _Repeat(call)


def _uncompiled(network: nn.Module) -> nn.Module:
    original = getattr(network, "_orig_mod", None)  # of torch.compile
    return original if isinstance(original, nn.Module) else network


def _input_images(images: Tensor) -> npt.NDArray[np.uint8]:
    """Return (n, H, W, 1 or 3) uint8: the network's input, each sample scaled to 0 to 255.

    The image before the owner's preparation is not visible here. Of other numbers of channels the first 3, or the
    first, are shown.
    """
    shown = images[:, : 3 if images.shape[1] >= 3 else 1].float().cpu().nan_to_num(0.0, 0.0, 0.0)
    low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
    scaled = (shown - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny) * 255
    pixels: npt.NDArray[np.uint8] = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
