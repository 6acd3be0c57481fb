"""render_saliency as Lambda runs it, against moto, with traces of smdebug's writer."""

import io
import json
import re
from types import SimpleNamespace

import boto3
import pytest
import torch
from moto import mock_aws
from PIL import Image

import traces
import zoo

BUCKET = "amzn-s3-demo-bucket"
RUNS = "tensors/traffic-signs"
INDEX = "index/000000000/000000000000_worker_0.json"
EVENTS = "events/000000000000/000000000000_worker_0.tfevents"
CONTEXT = SimpleNamespace(
    function_name="render_saliency",
    memory_limit_in_mb=512,
    invoked_function_arn="arn:aws:lambda:eu-west-1:111122223333:function:render_saliency",
    aws_request_id="52fdfc07-2182-154f-163f-5f0f9a621d72",
    get_remaining_time_in_millis=lambda: 30_000,
)


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """A step of two samples: the bytes of its files by their paths."""
    folder = tmp_path_factory.mktemp("step")
    model, image = zoo.build("1×1 maps, one channel")
    terms = zoo.autograd_terms(model, image, dtype=torch.float32)
    traces.write_step(folder, traces.reduced(terms, model))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def s3(monkeypatch):
    for name, value in {
        "BUCKET": BUCKET,
        "ENDPOINT_NAME": "traffic-signs",
        "INCIDENTS_TABLE": "incidents",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        boto3.client("dynamodb").create_table(
            TableName="incidents",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in ("pk", "sk")],
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
        )
        yield client


def upload(s3, run, files):
    """Upload a trace and return the key of its index."""
    for path, body in files.items():
        s3.put_object(Bucket=BUCKET, Key=f"{RUNS}/{run}/{path}", Body=body)
    return f"{RUNS}/{run}/{INDEX}"


def test_invalid_trace_fails_alone_and_the_next_one_is_rendered(s3, step, load_app, load_event, caplog):
    truncated = upload(s3, "cut", step | {EVENTS: step[EVENTS][:-100]})
    foreign = f"{RUNS}/notes.json"
    s3.put_object(Bucket=BUCKET, Key=foreign, Body=step[INDEX])
    good = upload(s3, "good", step)
    (message,) = load_event("sqs-tensor-index")["Records"]

    def announced(key):
        return json.dumps({"detail": {"bucket": {"name": BUCKET}, "object": {"key": key, "etag": "e"}}})

    bodies = [announced(truncated), announced(foreign), "no JSON", announced(good)]
    records = [message | {"messageId": f"message-{n}", "body": body} for n, body in enumerate(bodies)]
    answer = load_app("render_saliency").handler({"Records": records}, CONTEXT)

    assert answer == {"batchItemFailures": [{"itemIdentifier": f"message-{n}"} for n in range(3)]}
    reasons = [str(e.exc_info[1]) for e in caplog.records if e.name == "glassbox" and e.exc_info]
    assert len(reasons) == 3
    assert re.fullmatch(rf"{RUNS}/cut/\S+: \S.+", reasons[0])
    assert reasons[1].startswith(f"{foreign}: expected the index of a step")
    assert "Expecting value" in reasons[2]

    written = {o["Key"] for o in s3.list_objects_v2(Bucket=BUCKET, Prefix="saliency/")["Contents"]}
    stem = "saliency/traffic-signs/live/good-000000"
    assert written == {f"{stem}{n}.{kind}" for n in ("", "-1") for kind in ("png", "webp", "json")}
    for name in (stem, f"{stem}-1"):
        png, facts = (
            s3.get_object(Bucket=BUCKET, Key=name + kind)["Body"].read() for kind in (".png", ".json")
        )
        with Image.open(io.BytesIO(png)) as image:
            assert image.format == "PNG"
        assert json.loads(facts)["completeness"]["complete"] is True
