"""Recognise the requests of the server software of an endpoint whose code is not ours.

An adapter replaces a method of a server when its module is imported. It passes the owner's arguments and answers on
unchanged. Its own errors go to the observer and never reach the owner.

Needs the standard library only.
"""

from __future__ import annotations

import contextvars
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from capture import Call

ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
INFERENCE_ID = "x-amzn-sagemaker-inference-id"


@dataclass
class Request:
    """A request in progress, and the calls that its answer is made of.

    Attributes:
        body: as the server received it.
        response: the body of the answer, or None where the server sends something else than one text or bytes.
    """

    body: bytes
    custom_attributes: str | None
    inference_id: str | None
    calls: list[Call] = field(default_factory=list)
    response: bytes | None = None


current: contextvars.ContextVar[Request | None] = contextvars.ContextVar("glassbox_request", default=None)


class Observer(Protocol):
    """What the adapters report to."""

    def guarded(self, work: Callable[[], Any]) -> Any:
        """Return the result of ``work``, or log its error and return None."""

    def answered(self, request: Request) -> None:
        """Take a request whose answer is complete; never raise."""


def install(observer: Observer) -> None:
    """Report the requests of every server in ``ADAPTERS`` to the observer, now or when it is imported."""
    for name in ADAPTERS.keys() & sys.modules.keys():
        _adapt(sys.modules[name], observer)
    sys.meta_path.insert(0, _AfterImport(observer))


def adapted() -> str:
    """Return the servers of this process whose requests are recognised, or that none is."""
    found = sorted(ADAPTERS.keys() & sys.modules.keys())
    return ", ".join(found) or "no adapter (replays count as live traffic)"


def _adapt(module: ModuleType, observer: Observer) -> None:
    observer.guarded(lambda: ADAPTERS[module.__name__](module, observer))


class _AfterImport:
    """Finds the modules in ``ADAPTERS`` as the finders behind it do, and adapts them after their import."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in ADAPTERS:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            self._observer.guarded(lambda: self._adapt_after(spec.loader))
        return spec

    def _adapt_after(self, loader: Any) -> None:
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _adapt(module, self._observer)

        loader.exec_module = exec_module


def _toolkit(module: Any, observer: Observer) -> None:
    """Adapt ``Transformer.transform`` of the SageMaker inference toolkit."""
    plain = module.Transformer.transform

    @functools.wraps(plain)
    def transform(transformer: Any, data: Any, context: Any) -> Any:
        return _handled(functools.partial(plain, transformer), data, context, observer)

    module.Transformer.transform = transform


def _handled(plain: Callable[..., Any], data: Any, context: Any, observer: Observer) -> Any:
    """Return what a handler of TorchServe's form returns: a list of one answer per request."""
    request = observer.guarded(lambda: _of_handler(data, context)) if current.get() is None else None
    if request is None:
        return plain(data, context)
    token = current.set(request)
    try:
        answers = plain(data, context)
    finally:
        current.reset(token)
    request.response = observer.guarded(lambda: _as_bytes(answers[0]))
    observer.answered(request)
    return answers


def _of_handler(data: Any, context: Any) -> Request | None:
    """Return the request, or None for a batch of requests or a body that the server has parsed."""
    body = data[0].get("body") if len(data) == 1 else None
    if not isinstance(body, (bytes, bytearray)):
        return None
    return _named(bytes(body), context.request_processor[0].get_request_properties())


def _named(body: bytes, headers: Mapping[str, str]) -> Request:
    given = {str(name).lower(): value for name, value in headers.items()}
    return Request(body, given.get(ATTRIBUTES), given.get(INFERENCE_ID))


def _as_bytes(answer: Any) -> bytes | None:
    if isinstance(answer, str):
        return answer.encode()
    return bytes(answer) if isinstance(answer, (bytes, bytearray)) else None


ADAPTERS: dict[str, Callable[[ModuleType, Observer], None]] = {
    "sagemaker_inference.transformer": _toolkit,
}
