"""The server process of the embedded AWS: ministack, what it lacks, and the SageMaker double, on one port.

local.emulator starts it and sets the environment that ministack reads at its import. It runs until SIGTERM, or until
its standard input closes because the parent process has ended.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import ministack.app as ministack
from hypercorn.asyncio import serve
from hypercorn.config import Config
from ministack.core import iam_evaluator, lambda_runtime, router
from ministack.core.concurrency import run_reentrant

from local import cloudformation, gaps
from local.config import ServerConfig
from local.gaps import calls, delivery, registry, roles
from local.sagemaker.errors import SageMakerError, StartFailedError
from local.sagemaker.platform import Platform
from local.sagemaker.service import SageMaker

logger = logging.getLogger("glassbox.server")

INVOCATIONS = re.compile(r"/endpoints/([^/]+)/invocations")
CONTROL = "/_glassbox/"
JSON = {"Content-Type": "application/x-amz-json-1.1"}
INVOCATION_THREADS = 64

Response = tuple[int, dict[str, str], bytes]


class Gateway:
    """Passes requests from ministack to the double, authorises them and serves the control API."""

    def __init__(self, sagemaker: SageMaker) -> None:
        self.sagemaker = sagemaker
        # Not the default pool: an invocation waits for a model that may itself call this AWS.
        self._pool = ThreadPoolExecutor(INVOCATION_THREADS, thread_name_prefix="invocation")

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI request of the control API or of ministack."""
        if scope["type"] == "http" and scope["path"].startswith(CONTROL):
            status, body = await self._control(scope, receive)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})
        else:
            await ministack.app(scope, receive, send)

    async def handle(
        self, method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> Response:
        """Handle a SageMaker request that ministack has authenticated."""
        try:
            if (match := INVOCATIONS.fullmatch(path)) and method == "POST":
                return await self._invoke(match[1], headers, body)
            operation = headers.get("x-amz-target", "").rpartition(".")[2]
            request = json.loads(body or b"{}")
            self._authorise(headers, self.sagemaker.grants(operation, request))
            answer = await run_reentrant(self.sagemaker.call, operation, request)
            return 200, dict(JSON), json.dumps(answer).encode()
        except SageMakerError as error:
            return error_response(error)

    async def quotas(
        self, method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> Response:
        """Handle a request to Service Quotas."""
        try:
            operation = headers.get("x-amz-target", "").rpartition(".")[2]
            if operation != "ListServiceQuotas":
                raise SageMakerError("UnknownOperationException", f"{operation} is not part of the double")
            self._authorise(headers, [("servicequotas:ListServiceQuotas", "*", {})])
            return 200, dict(JSON), json.dumps(self.sagemaker.quotas.list(json.loads(body or b"{}"))).encode()
        except SageMakerError as error:
            return error_response(error)

    async def _invoke(self, endpoint: str, headers: dict[str, str], body: bytes) -> Response:
        arn = self.sagemaker.platform.arn("endpoint", endpoint)
        self._authorise(headers, [("sagemaker:InvokeEndpoint", arn, {})])
        call = functools.partial(self.sagemaker.runtime.invoke, endpoint, body, headers)
        variant, answer = await asyncio.get_running_loop().run_in_executor(self._pool, call)
        response = {"x-Amzn-Invoked-Production-Variant": variant}
        if answer.content_type:
            # ministack normalises `Content-Type`, so the model's header keeps lower case.
            response["content-type"] = answer.content_type
        if answer.custom_attributes:
            response["X-Amzn-SageMaker-Custom-Attributes"] = answer.custom_attributes
        return 200, response, answer.body

    def _authorise(self, headers: dict[str, str], grants: list[tuple[str, str, dict[str, str]]]) -> None:
        key = router.extract_access_key_id(headers)
        for action, arn, context in grants:
            region = self.sagemaker.platform.region
            denied = iam_evaluator.enforce(key, action, action.partition(":")[0], region, arn, context)
            if isinstance(denied, iam_evaluator.AuthError):
                raise SageMakerError(denied.code, denied.message, status=403)
            if denied is not None:
                reason = (
                    "with an explicit deny in an identity-based policy"
                    if denied.decision == "Deny"
                    else f"because no identity-based policy allows the {action} action"
                )
                raise SageMakerError(
                    "AccessDeniedException",
                    f"User: {denied.principal_arn} is not authorized to perform: {action} on resource: {arn} {reason}",
                )

    async def _control(self, scope: Any, receive: Any) -> tuple[int, Any]:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            request = json.loads(body or b"{}")
            return 200, await self._act(scope["path"].removeprefix(CONTROL), request)
        except (ValueError, TypeError, KeyError, LookupError, StartFailedError) as error:
            return 400, {"error": str(error)}

    async def _act(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        if operation == "clock":
            return await self._set_clock(request)
        if operation == "flush":
            await asyncio.to_thread(self.sagemaker.capture.flush)
            return {}
        if operation == "chaos":
            delivery.chaos.change(**request)
            return asdict(delivery.chaos)
        if operation == "calls":
            return {"allowed": sorted(calls.allowed)}
        if operation == "quotas":
            return self.sagemaker.quotas.set(request)
        if operation == "credentials":
            platform = self.sagemaker.platform
            return roles.assume(platform.account, platform.region, request["role"], request["service"])
        if operation == "status":
            return {"ministack": gaps.MINISTACK, "region": self.sagemaker.platform.region}
        raise ValueError(f"{operation}: expected an operation of the control API.")

    async def _set_clock(self, request: dict[str, Any]) -> dict[str, Any]:
        clock = self.sagemaker.clock
        await asyncio.to_thread(self.sagemaker.capture.flush)  # so that a file has records of one clock only
        if "now" in request:
            now = datetime.fromisoformat(request["now"])
            if now.tzinfo is None:
                raise ValueError(f"now={request['now']}: expected a time zone, such as Z.")
            clock.set(now)
        elif "offset_seconds" in request:
            clock.shift(timedelta(seconds=float(request["offset_seconds"])))
        return {"now": clock.now().isoformat(), "offset_seconds": clock.offset.total_seconds()}


def error_response(error: SageMakerError) -> Response:
    """Return an error in the form of both protocols, with the status in place of an empty code."""
    body: dict[str, Any] = {"message": error.message, "Message": error.message, **error.fields}
    headers = dict(JSON)
    if error.code:
        body["__type"] = error.code
        headers["x-amzn-errortype"] = error.code
    return error.status, headers, json.dumps(body).encode()


def build(config: ServerConfig) -> Gateway:
    """Extend ministack and add the double to it."""
    gaps.check_hooks()
    gaps.install(config.account, config.region, config.directory / "lambda-runtime", config.unpacked)
    platform = Platform(
        account=config.account,
        region=config.region,
        endpoint_url=f"http://127.0.0.1:{config.port}",
        directory=config.directory,
        emit=functools.partial(delivery.emit_sagemaker_event, config.account, config.region),
        assume=functools.partial(
            roles.assume, config.account, config.region, service="sagemaker.amazonaws.com"
        ),
        manifest_type=functools.partial(registry.manifest_type, config.account, config.region),
        commands=config.images,
    )
    sagemaker = SageMaker(
        platform,
        update_seconds=config.update_seconds,
        flush_seconds=config.flush_seconds,
        flush_records=config.flush_records,
    )
    cloudformation.install(sagemaker)
    gateway = Gateway(sagemaker)
    router.SERVICE_PATTERNS["sagemaker"] = {
        "target_prefixes": ["SageMaker."],
        "host_patterns": [r"sagemaker\."],
        "credential_scope": "sagemaker",
    }
    ministack.SERVICE_HANDLERS["sagemaker"] = gateway.handle
    router.SERVICE_PATTERNS["servicequotas"] = {
        "target_prefixes": ["ServiceQuotasV20190624."],
        "host_patterns": [r"servicequotas\."],
        "credential_scope": "servicequotas",
    }
    ministack.SERVICE_HANDLERS["servicequotas"] = gateway.quotas
    return gateway


async def run(gateway: Gateway, fds: list[int]) -> bool:
    """Serve on the inherited sockets and return whether the parent's end stopped it."""
    stop, orphaned = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    threading.Thread(target=_await_parent, args=(loop, orphaned, stop), daemon=True).start()
    hypercorn = Config()
    hypercorn.bind = [f"fd://{fd}" for fd in fds]
    hypercorn.keep_alive_timeout = 75
    hypercorn.graceful_timeout = 1
    hypercorn.loglevel = "WARNING"
    await serve(gateway.app, hypercorn, shutdown_trigger=stop.wait)
    return orphaned.is_set()


def _await_parent(loop: asyncio.AbstractEventLoop, *events: asyncio.Event) -> None:
    sys.stdin.buffer.read()
    for event in events:
        loop.call_soon_threadsafe(event.set)


def _kill_group_at_exit() -> subprocess.Popen[bytes] | None:
    """Start a process that kills this one's process group when this one ends, even by SIGKILL.

    Model servers and functions would otherwise survive a killed emulator. The caller keeps the result: the process
    waits until its pipe closes.
    """
    if os.getpgrp() != os.getpid():  # the group contains the caller
        return None
    kill = "import os, signal, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"
    return subprocess.Popen(
        [sys.executable, "-S", "-c", kill, str(os.getpgrp())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main() -> None:
    """Serve until the end, then stop model servers, jobs and functions."""
    config = ServerConfig.from_json(sys.argv[1])
    _watcher = _kill_group_at_exit()
    os.environ.pop("PYTHONPATH", None)  # functions must not inherit this module's path
    gateway = build(config)
    orphaned = False
    try:
        orphaned = asyncio.run(run(gateway, config.fds))
    finally:
        gateway.sagemaker.close()
        lambda_runtime.reset()
        if orphaned:
            shutil.rmtree(config.directory, ignore_errors=True)
        os._exit(0)  # threads of ministack's pools may block the interpreter's exit


if __name__ == "__main__":
    main()
