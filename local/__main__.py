"""`python -m local`: the embedded AWS with the stack on it, left running until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from PIL import Image

from demo import signs
from local.deploy import DeployError
from local.emulator import EmbeddedAws, EmulatorError, docker_bridge, stop_on_sigterm
from local.stack import WEIGHTS, Stack, running_stack


def main() -> None:
    """Start, deploy, say how to use it, wait."""
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("--port", type=int, default=4566, help="0 chooses a free one (default: 4566)")
    parser.add_argument(
        "--also-on",
        metavar="ADDRESS",
        default=docker_bridge(),
        help="a second address to listen on (default: Docker's bridge, where containers find it, if there is one)",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the model to serve, a state dict")
    parser.add_argument("--threshold", default="0.5", help="largest share of one class (default: 0.5)")
    options = parser.parse_args()
    parameters = {"MaxClassShare": options.threshold}
    try:
        with contextlib.suppress(KeyboardInterrupt), stop_on_sigterm():
            print("Starting the embedded AWS and deploying template.yaml …", flush=True)
            with (
                EmbeddedAws(port=options.port, also_on=options.also_on) as aws,
                running_stack(parameters, weights=options.weights, aws=aws) as stack,
            ):
                sign = aws.directory / "sign.png"
                Image.fromarray(signs.dataset(1, seed=14)[0][0]).save(sign)
                print(_usage(stack, aws, sign), flush=True)
                aws.wait()
    except (EmulatorError, DeployError, OSError) as error:
        sys.exit(f"make local: {error}")


def _usage(stack: Stack, aws: EmbeddedAws, sign: Path) -> str:
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
        f"    --content-type image/png --body fileb://{sign} /dev/stdout",
        f"  aws sagemaker describe-endpoint --endpoint-name {outputs['EndpointName']}",
        f"  aws s3 ls --recursive s3://{outputs['Bucket']}/",
        "",
        "Fifty such requests within the hour are one class too often: the violation opens an incident. So does",
        "",
        "  aws events put-events --entries \\",
        f"    'Source=glassbox.operator,DetailType=Glassbox Command,Detail={command}'",
        "",
        "With boto3 instead of the aws CLI:",
        "",
        f"  {sys.executable} -c \"import boto3; print(boto3.client('sagemaker-runtime').invoke_endpoint(",
        f"    EndpointName='{outputs['EndpointName']}', ContentType='image/png',",
        f"    Body=open('{sign}', 'rb').read())['Body'].read().decode())\"",
        "",
        f"Logs are in {aws.log.parent} and in CloudWatch Logs (aws logs describe-log-groups).",
        "make invoke-<function> runs a function on it by sam local invoke (with Docker).",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
