"""The serving container: ``GET /ping`` and ``POST /invocations``, one process, one model.

SageMaker developer guide, "Custom inference code with hosting services". ``OPT_ML`` (default /opt/ml) moves
SageMaker's root, ``SAGEMAKER_BIND_TO_PORT`` (default 8080) the port.
"""

import contextlib
import importlib.util
import logging
import os
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

BODY_BYTES = 6 << 20  # InvokeEndpoint's limit
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"

logger = logging.getLogger("serve")


def load(root: Path):
    """The model's own code, as it came in model.tar.gz."""
    code = root / "model" / "code" / "inference.py"
    sys.path.insert(0, str(code.parent))
    spec = importlib.util.spec_from_file_location("inference", code)
    module = importlib.util.module_from_spec(spec)
    sys.modules["inference"] = module
    spec.loader.exec_module(module)
    return module


def application(inference, model) -> Starlette:
    async def ping(request: Request) -> Response:
        return Response(status_code=200)

    async def invocations(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES:
                return JSONResponse({"message": f"The body is larger than {BODY_BYTES} bytes."}, 413)
        try:
            content, kind = await run_in_threadpool(
                inference.transform_fn,
                model,
                bytes(body),
                request.headers.get("content-type", "application/octet-stream"),
                request.headers.get("accept", "application/json"),
                request,
            )
        except inference.RequestError as error:
            return JSONResponse({"message": error.message}, error.status)
        except Exception:
            logger.exception("the request failed")
            return JSONResponse({"message": "The model failed on this request; its log says why."}, 500)
        attributes = request.headers.get(CUSTOM_ATTRIBUTES)
        return Response(content, media_type=kind, headers={CUSTOM_ATTRIBUTES: attributes} if attributes else None)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        await run_in_threadpool(model.close)

    routes = [Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    import torch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    root = Path(os.environ.get("OPT_ML", "/opt/ml"))
    inference = load(root)
    model = inference.model_fn(str(root / "model"))
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    host = os.environ.get("BIND_HOST", "0.0.0.0")  # noqa: S104 (a container is reached from outside)
    uvicorn.run(application(inference, model), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    main()
