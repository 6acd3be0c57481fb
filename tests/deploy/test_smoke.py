"""Run `make smoke` on the embedded AWS: it checks every assumption and leaves nothing behind."""

import os
import re
import signal
import subprocess

import pytest

from local.emulator import ACCOUNT, REGION, ROOT, EmbeddedAws
from local.stack import REGISTRY
from local.waiting import wait_for

PYTHON = os.environ.get("GLASSBOX_DEPLOY", "")
PYTHONPATH = os.pathsep.join(str(ROOT / part) for part in ("layers/core/python", "model_code"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not PYTHON, reason="needs .venv-deploy and .venv-sam: make deploy-test"),
]
LINE = re.compile(
    r"assumed: (.+?); seen: (.+); (ok|DIFFERENT|not checked because .+)|assumed: .*; not checked .*"
)


@pytest.fixture(scope="module")
def aws():
    with EmbeddedAws() as aws:
        yield aws


@pytest.fixture
def smoke(aws):
    """Start `python -m deploy.smoke` as the account's root, in a new process group."""

    def start(*arguments):
        settings = [f"AwsEndpointUrl={aws.endpoint_url}", f"MonitorImage={REGISTRY}/glassbox-monitor:local"]
        account = aws.environment | {"AWS_REGION": REGION, "PYTHONPATH": PYTHONPATH}
        command = [str(ROOT / PYTHON), "-u", "-m", "deploy.smoke", "--patience", "60", *arguments]
        image = f"{REGISTRY}/glassbox-serving:local"
        return subprocess.Popen(
            [*command, "--image", image, "--set", *settings],
            cwd=ROOT,
            env=os.environ | account,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # a background process may inherit an ignored SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def resources(aws):
    """List the resources of the account, except the records of processing jobs."""

    def client(name):
        return aws.client(name)

    stacks = client("cloudformation").list_stacks()["StackSummaries"]
    return {
        "buckets": [b["Name"] for b in client("s3").list_buckets()["Buckets"]],
        "tables": client("dynamodb").list_tables()["TableNames"],
        "queues": client("sqs").list_queues().get("QueueUrls", []),
        "topics": client("sns").list_topics()["Topics"],
        "rules": client("events").list_rules()["Rules"],
        "roles": client("iam").list_roles()["Roles"],
        "alarms": client("cloudwatch").describe_alarms()["MetricAlarms"],
        "functions": client("lambda").list_functions()["Functions"],
        "models": client("sagemaker").list_models()["Models"],
        "configs": client("sagemaker").list_endpoint_configs()["EndpointConfigs"],
        "endpoints": client("sagemaker").list_endpoints()["Endpoints"],
        "stacks": [
            s["StackName"]
            for s in stacks
            if s["StackStatus"] != "DELETE_COMPLETE" and s["StackName"].startswith("glassbox-smoke")
        ],
    }


def without_sam(found):
    """Drop the bucket that `sam deploy` creates once per account."""
    return {
        **found,
        "buckets": [name for name in found["buckets"] if not name.startswith("aws-sam-cli")],
    }


def test_smoke_checks_every_assumption_and_leaves_nothing(aws, smoke):
    before = without_sam(resources(aws))
    process = smoke()
    output, _ = process.communicate(timeout=420)
    assert process.returncode == 0, output
    lines = [line for line in output.splitlines() if line.startswith("assumed: ")]
    assert all(LINE.fullmatch(line) for line in lines)
    ok = [line for line in lines if line.endswith("; ok")]
    assert len(ok) == 17, output
    assert "0 of 17 assumptions are DIFFERENT" in output
    assert all("; not checked because " in line for line in lines if line not in ok)
    assert without_sam(resources(aws)) == before


def test_smoke_removes_everything_after_an_interrupt(aws, smoke):
    before = without_sam(resources(aws))
    process = smoke()
    output = ""
    while "assumed: an alarm" not in output:
        line = process.stdout.readline()
        assert line, output
        output += line
    s3, other_model = (
        aws.client("s3"),
        {"Bucket": f"sagemaker-{REGION}-{ACCOUNT}", "Key": "glassbox/0123/model.tar.gz"},
    )
    s3.put_object(**other_model, Body=b"of another stack")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Interrupted." in rest
    assert "LEFT" not in rest
    models = s3.list_objects_v2(Bucket=other_model["Bucket"]).get("Contents", ())
    assert [model["Key"] for model in models] == [other_model["Key"]]
    s3.delete_object(**other_model)
    s3.delete_bucket(Bucket=other_model["Bucket"])
    assert without_sam(resources(aws)) == before


def test_smoke_removes_everything_after_an_interrupt_of_the_deployment(aws, smoke):
    before = without_sam(resources(aws))
    process = smoke()
    wait_for(lambda: [s for s in resources(aws)["stacks"] if s], 120)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "LEFT" not in output
    assert without_sam(resources(aws)) == before
