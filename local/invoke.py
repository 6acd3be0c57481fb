"""Run a function on the embedded AWS with `sam local invoke`.

    python -m local.invoke swap_endpoint [--event events/sqs-violation.json]

It uses the AWS that `make local` left running, or starts one for this run. Before that, it stores the objects that the
sample events name (a capture file, a traced step). The function has the variables and the role of the deployed one.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from local.emulator import REGION, ROOT, EmulatorError, RunningAws, docker_bridge
from local.stack import Stack, npy, running_stack
from local.waiting import wait_for

SAMPLES = ROOT / "events"
EVENTS = {
    "count_predictions": "sqs-capture",
    "start_monitor": "sqs-monitor",
    "swap_endpoint": "sqs-violation",
    "confirm_endpoint": "sqs-endpoint-in-service",
    "render_saliency": "sqs-tensor-index",
    "restore_endpoint": "sqs-command-abort",
    "diagnose_incident": "sqs-diagnosis",
    "dashboard_widget": "dashboard-widget",
    "dashboard_command": "dashboard-command",
}
PORT = 4566
SAMPLE_BUCKET = "amzn-s3-demo-bucket"  # stands for the stack's bucket in events/
SAMPLE_ETAG = "b1946ac92492d2347c6235b4d2611184"  # stands for the capture file's
SAMPLE_INCIDENT = "20261123t102105-class-share"  # stands for the open incident
TRACED = "traced"  # an endpoint that always runs the hooked model
PARAMETERS = {"MaxClassShare": "0.5", "Diagnose": "true"}


class InvokeError(RuntimeError):
    """The function could not be run, or it failed."""


def invoke(stack: Stack, function: str, event: dict[str, Any], *, address: str, sam: str) -> Any:
    """Run a function in a container with its role's permissions and return its result.

    Args:
        function: the name of its folder in functions/.
        address: `host:port` at which containers reach the embedded AWS.
        sam: the SAM CLI.

    Raises:
        InvokeError: SAM could not run the function, or the function raised.
    """
    logical_id = "".join(word.title() for word in function.split("_")) + "Function"
    functions = stack.resources("AWS::Lambda::Function")
    if logical_id not in functions:
        raise InvokeError(
            f"{function}: the stack of make local does not have it (Diagnose=false). Stop make local."
        )
    name = functions[logical_id]
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
        raise InvokeError(
            f"sam local invoke {logical_id}: expected JSON, got exit status {done.returncode}."
        ) from None
    if isinstance(answer, dict) and "errorMessage" in answer:
        raise InvokeError(f"{function}: {answer['errorMessage']}")
    return answer


def read_event(path: Path, stack: Stack) -> dict[str, Any]:
    """Read an event and replace the sample's bucket, etag and incident by the stack's.

    An EventBridge event is wrapped into an SQS message, as its rule does. A dashboard calls its functions directly.

    Raises:
        InvokeError: the file is not an event of SQS, EventBridge or a dashboard.
    """
    try:
        text = path.read_text().replace(SAMPLE_BUCKET, stack.outputs["Bucket"])
        text = text.replace(SAMPLE_INCIDENT, _incident(stack))
        event: dict[str, Any] = json.loads(text.replace(SAMPLE_ETAG, _etag(stack)))
        if "Records" in event or "widgetContext" in event:
            return event
        [record] = json.loads((SAMPLES / "sqs-capture.json").read_text())["Records"]
        return {"Records": [record | {"body": json.dumps({"detail-type": event["detail-type"], **event})}]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvokeError(f"{path}: expected an event of SQS or EventBridge, got {error}.") from error


def _etag(stack: Stack) -> str:
    head = stack.client("s3").head_object
    return str(
        head(Bucket=stack.outputs["Bucket"], Key=object_of("capture-object-created"))["ETag"].strip('"')
    )


def _incident(stack: Stack) -> str:
    key = {"pk": {"S": stack.outputs["EndpointName"]}, "sk": {"S": "current"}}
    found = stack.client("dynamodb").get_item(TableName=stack.outputs["IncidentsTable"], Key=key)
    return str(found["Item"]["id"]["S"]) if "Item" in found else SAMPLE_INCIDENT


def object_of(name: str) -> str:
    """Return the key of the object that events/<name>.json names."""
    key: str = json.loads((SAMPLES / f"{name}.json").read_text())["detail"]["object"]["key"]
    return key


@contextlib.contextmanager
def paused(stack: Stack) -> Iterator[None]:
    """Disable the event sources, so that the embedded AWS processes no message itself."""
    functions = stack.client("lambda")
    mappings = functions.list_event_source_mappings()["EventSourceMappings"]
    for mapping in mappings:
        functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    try:
        yield
    finally:
        for mapping in mappings:
            functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=True)


def _sample_image(name: str) -> NDArray[np.uint8]:
    with Image.open(SAMPLES / f"{name}.png") as image:
        return np.array(image.convert("RGB"))


def store_capture(stack: Stack) -> None:
    """Store 50 stop signs and 10 others as the file of events/capture-object-created.json."""
    signs = {14: _sample_image("stop-sign"), 13: _sample_image("yield-sign")}
    lines = []
    for number in range(60):
        predicted = 13 if number % 6 == 0 else 14
        image = signs[predicted].copy()
        image[0, 0] = number  # no two requests are equal
        answer = {"predictions": [{"class": predicted, "label": None, "probability": 0.9}]}
        sides = {
            "endpointInput": {
                "observedContentType": "application/x-npy",
                "mode": "INPUT",
                "data": base64.b64encode(npy(image)).decode(),
                "encoding": "BASE64",
            },
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                "data": json.dumps(answer),
                "encoding": "JSON",
            },
        }
        metadata = {
            "eventId": f"captured-{number:02}",
            "inferenceTime": f"2026-11-23T10:{number // 3:02}:{number % 3 * 20:02}Z",
        }
        lines.append(json.dumps({"captureData": sides, "eventMetadata": metadata, "eventVersion": "0"}))
    body = "".join(f"{line}\n" for line in lines).encode()
    stack.client("s3").put_object(
        Bucket=stack.outputs["Bucket"], Key=object_of("capture-object-created"), Body=body
    )


def store_trace(stack: Stack) -> None:
    """Trace a request on a second endpoint, as the step of events/tensor-index-created.json."""
    sagemaker, s3, bucket = stack.client("sagemaker"), stack.client("s3"), stack.outputs["Bucket"]
    earlier = set(_indexes(s3, bucket))
    sagemaker.create_endpoint(EndpointName=TRACED, EndpointConfigName=stack.outputs["HookedConfig"])
    try:
        sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName=TRACED, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
        stack.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=TRACED, ContentType="application/x-npy", Body=npy(_sample_image("stop-sign"))
        )
        index = min(wait_for(lambda: set(_indexes(s3, bucket)) - earlier, 20, "a trace"))
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


@contextlib.contextmanager
def _stack(host: str) -> Iterator[tuple[Stack, str]]:
    """Yield the stack of `make local`, or a new one, and the address at which containers reach its AWS."""
    running = RunningAws(f"http://{host}:{PORT}")
    if running.answers():
        described = running.client("cloudformation").describe_stacks(StackName="glassbox")["Stacks"][0]
        outputs = {o["OutputKey"]: o["OutputValue"] for o in described["Outputs"]}
        yield Stack(running, outputs), f"{host}:{PORT}"
    else:
        print("Starting the embedded AWS and deploying template.yaml …", file=sys.stderr)
        with running_stack(PARAMETERS, also_on=host) as stack:
            yield stack, f"{host}:{stack.aws.endpoint_url.rpartition(':')[2]}"


def contents(stack: Stack) -> set[str]:
    """Return the objects of the bucket and the items of the tables, one line for each."""
    s3, dynamodb = stack.client("s3"), stack.client("dynamodb")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=stack.outputs["Bucket"])
    lines = {f"s3://{stack.outputs['Bucket']}/{o['Key']}" for page in pages for o in page.get("Contents", ())}
    for table in ("CountsTable", "IncidentsTable"):
        items = dynamodb.scan(TableName=stack.outputs[table])["Items"]
        lines |= {f"{table} {json.dumps(item, sort_keys=True, default=bytes.hex)}" for item in items}
    return lines


def main() -> None:
    """Run a function on an event, then print its result and what it wrote to S3 and DynamoDB."""
    parser = argparse.ArgumentParser(
        prog="python -m local.invoke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("function", choices=EVENTS)
    parser.add_argument("--event", type=Path, help="an SQS event (default: the function's sample in events/)")
    parser.add_argument("--sam", default=str(ROOT / ".venv-sam" / "bin" / "sam"))
    chosen = parser.parse_args()
    path = chosen.event or SAMPLES / f"{EVENTS[chosen.function]}.json"
    if not path.is_file():
        sys.exit(f"{path}: expected a file.")
    host = docker_bridge()
    if not host:
        sys.exit("sam local invoke: expected a Docker engine on this Linux machine, found none. Start one.")
    try:
        with _stack(host) as (stack, address), paused(stack):
            store_capture(stack)
            if chosen.function == "render_saliency":
                store_trace(stack)
            if chosen.function == "diagnose_incident" and _incident(stack) == SAMPLE_INCIDENT:
                violation = read_event(SAMPLES / "sqs-violation.json", stack)
                invoke(stack, "swap_endpoint", violation, address=address, sam=chosen.sam)
            before = contents(stack)
            event = read_event(path, stack)
            print(json.dumps(invoke(stack, chosen.function, event, address=address, sam=chosen.sam)))
            for line in sorted(contents(stack) - before):
                print(f"new: {line}")
    except (EmulatorError, InvokeError, TimeoutError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
