"""serve.py as the process it is in the container, with the code and the model of a model.tar.gz."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import package
import replays
from glassbox.explanation.fullgrad import explain
from glassbox.explanation.trace_reader import read_index, read_trace
from resnet import ResNet18

SERVE = Path(__file__).parent.parent.parent / "model_code" / "serve.py"
LABELS = [f"sign {i}" for i in range(5)]
NPY = {"Content-Type": "application/x-npy"}
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.fixture(scope="module")
def s3(embedded_aws):
    client = embedded_aws.client("s3")
    client.create_bucket(Bucket="traced", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return client


@pytest.fixture(scope="module")
def writer(embedded_aws):
    """The environment of a role that may write tensors only."""
    iam = embedded_aws.client("iam")
    iam.create_user(UserName="writer")
    put = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::traced/tensors/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [put]})
    iam.put_user_policy(UserName="writer", PolicyName="tensors", PolicyDocument=policy)
    key = iam.create_access_key(UserName="writer")["AccessKey"]
    return {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_ENDPOINT_URL": embedded_aws.endpoint_url,
    }


class Server:
    """The process, on a port of its own; its log is a file."""

    def __init__(self, root, **environment):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = root / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVE)],
                # Nothing of the tests' own path: all code comes from the archive.
                env={
                    "PATH": os.environ["PATH"],
                    "OPT_ML": str(root),
                    "SAGEMAKER_BIND_TO_PORT": str(self.port),
                    "BIND_HOST": "127.0.0.1",
                    "AWS_ACCESS_KEY_ID": "testing",
                    "AWS_SECRET_ACCESS_KEY": "testing",
                    "AWS_REGION": "eu-west-1",
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def request(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def invoke(self, body, **headers):
        status, _, answer = self.request("POST", "/invocations", body, NPY | headers)
        return status, json.loads(answer)

    def ready(self, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                return self.request("GET", "/ping")[0] == 200
            time.sleep(0.05)
        pytest.fail(f"does not answer /ping:\n{self.log.read_text()}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def unpacked(folder, network, code=None):
    """``network`` packaged, and unpacked as SageMaker does; ``code`` is the text of a class Net of its own."""
    torch.save(network.state_dict(), folder / "weights.pt")
    config, files = {"image_size": [32, 32], "labels": LABELS}, []
    if code:
        files = [folder / "net.py"]
        files[0].write_text(code)
        config["architecture"] = "net:Net"
    package.package(folder / "weights.pt", folder / "model.tar.gz", config, files)
    with tarfile.open(folder / "model.tar.gz") as archive:
        archive.extractall(folder / "model", filter="data")
    return folder


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ResNet18(num_classes=5, width=4).eval()


@pytest.fixture(scope="module")
def start(tmp_path_factory, network):
    """Starts servers, and ends them."""
    servers = []

    def start(name, model=network, code=None, **environment):
        servers.append(Server(unpacked(tmp_path_factory.mktemp(name), model, code), **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def plain(start):
    server = start("plain")
    server.ready()
    return server


def marker(body):
    return replays.marker(body, f"{datetime.now(UTC):%Y%m%dt%H%M%S}-operator")


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def image_array(seed=0, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape or (32, 32, 3), np.uint8)


class TestPlain:
    def test_predicts(self, plain, network):
        status, answer = plain.invoke(npy(image_array()))
        assert status == 200
        (prediction,) = answer["predictions"]
        x = torch.from_numpy(image_array()).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(package.DEFAULT_CONFIG[k]).view(3, 1, 1) for k in ("mean", "std"))
        with torch.no_grad():
            probabilities = network(((x - mean) / std)[None])[0].softmax(0)
        assert prediction["class"] == probabilities.argmax()
        assert prediction["label"] == LABELS[prediction["class"]]
        assert prediction["probability"] == pytest.approx(probabilities.max().item(), rel=1e-5)

        stream = io.BytesIO()
        Image.fromarray(image_array()).save(stream, "PNG")
        status, answer = plain.invoke(stream.getvalue(), **{"Content-Type": "image/png"})
        assert (status, answer["predictions"][0]["class"]) == (200, prediction["class"])
        assert answer["predictions"][0]["probability"] == pytest.approx(prediction["probability"], rel=1e-4)

    def test_predicts_the_largest_body(self, plain):
        body = npy(image_array(0, 1448, 1448, 3))
        assert (6 << 20) - 2000 < len(body) <= 6 << 20
        assert plain.invoke(body)[0] == 200

    def test_returns_the_custom_attributes(self, plain):
        attributes = "user=7,lane=3"
        status, headers, _ = plain.request(
            "POST", "/invocations", npy(image_array()), NPY | {ATTRIBUTES: attributes}
        )
        assert (status, headers[ATTRIBUTES], headers["Content-Type"]) == (200, attributes, "application/json")
        assert ATTRIBUTES not in plain.request("POST", "/invocations", npy(image_array()), NPY)[1]

    @pytest.mark.parametrize(
        ("body", "headers", "status", "message"),
        [
            (b"text", NPY, 400, "Body: expected an array in the .npy format, got something else."),
            (b"a,b", {"Content-Type": "text/csv"}, 415,
             "Content-Type: expected application/x-npy, image/png or image/jpeg, got 'text/csv'."),
            (b"a,b", {}, 415, "Content-Type: expected application/x-npy, image/png or image/jpeg, got ''."),
            (npy(image_array()), NPY | {"Accept": "text/csv"}, 406,
             "Accept: expected application/json, got 'text/csv'."),
            (bytes((6 << 20) + 1), NPY, 413, "Body: expected at most 6291456 bytes, got more."),
            (iter([bytes(1 << 20)] * 7), NPY, 413, "Body: expected at most 6291456 bytes, got more."),
        ],
    )  # fmt: skip
    def test_refuses_with_one_sentence(self, plain, body, headers, status, message):
        found, _, answer = plain.request("POST", "/invocations", body, headers)
        assert (found, json.loads(answer)) == (status, {"message": message})

    def test_refuses_other_paths_and_methods(self, plain):
        assert plain.request("GET", "/invocations")[0] == 405
        assert plain.request("GET", "/")[0] == 404
        assert plain.request("GET", "/ping")[2] == b""

    def test_answers_concurrent_requests(self, plain):
        expected = [plain.invoke(npy(image_array(i))) for i in range(8)]
        found = [None] * 32

        def client(i):
            found[i] = plain.invoke(npy(image_array(i % 8)))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [status for status, _ in found] == [200] * 32
        for (_, one), (_, other) in zip(found, expected * 4, strict=True):
            ((one,), (other,)) = one["predictions"], other["predictions"]
            assert one["class"] == other["class"]
            # kernels may differ with the alignment of a body in memory
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)

    def test_failures_are_logged_and_hidden_from_the_client(self, start):
        code = (
            "from torch import nn\n"
            "class Net(nn.Linear):\n"
            "    def __init__(self):\n        super().__init__(3, 5)\n"
            # divides by 0 where an image has one colour
            "    def forward(self, x):\n        return super().forward(x.mean((2, 3))) / x.std((2, 3))[:, :1]\n"
        )
        server = start("broken", torch.nn.Linear(3, 5), code)
        server.ready()
        message = "The model failed on this request. The endpoint's log holds the reason."
        assert server.invoke(npy(image_array()))[0] == 200
        assert server.invoke(npy(np.zeros((32, 32, 3), np.uint8))) == (500, {"message": message})
        log = server.log.read_text()
        assert "ArithmeticError: expected finite logits" in log
        assert "Traceback" in log
        assert server.request("GET", "/ping")[0] == 200

    def test_exits_when_the_model_does_not_load(self, start):
        server = start("settings", tensors_output="/nowhere")
        assert server.process.wait(60) != 0
        assert "tensors_output: expected s3://bucket/prefix, got '/nowhere'" in server.log.read_text()


class TestHooked:
    def test_sigterm_uploads_the_last_trace(self, start, s3, writer):
        """With the right to put tensors, and no other: neither to list the bucket nor to read from it."""
        server = start(
            "hooked",
            tensors_output="s3://traced/tensors/signs",
            TRACES_PER_MINUTE="1",
            REPLAY_KEY=replays.KEY.text,
            **writer,
        )
        server.ready()
        answers = [server.invoke(npy(image_array(i)))[1]["predictions"][0] for i in range(3)]
        batch = npy(image_array(3, 2, 40, 50, 3))
        attributes = f"user=7, {marker(batch)}"
        status, replayed = server.invoke(
            batch, **{ATTRIBUTES: attributes, "X-Amzn-SageMaker-Inference-Id": "id-9"}
        )
        assert (
            server.invoke(npy(image_array(5)), **{ATTRIBUTES: attributes})[0] == 200
        )  # copied to another body
        assert status == 200
        server.stop()

        keys = [item["Key"] for item in s3.list_objects_v2(Bucket="traced")["Contents"]]
        assert all(key.startswith("tensors/signs/") for key in keys)
        indexes = sorted(key for key in keys if "/index/" in key)
        assert len(indexes) == 2, "one live request a minute, and the replay"
        hello = [key for key in keys if "/hello/" in key]
        assert (len(keys), len(hello)) == (6, 1)
        assert "dropped" not in server.log.read_text()

        def get(key):
            return s3.get_object(Bucket="traced", Key=key)["Body"].read()

        live, replay = (
            explain(read_trace(index, get(index.events_key)))
            for index in (read_index(key, get(key)) for key in indexes)
        )
        assert [e.target for e in live] == [answers[0]["class"]]
        np.testing.assert_array_equal(live[0].input_image, image_array(0))
        assert [e.target for e in replay] == [p["class"] for p in replayed["predictions"]]
        assert [e.class_name for e in replay] == [p["label"] for p in replayed["predictions"]]
        assert [e.probability for e in replay] == pytest.approx(
            [p["probability"] for p in replayed["predictions"]]
        )
        for explanation in (*live, *replay):
            assert explanation.complete
            assert explanation.unaccounted == ()
        assert replay[0].request["custom_attributes"] == attributes
        assert replay[0].request["replay_event_id"] == replays.EVENT_ID
        assert replay[0].request["inference_id"] == "id-9"
        assert replay[0].request["sha256"] == hashlib.sha256(batch).hexdigest()

    def test_answers_without_permission_to_write(self, start, s3, writer):
        server = start("elsewhere", tensors_output="s3://traced/elsewhere/signs", **writer)
        server.ready()
        assert server.invoke(npy(image_array()))[0] == 200
        server.stop()
        assert "trace dropped, 1 so far: " in server.log.read_text()
        assert "is not authorized to perform: s3:PutObject" in server.log.read_text()
        assert "Contents" not in s3.list_objects_v2(Bucket="traced", Prefix="elsewhere/")

    def test_answers_while_s3_is_unreachable(self, start):
        with socket.create_server(("127.0.0.1", 0)) as free:
            unused_port = free.getsockname()[1]
        server = start(
            "away",
            tensors_output="s3://bucket/tensors/signs",
            REPLAY_KEY=replays.KEY.text,
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{unused_port}",
        )
        server.ready()
        for i in range(20):
            body = npy(image_array(i))
            assert server.invoke(body, **{ATTRIBUTES: marker(body)})[0] == 200
        deadline = time.monotonic() + 300
        while "trace dropped, 12 so far" not in server.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
