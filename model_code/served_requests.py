"""Recognise the requests of the model servers of an endpoint whose code is not ours.

An adapter replaces a method of a server when its module is imported. It passes the owner's arguments and answers on
unchanged. Its own errors go to the observer and never reach the owner.

Needs the standard library only.
"""

from __future__ import annotations

import contextvars
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Protocol

if TYPE_CHECKING:
    from capture import Call

ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
INFERENCE_ID = "x-amzn-sagemaker-inference-id"


@dataclass
class Request:
    """A request in progress, and the calls that its answer is made of.

    Attributes:
        body: as the server received it.
        response: the body of the answer, or None where it is not known.
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
        """Take an answered request, and raise nothing."""


Adapter = Callable[[ModuleType, Observer], None]


def install(observer: Observer, adapters: Mapping[str, Adapter]) -> None:
    """Adapt modules of servers, now or when they are imported.

    Args:
        adapters: name of a module -> what adapts it.
    """
    # The owner's threads may import modules meanwhile.
    for name, module in list(sys.modules.items()):
        if name in adapters:
            _adapt(adapters[name], module, observer)
    sys.meta_path.insert(0, _AfterImport(observer, adapters))


def adapted(adapters: Mapping[str, Adapter]) -> str:
    """Return the servers of this process whose requests are recognised, or that none is."""
    found = sorted(adapters.keys() & sys.modules.keys())
    return ", ".join(found) or "no adapter (replays count as live traffic)"


def _adapt(adapter: Adapter, module: ModuleType, observer: Observer) -> None:
    observer.guarded(lambda: adapter(module, observer))


class _AfterImport:
    """Finds modules of servers as the finders behind it do, and adapts them after their import."""

    def __init__(self, observer: Observer, adapters: Mapping[str, Adapter]) -> None:
        self._observer, self._adapters = observer, adapters

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._adapters:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            self._observer.guarded(lambda: self._adapt_after(spec.loader, self._adapters[name]))
        return spec

    def _adapt_after(self, loader: Any, adapter: Adapter) -> None:
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _adapt(adapter, module, self._observer)

        loader.exec_module = exec_module


def _toolkit(module: Any, observer: Observer) -> None:
    """Adapt ``Transformer.transform`` of the SageMaker inference toolkit."""
    plain = module.Transformer.transform

    @functools.wraps(plain)
    def transform(transformer: Any, data: Any, context: Any) -> Any:
        return _handled(functools.partial(plain, transformer), observer, data, context)

    module.Transformer.transform = transform


def _service(module: Any, observer: Observer) -> None:
    """Adapt ``Service.predict`` of TorchServe, or of the Multi Model Server: both call a handler for each batch."""
    plain = module.Service.predict

    @functools.wraps(plain)
    def predict(service: Any, batch: Any) -> Any:
        # The service may have been made before this adapter was installed.
        handler = service._entry_point
        if getattr(handler, "func", None) is not _handled:
            service._entry_point = functools.partial(_handled, handler, observer)
        return plain(service, batch)

    module.Service.predict = predict


def _handled(plain: Callable[..., Any], observer: Observer, data: Any, context: Any) -> Any:
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
    """Return the request.

    Raises:
        ValueError: several requests, or a body that the server has parsed, such as JSON: a marker is of the bytes.
    """
    if len(data) != 1:
        raise ValueError(f"requests: expected one at a time, got a batch of {len(data)}, which has no names")
    body = data[0].get("body")
    if not isinstance(body, (bytes, bytearray)):
        kind = type(body).__name__
        raise ValueError(f"request: expected a body of bytes, got {kind}: the server has parsed it")
    headers = context.request_processor[0].get_request_properties()
    given = {str(name).lower(): value for name, value in headers.items()}
    return Request(bytes(body), given.get(ATTRIBUTES), given.get(INFERENCE_ID))


def _as_bytes(answer: Any) -> bytes:
    """Return an answer as TorchServe sends it: text and bytes as they are, other values as JSON."""
    if isinstance(answer, (bytes, bytearray)):
        return bytes(answer)
    return (answer if isinstance(answer, str) else json.dumps(answer)).encode()


ADAPTERS: dict[str, Adapter] = {
    "mms.service": _service,
    "sagemaker_inference.transformer": _toolkit,
    "ts.service": _service,
}
