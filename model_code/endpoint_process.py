"""Answer requests as an endpoint of the SageMaker PyTorch inference toolkit does; ``check_endpoint.py`` starts it.

Runs with the owner's Python, from a folder of its own: modules beside it would hide the owner's. Reads a JSON object
per line from standard input, and writes one per line to standard output::

    {"body": base64, "headers": {name: value}}
    {"status": 200, "answer": base64, "began": CPU seconds of the process, "ended": likewise}

The first line that it writes is ``{}``, or ``{"missing": name}`` or ``{"error": text}`` before it ends. Standard error
gets what the owner's code prints.

Needs the toolkit and the standard library.
"""

import base64
import json
import os
import time
import traceback
from typing import Any


class Context:
    """What TorchServe gives a handler, one object for all requests."""

    def __init__(self) -> None:
        self.system_properties = {"model_dir": os.environ["GLASSBOX_MODEL_DIR"], "gpu_id": None}
        self.request_processor = [self]
        self.status = 200
        self.headers: dict[str, str] = {}

    def get_all_request_header(self, _: int) -> dict[str, str]:
        """Return the headers."""
        return self.headers

    def get_request_properties(self) -> dict[str, str]:
        """Return the headers."""
        return self.headers

    def set_response_content_type(self, *_: Any) -> None:
        """Do nothing."""

    def set_response_status(self, code: int = 200, **_: Any) -> None:
        """Note the status."""
        self.status = code


def answered(service: Any, context: Context, line: str) -> dict[str, Any]:
    """Return the reply to one line."""
    request = json.loads(line)
    context.status, context.headers = 200, request["headers"]
    began = time.process_time()
    (answer,) = service.handle([{"body": bytearray(base64.b64decode(request["body"]))}], context)
    ended = time.process_time()
    if not isinstance(answer, (str, bytes, bytearray)):  # TorchServe sends all else as JSON
        answer = json.dumps(answer, indent=2)
    content = answer.encode() if isinstance(answer, str) else bytes(answer)
    encoded = base64.b64encode(content).decode()
    return {"status": context.status, "answer": encoded, "began": began, "ended": ended}


def main() -> None:
    """Load the model and answer until standard input ends."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=replies, flush=True)

    try:
        from sagemaker_pytorch_serving_container.handler_service import HandlerService
    except ImportError as error:
        reply({"missing": error.name or str(error)})
        return
    context = Context()
    try:
        service = HandlerService()
        service.initialize(context)
    except Exception as error:  # the owner's code may raise anything
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({})
    for line in requests:
        reply(answered(service, context, line))


if __name__ == "__main__":
    main()
