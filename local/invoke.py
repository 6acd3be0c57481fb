"""`sam local invoke` of a function on the embedded AWS, so that it really reads and writes there.

    python -m local.invoke swap_endpoint [--event events/sqs-violation.json]

It takes the AWS that `make local` left running, or starts one for as long as it lasts. What the events speak of (a
capture file, a traced step) is laid there first. The function gets the variables and the rights that it has there.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from demo import signs
from local.emulator import REGION, ROOT, EmulatorError, RunningAws, docker_bridge
from local.stack import Stack, running_stack

EVENTS = {
    "count_predictions": "sqs-capture",
    "start_monitor": "sqs-monitor",
    "swap_endpoint": "sqs-violation",
    "confirm_endpoint": "sqs-endpoint-in-service",
    "render_saliency": "sqs-tensor-index",
    "restore_endpoint": "sqs-command-abort",
}
PORT = 4566
SAMPLE_BUCKET = "amzn-s3-demo-bucket"  # what events/ calls the stack's
SAMPLE_ETAG = "b1946ac92492d2347c6235b4d2611184"  # and the capture file's
TRACED = "traced"  # an endpoint that is always hooked
IMAGE_SIZE = 48
PARAMETERS = {"MaxClassShare": "0.5"}


class InvokeError(RuntimeError):
    """The function could not be run, or failed."""


def invoke(stack: Stack, function: str, event: dict[str, Any], *, address: str, sam: str) -> Any:
    """Run a function in a container with its own role's rights; what it returned.

    Args:
        function: the name of its folder in functions/.
        address: where containers find the embedded AWS, `host:port`.
        sam: the SAM CLI.

    Raises:
        InvokeError: SAM could not run it, or it raised.
    """
    logical_id = "".join(word.title() for word in function.split("_")) + "Function"
    name = stack.resources("AWS::Lambda::Function")[logical_id]
    deployed = stack.client("lambda").get_function_configuration(FunctionName=name)
    variables = deployed["Environment"]["Variables"] | {"AWS_ENDPOINT_URL": f"http://{address}"}
    role = stack.aws.control("credentials", role=deployed["Role"], service="lambda.amazonaws.com")
    with tempfile.TemporaryDirectory() as folder:
        event_file, variables_file = Path(folder) / "event.json", Path(folder) / "variables.json"
        event_file.write_text(json.dumps(event))
        variables_file.write_text(json.dumps({logical_id: variables}))
        command = [sam, "local", "invoke", logical_id, "--event", str(event_file)]
        command += ["--env-vars", str(variables_file), "--region", REGION]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | stack.aws.environment | role | {"SAM_CLI_TELEMETRY": "0"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise InvokeError(f"sam local invoke {logical_id} ended with {done.returncode}") from None
    if isinstance(answer, dict) and "errorMessage" in answer:
        raise InvokeError(f"{function}: {answer['errorMessage']}")
    return answer


def read_event(path: Path, stack: Stack) -> dict[str, Any]:
    """An event for `sam local invoke`; the samples' bucket and etag give way to those that are there.

    What EventBridge would send is put into a message, as its rule would.

    Raises:
        InvokeError: it is no event.
    """
    try:
        text = path.read_text().replace(SAMPLE_BUCKET, stack.outputs["Bucket"])
        event: dict[str, Any] = json.loads(text.replace(SAMPLE_ETAG, _etag(stack)))
        if "Records" in event:
            return event
        (record,) = json.loads((ROOT / "events" / "sqs-capture.json").read_text())["Records"]
        return {"Records": [record | {"body": json.dumps({"detail-type": event["detail-type"], **event})}]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvokeError(f"{path}: not an event, of SQS or EventBridge: {error}") from error


def _etag(stack: Stack) -> str:
    head = stack.client("s3").head_object
    return str(
        head(Bucket=stack.outputs["Bucket"], Key=object_of("capture-object-created"))["ETag"].strip('"')
    )


def object_of(name: str) -> str:
    """The key of the object that events/<name>.json speaks of."""
    key: str = json.loads((ROOT / "events" / f"{name}.json").read_text())["detail"]["object"]["key"]
    return key


@contextlib.contextmanager
def paused(stack: Stack) -> Iterator[None]:
    """Within, nobody but `sam local invoke` takes messages: the embedded AWS would run the same functions."""
    lambdas = stack.client("lambda")
    mappings = lambdas.list_event_source_mappings()["EventSourceMappings"]
    for mapping in mappings:
        lambdas.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    try:
        yield
    finally:
        for mapping in mappings:
            lambdas.update_event_source_mapping(UUID=mapping["UUID"], Enabled=True)


def lay_capture(stack: Stack) -> None:
    """The capture file of events/capture-object-created.json: 60 drawn signs, 50 of which are class 14."""
    images, labels = signs.dataset(400, seed=77, size=IMAGE_SIZE)
    stop_signs, others = images[labels == 14], images[labels != 14]
    lines = []
    for number in range(60):
        of, predicted = (others, 3) if number % 6 == 0 else (stop_signs, 14)
        answer = {"predictions": [{"class": predicted, "label": None, "probability": 0.9}]}
        sides = {
            "endpointInput": {
                "observedContentType": "application/x-npy",
                "mode": "INPUT",
                "data": base64.b64encode(npy(of[number % len(of)])).decode(),
                "encoding": "BASE64",
            },
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                "data": json.dumps(answer),
                "encoding": "JSON",
            },
        }
        happened = {
            "eventId": f"captured-{number:02}",
            "inferenceTime": f"2026-11-23T10:{number // 3:02}:{number % 3 * 20:02}Z",
        }
        lines.append(json.dumps({"captureData": sides, "eventMetadata": happened, "eventVersion": "0"}))
    body = "".join(f"{line}\n" for line in lines).encode()
    stack.client("s3").put_object(
        Bucket=stack.outputs["Bucket"], Key=object_of("capture-object-created"), Body=body
    )


def lay_trace(stack: Stack) -> None:
    """The traced step of events/tensor-index-created.json, by an endpoint of its own with the hooked model."""
    sagemaker, s3, bucket = stack.client("sagemaker"), stack.client("s3"), stack.outputs["Bucket"]
    earlier = set(_indexes(s3, bucket))
    sagemaker.create_endpoint(EndpointName=TRACED, EndpointConfigName=stack.outputs["HookedConfig"])
    try:
        sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName=TRACED, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
        images, _ = signs.dataset(1, seed=14, size=IMAGE_SIZE)
        stack.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=TRACED, ContentType="application/x-npy", Body=npy(images[0])
        )
        index = _new_index(s3, bucket, earlier)
    finally:
        sagemaker.delete_endpoint(EndpointName=TRACED)
    run, sample = index.split("/")[2], object_of("tensor-index-created").split("/")[2]
    root = index.partition("/index/")[0]
    for item in s3.list_objects_v2(Bucket=bucket, Prefix=f"{root}/")["Contents"]:
        source = {"Bucket": bucket, "Key": item["Key"]}
        s3.copy_object(Bucket=bucket, Key=item["Key"].replace(run, sample), CopySource=source)


def _indexes(s3: Any, bucket: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="tensors/traffic-signs/")
    return [o["Key"] for page in pages for o in page.get("Contents", ()) if "/index/" in o["Key"]]


def _new_index(s3: Any, bucket: str, earlier: set[str], seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if new := set(_indexes(s3, bucket)) - earlier:
            return min(new)
        time.sleep(0.1)
    raise InvokeError(f"no trace within {seconds:g} s")


def npy(image: np.ndarray) -> bytes:
    """An image as clients send it."""
    body = io.BytesIO()
    np.save(body, image, allow_pickle=False)
    return body.getvalue()


@contextlib.contextmanager
def _stack(host: str) -> Iterator[tuple[Stack, str]]:
    """The stack that `make local` left running, or one of our own; and where containers find its AWS."""
    running = RunningAws(f"http://{host}:{PORT}")
    if running.answers():
        described = running.client("cloudformation").describe_stacks(StackName="glassbox")["Stacks"][0]
        outputs = {o["OutputKey"]: o["OutputValue"] for o in described["Outputs"]}
        yield Stack(running, outputs), f"{host}:{PORT}"
    else:
        print("Starting the embedded AWS and deploying template.yaml …", file=sys.stderr)
        with running_stack(PARAMETERS, also_on=host) as stack:
            yield stack, f"{host}:{stack.aws.endpoint_url.rpartition(':')[2]}"


def _seen(stack: Stack) -> set[str]:
    """What lies in the bucket and in the tables, a line each."""
    s3, dynamodb = stack.client("s3"), stack.client("dynamodb")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=stack.outputs["Bucket"])
    seen = {f"s3://{stack.outputs['Bucket']}/{o['Key']}" for page in pages for o in page.get("Contents", ())}
    for table in ("CountsTable", "IncidentsTable"):
        items = dynamodb.scan(TableName=stack.outputs[table])["Items"]
        seen |= {f"{table} {json.dumps(item, sort_keys=True)}" for item in items}
    return seen


def main() -> None:
    """Run one function on one event, and show what it returned and what is new in S3 and DynamoDB."""
    parser = argparse.ArgumentParser(
        prog="python -m local.invoke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("function", choices=EVENTS)
    parser.add_argument("--event", type=Path, help="an SQS event (default: the function's own in events/)")
    parser.add_argument("--sam", default=str(ROOT / ".venv-sam" / "bin" / "sam"))
    chosen = parser.parse_args()
    event = chosen.event or ROOT / "events" / f"{EVENTS[chosen.function]}.json"
    if not event.is_file():
        sys.exit(f"{event} is no file")
    host = docker_bridge()
    if not host:
        sys.exit("sam local invoke: expected a Docker engine on this Linux machine, found none. Start one.")
    try:
        with _stack(host) as (stack, address), paused(stack):
            lay_capture(stack)
            if chosen.function == "render_saliency":
                lay_trace(stack)
            before = _seen(stack)
            given = read_event(event, stack)
            print(json.dumps(invoke(stack, chosen.function, given, address=address, sam=chosen.sam)))
            for line in sorted(_seen(stack) - before):
                print(f"new: {line}")
    except (EmulatorError, InvokeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
