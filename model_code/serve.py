"""Run the serving container: ``GET /ping`` and ``POST /invocations``, one process, one model.

SageMaker developer guide, "Custom Inference Code with Hosting Services". ``OPT_ML`` (default /opt/ml) is SageMaker's
root folder, ``SAGEMAKER_BIND_TO_PORT`` (default 8080) the port, ``BIND_HOST`` (default: all) the address to listen on.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

BODY_BYTES = 6 << 20  # InvokeEndpoint's limit
BODIES = 32  # in memory at once; further requests wait before their body is read
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
REQUEST_SECONDS = 8  # SageMaker sends SIGKILL 30 s after SIGTERM; the rest is for the upload of traces

logger = logging.getLogger("serve")


def application(inference: ModuleType, model: Any) -> Starlette:
    """Return the HTTP interface of a loaded model.

    It decodes and predicts one request per core at once: more would take memory and save nothing.

    Args:
        inference: the model's module, with ``transform_fn`` and ``RequestError``.
        model: from its ``model_fn``; its ``close()`` is called at the end.
    """
    bodies = asyncio.Semaphore(BODIES)
    predictions = CapacityLimiter(len(os.sched_getaffinity(0)))

    async def ping(request: Request) -> Response:
        return Response()

    async def invocations(request: Request) -> Response:
        async with bodies:
            return await answer(request)

    async def answer(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return _error(413, f"Body: expected at most {BODY_BYTES} bytes, got more.")
        headers = request.headers
        kind, accept = headers.get("content-type", ""), headers.get("accept", "")
        predict = partial(inference.transform_fn, model, body, kind, accept, request)
        try:
            content, kind = await to_thread.run_sync(predict, limiter=predictions)
        except inference.RequestError as error:
            return _error(error.status, error.message)
        except Exception:
            logger.exception("a request failed")
            return _error(500, "The model failed on this request. The endpoint's log holds the reason.")
        attributes = headers.get(CUSTOM_ATTRIBUTES)
        return Response(
            content, media_type=kind, headers={CUSTOM_ATTRIBUTES: attributes} if attributes else None
        )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(model.close)

    routes = [Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


async def _body(request: Request) -> bytes | None:
    """Return the body; None if it is too large, of which no more than the limit is kept."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            return None
    return bytes(body)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)


def main() -> None:
    """Load the model and its code from model.tar.gz, then answer /ping and requests."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Requests run in parallel, one core each, unless the environment sets another number.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    root = Path(os.environ.get("OPT_ML", "/opt/ml")) / "model"
    # SageMaker's contract: the archive's code/ is importable, and comes before the files beside this one.
    sys.path.insert(0, str(root / "code"))
    inference = importlib.import_module("inference")
    model = inference.model_fn(str(root))
    logger.info("serving %s, %s", root, "traced" if model.recorder else "plain")
    uvicorn.run(
        application(inference, model),
        host=os.environ.get("BIND_HOST", "0.0.0.0"),  # noqa: S104 (a container is called from outside)
        port=int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")),
        log_level="warning",
        timeout_graceful_shutdown=REQUEST_SECONDS,
    )


if __name__ == "__main__":
    main()
