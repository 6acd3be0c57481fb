"""Requests of WSGI and ASGI servers and of model servers, whose processes PYTHONPATH alone hooks."""

import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import package
import replays
from glassbox.explanation.fullgrad import explain
from glassbox.explanation.trace_format import REPLAY_EVENT_ID
from hook_files import OWNED, traces_in, write_sdk
from local import pytorch_inference

# The environment that make test installs the servers into: beside torch, they need other packages than .venv.
PYTHON = pytorch_inference.PYTHON if pytorch_inference.PYTHON.exists() else Path(sys.executable)


@functools.cache
def is_installed(module):
    """Whether the Python of the servers finds a module."""
    found = f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"
    return subprocess.run([PYTHON, "-c", found], check=False).returncode == 0


# The owner's code. The first 48 bytes of a body are 4 × 4 pixels of 3 channels.
CODE = (
    OWNED
    + """
torch.manual_seed(0)
torch.set_num_threads(1)
net = Owned().eval()

@torch.no_grad()
def predict(body):
    if body.startswith(b"raise"):
        raise ValueError("of the owner")
    pixels = torch.from_numpy(np.frombuffer(body[:48], np.uint8).copy())
    return net(pixels.reshape(1, 3, 4, 4) / 255).numpy().tobytes().hex().encode() + str(len(body)).encode()
"""
)

# In parts on purpose: of the body and of the answer.
WSGI = """
from owned import predict

def application(environ, start_response):
    if environ["PATH_INFO"] == "/ping":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"up"]
    body, part = b"", environ["wsgi.input"].read(1000)
    while part:
        body += part
        part = environ["wsgi.input"].read(1000)
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Owner", "1")])
    def parts():
        answer = predict(body)
        yield answer[:7]
        yield answer[7:]
    return parts()
"""

FLASK = """
import flask
from owned import predict

application = flask.Flask(__name__)

@application.get("/ping")
def ping():
    return "up"

@application.post("/invocations")
def invocations():
    return predict(flask.request.get_data())
"""

ASGI = """
from owned import predict

async def application(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    answer = predict(body) if scope["path"] == "/invocations" else b"up"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-owner", b"1")]})
    await send({"type": "http.response.body", "body": answer[:7], "more_body": True})
    await send({"type": "http.response.body", "body": answer[7:]})
"""

STARLETTE = """
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from owned import predict

async def ping(request):
    return PlainTextResponse("up")

async def invocations(request):
    return Response(await run_sync(predict, await request.body()))

application = Starlette(routes=[Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])])
"""

WERKZEUG = (
    "import sys, served, werkzeug.serving as s; s.run_simple('unix://' + sys.argv[1], 0, served.application)"
)

# name -> the application, the server's arguments with the place of its socket, and the modules it needs
SERVERS = {
    "gunicorn": (WSGI, ["-m", "gunicorn", "-b", "unix:{}", "served"], ["gunicorn"]),
    "gunicorn of threads": (
        WSGI,
        ["-m", "gunicorn", "--threads", "2", "-b", "unix:{}", "served"],
        ["gunicorn"],
    ),
    "gunicorn with Flask": (FLASK, ["-m", "gunicorn", "-b", "unix:{}", "served"], ["gunicorn", "flask"]),
    "Flask": (FLASK, ["-c", WERKZEUG, "{}"], ["flask"]),
    "uvicorn": (ASGI, ["-m", "uvicorn", "--uds", "{}", "served:application"], ["uvicorn"]),
    "uvicorn with Starlette": (
        STARLETTE,
        ["-m", "uvicorn", "--uds", "{}", "served:application"],
        ["uvicorn", "starlette"],
    ),
}

ATTRIBUTES, INFERENCE_ID = "X-Amzn-SageMaker-Custom-Attributes", "X-Amzn-SageMaker-Inference-Id"
BODY, LONG = bytes(range(0, 240, 5)), bytes(range(256)) * 1200


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The hook and an AWS SDK, as folders for PYTHONPATH."""
    hook, sdk = tmp_path_factory.mktemp("hook"), tmp_path_factory.mktemp("sdk")
    package.write_hook(hook)
    write_sdk(sdk)
    return hook, sdk


def requests():
    """Return (path, body, headers) of each request, the first one a replay."""
    incident = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-operator"

    def replay(body, event_id, signed=None):
        return {ATTRIBUTES: replays.marker(signed or body, incident, event_id)}

    return [
        ("/invocations", BODY, replay(BODY, "replayed")),
        ("/ping", b"", {}),
        ("/invocations", LONG, replay(LONG, "long")),
        ("/invocations", BODY, replay(BODY, "of-another-body", signed=LONG)),
        ("/invocations", b"raise", {INFERENCE_ID: "raised"}),
        ("/invocations", BODY, {ATTRIBUTES: "trace=9", INFERENCE_ID: "live"}),
    ]


def sent(path, place, body, headers):
    """Return the answer to a request without the lines that hold its time, and wait for the socket before."""
    head = "".join(
        f"{name}: {value}\r\n"
        for name, value in {
            "Host": "endpoint",
            "Connection": "close",
            "Content-Length": len(body),
            "Content-Type": "application/x-image",
            **headers,
        }.items()
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(place))
        client.sendall(f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return [line for line in answer.split(b"\r\n") if not line.lower().startswith(b"date:")]


def serve(arguments, place, path, log, objects, **given):
    """Start a server, send all requests, wait for the traces if it is hooked, and return the answers."""
    is_hooked = "TENSORS_OUTPUT" in given
    environment = {name: value for name, value in os.environ.items() if name.lower() != "tensors_output"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "OPENBLAS_NUM_THREADS": "1"} | given
    command = [str(PYTHON), *(argument.format(place) for argument in arguments)]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env=environment, stderr=file, stdout=file) as server,
    ):
        try:
            deadline = time.monotonic() + 240
            while not _listens(place):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            answers, traces = [], 0
            for path, body, headers in requests():
                answers.append(sent(path, place, body, headers))
                traces += is_hooked and body in (BODY, LONG)
                # One after another: a live request does not wait for a place in the queue.
                while len(list(objects.rglob("index/*/*.json"))) < traces:
                    assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
        finally:
            server.terminate()
    return answers


def _listens(place):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(place)) == 0


@pytest.fixture(scope="module", params=SERVERS)
def served(request, folders, tmp_path_factory):
    """The answers without and with the hook, the traces by event id or inference id, and the server's log."""
    application, arguments, modules = SERVERS[request.param]
    if missing := [name for name in modules if not is_installed(name)]:
        pytest.skip(f"{missing[0]} is not installed")
    owner, objects = tmp_path_factory.mktemp("owner"), tmp_path_factory.mktemp("objects")
    (owner / "owned.py").write_text(CODE)
    (owner / "served.py").write_text(application)
    hook, sdk = folders
    settings = {
        "TENSORS_OUTPUT": "s3://bucket/tensors",
        "REPLAY_KEY": replays.KEY.text,
        "OBJECTS": str(objects),
    }
    log = owner / "log"
    # The path of a socket holds 107 characters at most.
    with tempfile.TemporaryDirectory() as sockets:
        plain = serve(arguments, Path(sockets, "plain"), (sdk, owner), log, objects)
        hooked = serve(arguments, Path(sockets, "hooked"), (hook, sdk, owner), log, objects, **settings)
    traces = {
        trace.meta.request.get(REPLAY_EVENT_ID) or trace.meta.request["inference_id"]: trace
        for trace in traces_in(objects)
    }
    return plain, hooked, traces, log.read_text()


class TestServers:
    def test_answers_are_the_same(self, served):
        plain, hooked, _, log = served
        assert plain[0][0].split()[1] == b"200"
        assert plain[4][0].split()[1] == b"500"
        assert hooked == plain, log

    @pytest.mark.parametrize(
        ("event_id", "body"), [("replayed", BODY), ("long", LONG)], ids=["short", "long"]
    )
    def test_a_verified_replay_is_traced_by_its_event_id(self, served, event_id, body):
        _, _, traces, log = served
        assert event_id in traces, log
        (e,) = explain(traces[event_id])
        assert e.complete
        assert traces[event_id].meta.request["sha256"] == hashlib.sha256(body).hexdigest()

    def test_a_live_request_keeps_its_name(self, served):
        request = served[2]["live"].meta.request
        assert request["custom_attributes"] == "trace=9"
        assert REPLAY_EVENT_ID not in request

    def test_a_marker_of_another_body_is_live_traffic(self, served):
        assert "of-another-body" not in served[2]
        assert REPLAY_EVENT_ID not in served[2][None].meta.request

    def test_an_error_of_the_owner_is_not_traced(self, served):
        assert "raised" not in served[2]


# Sends a batch to the service of a model server as its worker process does, and prints the answers.
WORKER = """
import importlib, json, sys
from owned import predict

def handle(data, context):
    return [predict(bytes(data[0]["body"])).decode()] if data[0]["body"] != {"pixels": 1} else ["json"]

Service = importlib.import_module(sys.argv[1] + ".service").Service
given = {"model_name": "m", "model_dir": ".", "manifest": None, "entry_point": handle, "gpu": None, "batch_size": 1}
service = Service(**given)
service.cl_socket = None
if sys.argv[1] == "ts":
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    class Metrics:
        request_ids = None
        def add_time(self, *_): pass
    service.context.metrics = Metrics()
for body, headers in [*json.loads(sys.stdin.read()), [{"pixels": 1}, {}]]:
    value = body if isinstance(body, dict) else bytearray(bytes.fromhex(body))
    parameters = [{"name": "body", "value": value, "contentType": "application/x-image"}]
    named = [{"name": name.encode(), "value": value.encode()} for name, value in headers.items()]
    batch = [{"requestId": b"1", "parameters": parameters, "headers": named}]
    print(bytes(service.predict(batch)).hex())
"""


@pytest.mark.parametrize("server", ["ts", "mms"])
class TestModelServers:
    def test_the_service_names_a_replay(self, server, folders, tmp_path):
        if not is_installed(server):
            pytest.skip(f"the package {server} (torchserve, multi-model-server) is not installed")
        (tmp_path / "owned.py").write_text(CODE)
        (tmp_path / "worker.py").write_text(WORKER)
        hook, sdk = folders
        given = [(body.hex(), headers) for path, body, headers in requests() if path == "/invocations"]

        def run(*path, **settings):
            environment = {k: v for k, v in os.environ.items() if k.lower() != "tensors_output"}
            environment |= {"PYTHONPATH": os.pathsep.join(map(str, (*path, sdk, tmp_path)))} | settings
            return subprocess.run(
                [str(PYTHON), str(tmp_path / "worker.py"), server],
                input=json.dumps(given),
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )

        settings = {"TENSORS_OUTPUT": "s3://bucket/tensors", "REPLAY_KEY": replays.KEY.text}
        plain, hooked = run(), run(hook, OBJECTS=str(tmp_path / "objects"), **settings)
        assert (plain.returncode, hooked.returncode) == (0, 0), plain.stderr + hooked.stderr
        assert len(plain.stdout.split()) == 6
        assert hooked.stdout == plain.stdout
        found = [trace.meta.request for trace in traces_in(tmp_path / "objects")]
        assert {request.get(REPLAY_EVENT_ID) for request in found} == {"replayed", "long", None}
        assert {request["inference_id"] for request in found} == {"live", None}
        assert "expected a body of bytes, got dict: the server has parsed it" in hooked.stderr
