"""Check which models the deploy tool takes for unhooked, and what their twin gets."""

import http.server
import io
import json
import re
import tarfile
import threading
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

import package
from deploy import DeployError
from deploy.hook import (
    MOUNT,
    Hooks,
    channel_problem,
    contains_hook,
    delete_hooks,
    image_pythonpath,
    read_hooks,
    upload_hook,
    with_hook,
)
from deploy.twin import NO_HOOKS, Overrides, check_twin
from deploy.watched_endpoint import WatchedEndpoint

REGION, BUCKET = "eu-west-1", "models"
IMAGE = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/acme/serving:7"
DIGEST = "sha256:" + "5" * 64


@pytest.fixture
def s3(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        client = boto3.client("s3", region_name=REGION)
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield client


class Ecr:
    """A registry with one image, whose config is at `url`."""

    def __init__(self, url="", manifest=None, refusal=None):
        self.url, self.refusal, self.asked = url, refusal, []
        self.manifest = {"config": {"digest": DIGEST}} if manifest is None else manifest

    def batch_get_image(self, **request):
        self.asked.append(request)
        if self.refusal:
            raise ClientError({"Error": {"Code": self.refusal, "Message": "no"}}, "BatchGetImage")
        return {"images": [{"imageManifest": json.dumps(self.manifest)}] if self.manifest else []}

    def get_download_url_for_layer(self, **request):
        self.asked.append(request)
        return {"downloadUrl": self.url}


@pytest.fixture
def download():
    """Serve one response over HTTP and return its URL."""
    servers = []

    def serve(content, status=200):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/config"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def put_archive(s3, *names, key="model.tar.gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    s3.put_object(Bucket=BUCKET, Key=key, Body=buffer.getvalue())
    return f"s3://{BUCKET}/{key}"


def watched(container):
    role = "arn:aws:iam::123456789012:role/acme"
    model = {"ModelName": "signs", "ExecutionRoleArn": role, "PrimaryContainer": container}
    variant = {"VariantName": "Blue", "ModelName": "signs"}
    config = {"EndpointConfigName": "v1", "ProductionVariants": [variant]}
    return WatchedEndpoint({"EndpointName": "shop"}, config, {"signs": model}, "captures", "c", "", "")


def hooks_of(container, s3, ecr, *, replaced=False):
    session = SimpleNamespace(client=lambda name: {"s3": s3, "ecr": ecr}[name])
    return read_hooks(watched(container), replaced=replaced, session=session)


# ---------------------------------------------------------------- which models are unhooked


def test_an_archive_of_ours_contains_the_hook(s3, tmp_path):
    weights, archive = tmp_path / "weights.pt", tmp_path / "model.tar.gz"
    weights.write_bytes(b"weights")
    package.package(weights, archive)
    s3.put_object(Bucket=BUCKET, Key="ours.tar.gz", Body=archive.read_bytes())
    assert contains_hook({"ModelDataUrl": f"s3://{BUCKET}/ours.tar.gz"}, s3)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("model.pth", "code/inference.py"), False),
        (("recorder.py", "code/recorder.py.bak", "other/code/recorder.py"), False),
        (("model.pth", "code/recorder.py"), True),
        (("./code/recorder.py",), True),
        ((), False),
    ],
)
def test_the_hook_is_recognised_by_its_place_in_the_archive(s3, names, expected):
    uri = put_archive(s3, *names)
    assert contains_hook({"ModelDataUrl": uri}, s3) is expected
    source = {"S3Uri": uri, "S3DataType": "S3Object", "CompressionType": "Gzip"}
    assert contains_hook({"ModelDataSource": {"S3DataSource": source}}, s3) is expected


def test_the_hook_is_recognised_below_a_prefix(s3):
    source = {"S3Uri": f"s3://{BUCKET}/one/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {"ModelDataSource": {"S3DataSource": source}}
    s3.put_object(Bucket=BUCKET, Key="one/code/recorder.py.bak", Body=b"")
    assert not contains_hook(container, s3)
    s3.put_object(Bucket=BUCKET, Key="one/code/recorder.py", Body=b"")
    assert contains_hook(container, s3)


@pytest.mark.parametrize(
    ("environment", "program"), [({}, "inference.py"), ({"SAGEMAKER_PROGRAM": "serve.py"}, "serve.py")]
)
def test_a_repacked_archive_loads_the_hook_as_its_program(s3, environment, program):
    uri = put_archive(s3, "model.pth", "code/glassbox_program.py")
    endpoint = watched({"Image": "acme", "Environment": environment})
    session = SimpleNamespace(client=lambda name: s3)
    hooks = read_hooks(endpoint, replaced=True, model_data=uri, session=session)
    expected = {"SAGEMAKER_PROGRAM": "glassbox_program.py", "GLASSBOX_PROGRAM": program}
    assert hooks == Hooks(programs={"signs": expected})
    other = put_archive(s3, "model.pth", "code/recorder.py", key="other")
    assert read_hooks(endpoint, replaced=True, model_data=other, session=session) == Hooks()


def test_an_unreadable_replacement_is_a_note(s3):
    session, endpoint = SimpleNamespace(client=lambda name: s3), watched({"Image": "acme"})
    hooks = read_hooks(endpoint, replaced=True, model_data=f"s3://{BUCKET}/absent", session=session)
    assert (hooks.paths, hooks.programs) == ({}, {})
    assert re.match(r"MODEL_DATA: expected a readable archive, got: .*NoSuchKey", hooks.notes[0])


def test_only_a_foreign_image_without_the_hook_gets_it_mounted(s3):
    plain, packed = put_archive(s3, "model.pth"), put_archive(s3, "code/recorder.py", key="packed")
    ecr = Ecr(refusal="AccessDeniedException")
    owner = {"PYTHONPATH": "/opt/acme:/opt/b"}
    foreign = {"Image": IMAGE, "ModelDataUrl": plain, "Environment": owner}
    assert hooks_of(foreign, s3, ecr).paths == {"signs": f"{MOUNT}:/opt/acme:/opt/b"}
    assert hooks_of({"Image": IMAGE, "Environment": owner}, s3, ecr).paths == {
        "signs": f"{MOUNT}:/opt/acme:/opt/b"
    }
    ours = IMAGE.replace("acme/serving", "glassbox-serving")
    for container in (
        foreign | {"ModelDataUrl": packed},
        foreign | {"Image": ours},
        {"ModelPackageName": "arn:aws:sagemaker:eu-west-1:123456789012:model-package/p/1"},
    ):
        assert hooks_of(container, s3, ecr) == NO_HOOKS
    assert hooks_of(foreign, s3, ecr, replaced=True) == NO_HOOKS
    assert not ecr.asked  # the model's own PYTHONPATH overrides the image's


def test_unreadable_model_data_are_noted_and_get_no_mount(s3):
    s3.put_object(Bucket=BUCKET, Key="text", Body=b"no archive")
    for key, reason in (("missing", "NoSuchKey"), ("text", "not a gzip file")):
        hooks = hooks_of({"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/{key}"}, s3, Ecr())
        assert not hooks.paths
        assert len(hooks.notes) == 1
        assert reason in hooks.notes[0]
        assert "must contain the hook" in hooks.notes[0]


# ---------------------------------------------------------------- the image's own PYTHONPATH


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (["PATH=/bin", "PYTHONPATH=/opt/a:/opt/b=c", "XPYTHONPATH=/no"], "/opt/a:/opt/b=c"),
        (["PATH=/bin", "XPYTHONPATH=/no"], ""),
        (None, ""),
    ],
)
def test_the_images_own_path_follows_the_hook(s3, download, variables, expected):
    ecr = Ecr(download(json.dumps({"config": {"Env": variables}}).encode()))
    hooks = hooks_of({"Image": IMAGE}, s3, ecr)
    assert hooks.notes == ()
    assert hooks.paths == {"signs": f"{MOUNT}:{expected}" if expected else MOUNT}
    where = {"registryId": "123456789012", "repositoryName": "acme/serving"}
    assert ecr.asked == [
        where | {"imageIds": [{"imageTag": "7"}]},
        where | {"layerDigest": DIGEST},
    ]
    assert image_pythonpath(f"{IMAGE}@{DIGEST}", ecr) == expected
    assert ecr.asked[2]["imageIds"] == [{"imageDigest": DIGEST}]


def test_an_unreadable_image_is_noted(s3, download):
    good = json.dumps({"config": {"Env": ["PYTHONPATH=/opt/a"]}}).encode()
    cases = [
        (Ecr(refusal="AccessDeniedException"), "AccessDeniedException"),
        (Ecr(manifest={}), "no such image"),
        (Ecr(manifest={"manifests": []}), "expected a manifest and a config"),
        (Ecr(download(b"text")), "expected a manifest and a config"),
        (Ecr(download(b"[]")), "expected a manifest and a config"),
        (Ecr(download(good, status=403)), "got 403"),
        (Ecr(download(good + b" " * 2**20)), "got 200 and 1048577 bytes"),
    ]
    for ecr, reason in cases:
        hooks = hooks_of({"Image": IMAGE}, s3, ecr)
        assert hooks.paths == {"signs": MOUNT}
        assert len(hooks.notes) == 1
        assert reason in hooks.notes[0]
        assert "Allow ecr:BatchGetImage and ecr:GetDownloadUrlForLayer" in hooks.notes[0]
    [note] = hooks_of({"Image": "docker.io/acme:7"}, s3, Ecr()).notes
    assert "expected an image in ECR, got docker.io/acme:7" in note


# ---------------------------------------------------------------- channel and files


def channels(*names):
    source = {"S3Uri": "s3://b/p/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    return {"AdditionalModelDataSources": [{"ChannelName": n, "S3DataSource": source} for n in names]}


def test_the_channel_follows_the_owners_and_changes_nothing_else():
    before = {"Image": IMAGE, "Environment": {"PYTHONPATH": "/a", "TEAM": "acme"}, **channels("own")}
    hooked = with_hook(before, "s3://b/hook/1/", f"{MOUNT}:/a")
    source = {"S3Uri": "s3://b/hook/1/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    assert hooked == {
        "Image": IMAGE,
        "Environment": {"PYTHONPATH": f"{MOUNT}:/a", "TEAM": "acme"},
        "AdditionalModelDataSources": [
            *channels("own")["AdditionalModelDataSources"],
            {"ChannelName": "glassbox", "S3DataSource": source},
        ],
    }
    assert before["Environment"]["PYTHONPATH"] == "/a"


def test_refuses_a_container_that_cannot_take_the_channel(s3):
    assert channel_problem(channels("a", "b", "c", "d")) == ""
    assert "at most 4 AdditionalModelDataSources" in channel_problem(channels("a", "b", "c", "d", "e"))
    container = {"Image": IMAGE, **channels("glassbox")}
    ecr = Ecr(refusal="AccessDeniedException")
    session = SimpleNamespace(client=lambda name: {"s3": s3, "ecr": ecr}[name])
    hooks = read_hooks(watched(container), replaced=False, session=session)
    with pytest.raises(DeployError, match="model signs: expected no channel glassbox"):
        check_twin(watched(container), "s", Overrides(), session, hooks)


def test_the_hook_is_uploaded_once_and_old_ones_are_deleted(s3, tmp_path):
    session = SimpleNamespace(client=lambda _: s3)
    uri = upload_hook(BUCKET, session)
    assert upload_hook(BUCKET, session) == uri
    package.write_hook(tmp_path)
    expected = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    prefix = uri.removeprefix(f"s3://{BUCKET}/")
    assert prefix.startswith("hook/")
    assert prefix.endswith("/")
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    found = {k.removeprefix(prefix): s3.get_object(Bucket=BUCKET, Key=k)["Body"].read() for k in keys}
    assert found == expected
    for key in ("hook/0/old.py", f"{prefix.rstrip('/')}0/near.py", "tensors/hook/1"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"")
    delete_hooks(BUCKET, session, keep=uri)
    left = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert set(left) == {*keys, "tensors/hook/1"}
    delete_hooks(BUCKET, session)
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["tensors/hook/1"]
