"""Run both images in Docker with the folders that SageMaker mounts: `make images-test`."""

import contextlib
import http.client
import io
import json
import os
import subprocess
import tarfile
import time
from datetime import UTC, datetime

import numpy as np
import pytest

import captures
import package
import replays
from demo import signs
from local.emulator import ACCOUNT, EmbeddedAws, docker_bridge
from local.stack import WEIGHTS

SERVING, MONITOR = "glassbox-serving", "glassbox-monitor"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not os.environ.get("GLASSBOX_IMAGES"), reason="needs Docker and the images: make images-test"
    ),
]


def docker(*arguments, check=True):
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def logs(name):
    done = docker("logs", name)
    return done.stdout + done.stderr


def npy(image):
    body = io.BytesIO()
    np.save(body, image, allow_pickle=False)
    return body.getvalue()


@contextlib.contextmanager
def container(*arguments):
    """Run a container in the background and return its name."""
    name = docker("run", "--detach", *arguments).stdout.strip()
    try:
        yield name
    finally:
        docker("rm", "--force", name)


# ---------------------------------------------------------------- the serving image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Unpack model.tar.gz as SageMaker does to /opt/ml/model: owned by root and readable."""
    folder = tmp_path_factory.mktemp("model")
    package.package(WEIGHTS, folder / "model.tar.gz")
    with tarfile.open(folder / "model.tar.gz") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    for parent in (folder.parent, folder):
        parent.chmod(0o755)
    return folder / "unpacked"


@pytest.fixture(scope="module")
def sign():
    images, labels = signs.dataset(200, seed=3, size=48)
    return images[labels == 14][0]


class Server:
    """A serving container on its own port."""

    def __init__(self, name):
        self.name = name
        self.port = int(docker("port", name, "8080/tcp").stdout.rpartition(":")[2])

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def wait(self, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/ping")[0] == 200:
                    return
            time.sleep(0.1)
        pytest.fail(f"no /ping within {seconds} s:\n{logs(self.name)}")

    def predict(self, image, **headers):
        kind = {"Content-Type": "application/x-npy"}
        status, body = self.ask("POST", "/invocations", npy(image), **kind, **headers)
        return status, json.loads(body)


@contextlib.contextmanager
def serving(model, *arguments):
    mount = f"{model}:/opt/ml/model:ro"
    published = ("--publish", "127.0.0.1::8080")
    with container("--volume", mount, *published, *arguments, SERVING, "serve") as name:
        server = Server(name)
        server.wait()
        yield server


def test_the_serving_image_answers_pings_and_predicts(model, sign):
    with serving(model) as server:
        assert server.ask("GET", "/ping")[0] == 200
        status, answer = server.predict(sign)
        assert (status, answer["predictions"][0]["class"]) == (200, 14)
        assert server.ask("POST", "/invocations", b"not an image", **{"Content-Type": "image/png"})[0] == 400


def test_the_serving_image_runs_as_one_unprivileged_process(model):
    with serving(model) as server:
        processes = docker("top", server.name, "-eo", "pid,user,args").stdout.splitlines()[1:]
        (process,) = [line.split(maxsplit=2) for line in processes]
        assert process[1] not in ("root", "0")
        assert process[2].endswith("python /opt/serve.py serve")


def test_the_serving_image_stops_gracefully(model, sign):
    with serving(model) as server:
        server.predict(sign)
        # Docker kills it after 30 seconds, with exit code 137
        docker("stop", "--time", "30", server.name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", server.name).stdout.strip() == "0"


def test_the_plain_model_serves_without_a_network(model):
    """EnableNetworkIsolation allows no installation at the start and no calls."""
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/ping', timeout=2).status)"
    with container("--network", "none", "--volume", f"{model}:/opt/ml/model:ro", SERVING, "serve") as name:
        deadline = time.monotonic() + 60
        while (done := docker("exec", name, "python", "-c", ask, check=False)).stdout.strip() != "200":
            assert time.monotonic() < deadline, done.stderr + logs(name)
            time.sleep(0.2)


def test_the_hooked_model_writes_its_traces_before_it_stops(model, sign):
    with EmbeddedAws(also_on=docker_bridge()) as aws:
        s3 = aws.client("s3")
        s3.create_bucket(Bucket="traces", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        environment = {
            "tensors_output": "s3://traces/tensors/traffic-signs",
            "REPLAY_KEY": replays.KEY.text,
            "AWS_ENDPOINT_URL": f"http://{docker_bridge()}:{aws.port}",
            "AWS_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        options = [part for item in environment.items() for part in ("--env", "=".join(item))]
        with serving(model, *options) as server:
            for number in range(3):
                marker = replays.marker(
                    npy(sign), f"{datetime.now(UTC):%Y%m%dt%H%M%S}-operator", f"sign-{number}"
                )
                replay = {"X-Amzn-SageMaker-Custom-Attributes": marker}
                assert server.predict(sign, **replay)[0] == 200
            docker("stop", "--time", "30", server.name)
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket="traces").get("Contents", ())]
        assert len([key for key in keys if "/index/" in key]) == 3


def test_the_container_exits_with_the_reason_when_the_model_does_not_load(tmp_path):
    (tmp_path / "code").mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "code" / "inference.py").write_text("raise RuntimeError('no weights here')")
    done = docker("run", "--rm", "--volume", f"{tmp_path}:/opt/ml/model:ro", SERVING, "serve", check=False)
    assert done.returncode != 0
    assert "no weights here" in done.stderr


# ---------------------------------------------------------------- the monitor image

PROCESSING = "/opt/ml/processing"
ENVIRONMENT = {
    "dataset_format": '{"sagemakerCaptureJson": {"captureIndexNames": ["endpointInput","endpointOutput"]}}',
    "dataset_source": f"{PROCESSING}/input/endpoint",
    "output_path": f"{PROCESSING}/output",
    "publish_cloudwatch_metrics": "Enabled",
    "sagemaker_endpoint_name": "traffic-signs",
    "sagemaker_monitoring_schedule_name": "hourly",
    "start_time": "2026-11-23T10: 00: 00Z",
    "end_time": "2026-11-23T11: 00: 00Z",
    "THRESHOLD": "0.5",
}


def monitor(root, **changes):
    """Run the monitor image on a tree as SageMaker mounts it, and return the process."""
    for folder in ("processing/output", "output", "config"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "config" / "resourceconfig.json").write_text('{"current_host":"algo-1","hosts":["algo-1"]}')
    environment = {name: value for name, value in (ENVIRONMENT | changes).items() if value is not None}
    options = [part for item in environment.items() for part in ("--env", "=".join(item))]
    return docker("run", "--rm", "--volume", f"{root}:/opt/ml", *options, MONITOR, check=False)


def test_the_monitor_image_checks_the_hour_and_writes_its_files(tmp_path):
    folder = tmp_path / "processing/input/endpoint/traffic-signs/AllTraffic/2026/11/23/10"
    folder.mkdir(parents=True)
    (folder / "20-02-871-0b7bfd33.jsonl").write_bytes(captures.file(captures.ARTICLE))
    done = monitor(tmp_path)
    assert done.returncode == 0
    assert "14: 322" in done.stdout + done.stderr
    message = (tmp_path / "output" / "message").read_text()
    assert message.startswith("CompletedWithViolations: Class 14 predicted 80.50% of the time")
    output = tmp_path / "processing" / "output"
    violations = json.loads((output / "constraint_violations.json").read_text())["violations"]
    assert violations[0]["feature_name"] == "PredictedClass"
    assert json.loads((output / "statistics.json").read_text())["dataset"]["item_count"] == 400
    metrics = (tmp_path / "output/metrics/cloudwatch/cloudwatch_metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["MetricName"] for line in metrics)


def test_the_monitor_image_completes_for_an_empty_hour(tmp_path):
    (tmp_path / "processing/input/endpoint").mkdir(parents=True)
    assert monitor(tmp_path).returncode == 0
    assert (tmp_path / "output" / "message").read_text().startswith("Completed: ")


def test_the_monitor_image_fails_with_every_invalid_setting(tmp_path):
    done = monitor(tmp_path, THRESHOLD=None, MIN_PREDICTIONS="0")
    assert done.returncode != 0
    message = (tmp_path / "output" / "message").read_text()
    assert "THRESHOLD is not set" in message
    assert "MIN_PREDICTIONS='0'" in message
    assert not list((tmp_path / "processing" / "output").iterdir())
