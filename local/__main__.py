"""`python -m local`: the embedded AWS with the stack on it, left running until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
from pathlib import Path

from local.emulator import docker_bridge, stop_on_sigterm
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
    parameters = {"Threshold": options.threshold}
    with contextlib.suppress(KeyboardInterrupt), stop_on_sigterm():
        print("Starting the embedded AWS and deploying template.yaml …", flush=True)
        with running_stack(
            parameters, weights=options.weights, port=options.port, also_on=options.also_on
        ) as stack:
            print(_usage(stack), flush=True)
            signal.pause()


def _usage(stack: Stack) -> str:
    aws, outputs = stack.aws, stack.outputs
    lines = ["", f"The embedded AWS listens on {aws.endpoint_url}. In another shell:", ""]
    lines += [f"  export {name}={value}" for name, value in aws.environment.items()]
    lines += ["", "The stack:", ""]
    lines += [f"  {name:15} {value}" for name, value in outputs.items()]
    lines += [
        "",
        "Try:",
        "",
        f"  aws sagemaker-runtime invoke-endpoint --endpoint-name {outputs['EndpointName']} \\",
        "    --content-type image/png --body fileb://sign.png /dev/stdout",
        f"  aws s3 ls --recursive s3://{outputs['Bucket']}/",
        f"  aws sagemaker describe-endpoint --endpoint-name {outputs['EndpointName']}",
        "",
        f"Logs are in {aws.log.parent} and in CloudWatch Logs (aws logs describe-log-groups).",
        "make invoke-<function> runs a function on it by sam local invoke (with Docker).",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
