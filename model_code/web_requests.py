"""Recognise the requests of WSGI applications (gunicorn, Flask) and of ASGI applications (uvicorn, Starlette).

SageMaker posts each request to ``/invocations``. Its body and its answer are noted while they pass: nothing is read or
sent at another time, or in other parts, than the owner's code does it.

Needs the standard library only.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Awaitable, Callable, Dict, Iterable, TypeVar

from glassbox.replay_marker import is_marked
from served_requests import ATTRIBUTES, INFERENCE_ID, Adapter, Observer, Request, current

BODY_BYTES = 6 << 20  # InvokeEndpoint's limit, of a request and of an answer

_METHOD, _PATH = "POST", "/invocations"

StartResponse = Callable[..., Callable[[bytes], object]]
Application = Callable[[Dict[str, Any], StartResponse], Iterable[bytes]]
Message = Dict[str, Any]
_Part = TypeVar("_Part", bytes, memoryview)
AsyncApplication = Callable[..., Awaitable[Any]]


class _Noted:
    """A body of at most ``BODY_BYTES``, noted in parts."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._left = BODY_BYTES
        self._is_whole = True

    def add(self, part: bytes | memoryview) -> None:
        """Note the next part."""
        self._left -= len(part)
        if self._left < 0:
            self.lose()
        elif self._is_whole:
            self._parts.append(bytes(part))

    def lose(self) -> None:
        """Drop the body: a part of it is not seen, or is encoded."""
        self._is_whole = False
        self._parts.clear()

    def whole(self) -> bytes | None:
        """Return the body, or None if it was dropped."""
        return b"".join(self._parts) if self._is_whole else None


class _Exchange:
    """A request and its answer while they pass.

    Args:
        headers: of the request, by lower-case name.
    """

    def __init__(self, headers: Mapping[str, str], observer: Observer) -> None:
        self.request = Request(b"", headers.get(ATTRIBUTES), headers.get(INFERENCE_ID))
        self._observer = observer
        self._body, self._answer = _Noted(), _Noted()

    def received(self, part: bytes | memoryview) -> None:
        """Note a part of the body."""
        self._observer.guarded(lambda: self._body.add(part))

    def sent(self, part: bytes) -> None:
        """Note a part of the answer."""
        self._observer.guarded(lambda: self._answer.add(part))

    def sent_unseen(self) -> None:
        """Drop the answer, which is not sent in parts of bytes."""
        self._answer.lose()

    def started(self, names: Callable[[], Iterable[str | bytes]]) -> None:
        """Drop the answer if the names of its headers show that it is encoded."""
        self._observer.guarded(lambda: self._check_encoding(names()))

    def _check_encoding(self, names: Iterable[str | bytes]) -> None:
        if any(name.lower() in ("content-encoding", b"content-encoding") for name in names):
            self._answer.lose()

    def end(self) -> None:
        """Report the answered request."""
        self._observer.guarded(self._report)

    def _report(self) -> None:
        body = self._body.whole()
        if body is None:
            raise ValueError(f"request: expected a body of at most {BODY_BYTES:,} bytes, got more")
        self.request.body, self.request.response = body, self._answer.whole()
        self._observer.answered(self.request)


def _begun(headers: Callable[[], Mapping[str, str] | None], observer: Observer) -> _Exchange | None:
    """Return the exchange of a request that no server around this one has recognised."""
    given = observer.guarded(headers) if current.get() is None else None
    return None if given is None else _Exchange(given, observer)


def noted_wsgi(app: Application, observer: Observer) -> Application:
    """Return a WSGI application (PEP 3333) that reports the requests of ``app``."""

    def noted(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        exchange = _begun(lambda: _wsgi_headers(environ), observer)
        if exchange is None:
            return app(environ, start_response)
        environ["wsgi.input"] = _Input(environ["wsgi.input"], exchange)
        token = current.set(exchange.request)
        try:
            answer = app(environ, _noted_start(start_response, exchange))
        finally:
            current.reset(token)
        return _noted_answer(answer, environ.get("wsgi.file_wrapper"), exchange)

    return noted


def _wsgi_headers(environ: Mapping[str, Any]) -> Mapping[str, str] | None:
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    if (environ.get("REQUEST_METHOD"), path) != (_METHOD, _PATH):
        return None
    names = {name: "HTTP_" + name.upper().replace("-", "_") for name in (ATTRIBUTES, INFERENCE_ID)}
    return {name: environ[key] for name, key in names.items() if key in environ}


class _Input:
    """A ``wsgi.input`` whose bytes are noted when the application reads them."""

    def __init__(self, stream: Any, exchange: _Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    def read(self, *size: int) -> bytes:
        part: bytes = self._stream.read(*size)
        return self._passed(part)

    def readline(self, *size: int) -> bytes:
        part: bytes = self._stream.readline(*size)
        return self._passed(part)

    def readlines(self, *hint: int) -> list[bytes]:
        return [self._passed(line) for line in self._stream.readlines(*hint)]

    def __iter__(self) -> Iterator[bytes]:
        return map(self._passed, self._stream)

    def __getattr__(self, name: str) -> Any:
        # Beyond PEP 3333. A body that is read in another way is noted in part, and its marker does not verify.
        found = getattr(self._stream, name)
        return functools.partial(self._read_into, found) if name in ("readinto", "readinto1") else found

    def _read_into(self, plain: Callable[[Any], int | None], buffer: Any) -> int | None:
        size = plain(buffer)
        self._passed(memoryview(buffer)[: size or 0])
        return size

    def _passed(self, part: _Part) -> _Part:
        self._exchange.received(part)
        return part


def _noted_start(plain: StartResponse, exchange: _Exchange) -> StartResponse:
    def start_response(status: str, headers: list[tuple[str, str]], *error: Any, **named: Any) -> Any:
        exchange.started(lambda: [name for name, _ in headers])
        write = plain(status, headers, *error, **named)

        def noted_write(part: bytes) -> object:
            exchange.sent(part)
            return write(part)

        return noted_write

    return start_response


def _noted_answer(answer: Iterable[bytes], file_wrapper: object, exchange: _Exchange) -> Iterable[bytes]:
    """Return the answer, of the same type where the server asks for its type or its length."""
    if isinstance(answer, (list, tuple)):
        for part in answer:
            exchange.sent(part)
    elif hasattr(answer, "__len__") or (
        file_wrapper is not None and (not isinstance(file_wrapper, type) or isinstance(answer, file_wrapper))
    ):
        exchange.sent_unseen()
    else:
        return _Answer(answer, exchange)
    exchange.end()
    return answer


class _Answer:
    """An answer whose parts are noted when the server takes them; the server closes it after the last one."""

    def __init__(self, answer: Iterable[bytes], exchange: _Exchange) -> None:
        self._answer, self._exchange = answer, exchange
        self._parts: Iterator[bytes] | None = None
        self._is_complete = False

    def __iter__(self) -> _Answer:
        return self

    def __next__(self) -> bytes:
        # A generator may call the network here.
        token = current.set(self._exchange.request)
        try:
            if self._parts is None:
                self._parts = iter(self._answer)
            part = next(self._parts)
        except StopIteration:
            self._is_complete = True
            raise
        finally:
            current.reset(token)
        self._exchange.sent(part)
        return part

    def close(self) -> None:
        if hasattr(self._answer, "close"):
            self._answer.close()
        if self._is_complete:
            self._exchange.end()


def noted_asgi(app: AsyncApplication, observer: Observer) -> AsyncApplication:
    """Return an ASGI application that reports the requests of ``app``."""

    async def noted(scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> Any:
        exchange = _begun(lambda: _asgi_headers(scope), observer)
        if exchange is None:
            return await app(scope, receive, send)

        async def noted_receive() -> Message:
            message: Message = await receive()
            if message["type"] == "http.request":
                exchange.received(message.get("body", b""))
            return message

        async def noted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.started(lambda: [name for name, _ in message.get("headers", ())])
            elif message["type"] == "http.response.body":
                exchange.sent(message.get("body", b""))
            else:
                exchange.sent_unseen()
            await send(message)

        token = current.set(exchange.request)
        try:
            result = await app(scope, noted_receive, noted_send)
        finally:
            current.reset(token)
        if is_marked(exchange.request.custom_attributes):
            # A replay may wait for the recorder, and must not stop the event loop meanwhile.
            await asyncio.get_running_loop().run_in_executor(None, exchange.end)
        else:
            exchange.end()
        return result

    return noted


def _asgi_headers(scope: Message) -> Mapping[str, str] | None:
    if scope["type"] != "http" or (scope["method"], scope["path"]) != (_METHOD, _PATH):
        return None
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _flask(module: Any, observer: Observer) -> None:
    plain = module.Flask.__call__

    @functools.wraps(plain)
    def call(app: Any, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return noted_wsgi(functools.partial(plain, app), observer)(environ, start_response)

    module.Flask.__call__ = call


def _gunicorn(module: ModuleType, observer: Observer) -> None:
    """Adapt the workers of a module; they may have loaded their application already."""
    for worker in [cls for cls in vars(module).values() if "handle_request" in getattr(cls, "__dict__", ())]:
        worker.handle_request = _handling(worker.handle_request, observer)


def _handling(plain: Callable[..., Any], observer: Observer) -> Callable[..., Any]:
    @functools.wraps(plain)
    def handle_request(worker: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(worker.wsgi, "__module__", None) != __name__:
            worker.wsgi = noted_wsgi(worker.wsgi, observer)
        return plain(worker, *args, **kwargs)

    return handle_request


def _starlette(module: Any, observer: Observer) -> None:
    plain = module.Starlette.__call__

    @functools.wraps(plain)
    async def call(app: Any, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        await noted_asgi(functools.partial(plain, app), observer)(scope, receive, send)

    module.Starlette.__call__ = call


def _uvicorn(module: Any, observer: Observer) -> None:
    plain = module.RequestResponseCycle.run_asgi

    @functools.wraps(plain)
    async def run_asgi(cycle: Any, app: AsyncApplication) -> None:
        await plain(cycle, noted_asgi(app, observer))

    module.RequestResponseCycle.run_asgi = run_asgi


ADAPTERS: dict[str, Adapter] = {
    "flask.app": _flask,
    "gunicorn.workers.sync": _gunicorn,
    "gunicorn.workers.gthread": _gunicorn,
    "gunicorn.workers.base_async": _gunicorn,
    "starlette.applications": _starlette,
    "uvicorn.protocols.http.h11_impl": _uvicorn,
    "uvicorn.protocols.http.httptools_impl": _uvicorn,
}
