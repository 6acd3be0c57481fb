"""`python -m local`: run the embedded AWS with the stack on it until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from local.deploy import DeployError
from local.emulator import ROOT, EmbeddedAws, EmulatorError, docker_bridge, stop_on_sigterm
from local.stack import WEIGHTS, Stack, running_stack

SAMPLE = ROOT / "events" / "stop-sign.png"


def main() -> None:
    """Start the embedded AWS, deploy the stack, print how to use it and wait."""
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("--port", type=int, default=4566, help="0 chooses a free port (default: 4566)")
    parser.add_argument(
        "--also-on",
        metavar="ADDRESS",
        default=docker_bridge(),
        help="a second address to listen on (default: the address of Docker's bridge network, if there is one)",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="state dict of the model to serve")
    parser.add_argument("--threshold", default="0.5", help="MaxClassShare (default: 0.5)")
    options = parser.parse_args()
    parameters = {"MaxClassShare": options.threshold}
    try:
        with contextlib.suppress(KeyboardInterrupt), stop_on_sigterm():
            print("Starting the embedded AWS and deploying template.yaml …", flush=True)
            with (
                EmbeddedAws(port=options.port, also_on=options.also_on) as aws,
                running_stack(parameters, weights=options.weights, aws=aws) as stack,
            ):
                print(_usage(stack, aws), flush=True)
                aws.wait()
    except (EmulatorError, DeployError, OSError) as error:
        sys.exit(f"make local: {error}")


def _usage(stack: Stack, aws: EmbeddedAws) -> str:
    outputs = stack.outputs
    command = json.dumps(json.dumps({"endpoint": outputs["EndpointName"], "action": "open"}))
    lines = ["", f"The embedded AWS listens on {aws.endpoint_url}. In another shell:", ""]
    lines += [f"  export {name}={value}" for name, value in aws.environment.items()]
    lines += ["", "The stack:", ""]
    lines += [f"  {name:15} {value}" for name, value in outputs.items()]
    lines += [
        "",
        "Try:",
        "",
        f"  aws sagemaker-runtime invoke-endpoint --endpoint-name {outputs['EndpointName']} \\",
        f"    --content-type image/png --body fileb://{SAMPLE} /dev/stdout",
        f"  aws sagemaker describe-endpoint --endpoint-name {outputs['EndpointName']}",
        f"  aws s3 ls --recursive s3://{outputs['Bucket']}/",
        "",
        "Fifty such requests within an hour exceed MaxClassShare and open an incident. This command also opens one:",
        "",
        "  aws events put-events --entries \\",
        f"    'Source=glassbox.operator,DetailType=Glassbox Command,Detail={command}'",
        "",
        "With boto3 instead of the aws CLI:",
        "",
        f"  {sys.executable} -c \"import boto3; print(boto3.client('sagemaker-runtime').invoke_endpoint(",
        f"    EndpointName='{outputs['EndpointName']}', ContentType='image/png',",
        f"    Body=open('{SAMPLE}', 'rb').read())['Body'].read().decode())\"",
        "",
        f"Logs are in {aws.log.parent} and in CloudWatch Logs (aws logs describe-log-groups).",
        "make console shows the stack on a page: its endpoint, incidents and reports.",
        "make invoke-<function> runs a function with sam local invoke (needs Docker).",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
