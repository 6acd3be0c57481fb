"""`make smoke` on the embedded AWS: each assumption is checked, and nothing is left."""

import os
import re
import signal
import subprocess

import pytest

from local.emulator import ACCOUNT, REGION, ROOT, EmbeddedAws
from local.stack import REGISTRY
from watching import wait_for

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
    """Starts `python -m deploy.smoke` with the account's rights, in a process group of its own."""

    def start(*arguments):
        given = [f"AwsEndpointUrl={aws.endpoint_url}", f"MonitorImage={REGISTRY}/glassbox-monitor:local"]
        account = aws.environment | {"AWS_REGION": REGION, "PYTHONPATH": PYTHONPATH}
        command = [str(ROOT / PYTHON), "-u", "-m", "deploy.smoke", "--patience", "60", *arguments]
        image = f"{REGISTRY}/glassbox-serving:local"
        return subprocess.Popen(
            [*command, "--image", image, "--set", *given],
            cwd=ROOT,
            env=os.environ | account,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # what is started in the background may have been told to ignore it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def left(aws):
    """What is in the account, but for the record of processing jobs."""

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


def sams(found):
    """Without sam deploy's own bucket and stack, which it makes once in an account."""
    return {
        **found,
        "buckets": [name for name in found["buckets"] if not name.startswith("aws-sam-cli")],
    }


def test_every_assumption_is_checked_and_nothing_is_left(aws, smoke):
    before = sams(left(aws))
    process = smoke()
    said, _ = process.communicate(timeout=420)
    assert process.returncode == 0, said
    lines = [line for line in said.splitlines() if line.startswith("assumed: ")]
    assert all(LINE.fullmatch(line) for line in lines)
    ok = [line for line in lines if line.endswith("; ok")]
    assert len(ok) == 17, said
    assert "0 of 17 assumptions are DIFFERENT" in said
    assert all("; not checked because " in line for line in lines if line not in ok)
    assert sams(left(aws)) == before


def test_an_interrupted_rehearsal_is_removed(aws, smoke):
    before = sams(left(aws))
    process = smoke()
    said = ""
    while "assumed: an alarm" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    s3, theirs = (
        aws.client("s3"),
        {"Bucket": f"sagemaker-{REGION}-{ACCOUNT}", "Key": "glassbox/0123/model.tar.gz"},
    )
    s3.put_object(**theirs, Body=b"of a stack that is deployed meanwhile")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    rest, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Interrupted." in rest
    assert "LEFT" not in rest
    models = s3.list_objects_v2(Bucket=theirs["Bucket"]).get("Contents", ())
    assert [model["Key"] for model in models] == [theirs["Key"]]
    s3.delete_object(**theirs)
    s3.delete_bucket(Bucket=theirs["Bucket"])
    assert sams(left(aws)) == before


def test_a_rehearsal_interrupted_while_it_deploys_is_removed(aws, smoke):
    before = sams(left(aws))
    process = smoke()
    wait_for(lambda: [s for s in left(aws)["stacks"] if s], 120)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "LEFT" not in said
    assert sams(left(aws)) == before
