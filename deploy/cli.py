"""Deploy Glassbox to AWS, for an existing endpoint or with its own.

Credentials and region are those of the AWS SDK (AWS_PROFILE, AWS_REGION, …).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy import ROOT, DeployError, images, stack
from deploy.apply import apply, check_reacts, renew_twin
from deploy.check import CheckOptions, check_lines
from deploy.console import HOST, PORT
from deploy.console import console as make_console
from deploy.explain import explain as explain_image
from deploy.incident import aws_command, current_incident, minutes, send_command
from deploy.plan import DeployOptions, make_plan
from deploy.remove import removal_line
from deploy.remove import remove as remove_stack
from deploy.status import save_report, status_lines
from deploy.try_twin import read_sample, try_twin
from deploy.twin import Overrides
from deploy.watched_endpoint import read_endpoint


def plan(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Print what deploy would do."""
    planned = make_plan(_deploy_options(arguments), session)
    print("\n".join(planned.lines), flush=True)
    if planned.endpoint is None or not planned.reacts:
        return
    if not arguments.check:
        print(
            "CHECK=1 runs the endpoint's code on this machine and prints whether its answers can be explained."
        )
        return
    print()
    options = CheckOptions(arguments.check_image, arguments.python, arguments.content_type, arguments.seconds)
    for line in check_lines(planned.endpoint, options, session):
        print(line, flush=True)


def deploy(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Create or update the stack and the endpoint's hooked twin."""
    planned = make_plan(_deploy_options(arguments), session)
    print("\n".join(planned.lines), flush=True)
    _confirm(arguments)
    apply(planned, session)


def twin(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Create the twin of the endpoint's current config, and delete the old one."""
    renew_twin(arguments.stack, Overrides(arguments.image, arguments.model_data), session)
    if arguments.trial:
        current = stack.existing(arguments.stack, session.client("cloudformation"))
        endpoint = read_endpoint(current.outputs.endpoint_name, session)
        sample = read_sample("" if arguments.trial == "1" else arguments.trial, endpoint, session)
        print(f"Twin tried: {try_twin(sample, arguments.stack, current.outputs, session, print)}")


def explain(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Swap the endpoint to its twin, explain one image, and restore it."""
    current = stack.existing(arguments.stack, session.client("cloudformation"))
    check_reacts(current)
    name = current.outputs.endpoint_name
    if arguments.endpoint not in ("", name):
        raise DeployError(
            f"ENDPOINT: expected {name}, the endpoint of stack {current.name}, got {arguments.endpoint}. "
            f"Set STACK=… to the stack of {arguments.endpoint}."
        )
    print(f"Would swap endpoint {name} to its hooked twin for some minutes; it keeps serving.", flush=True)
    _confirm(arguments)
    heatmap = explain_image(arguments.image, current.outputs, ROOT / "out" / "explain", session, print)
    print(f"Heat map: {heatmap.relative_to(ROOT)}")


def status(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Print what the endpoint serves, its incident and its traffic."""
    current = stack.existing(arguments.stack, session.client("cloudformation"))
    for line in status_lines(current, session, datetime.now(UTC)):
        print(line)


def console(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Serve a page of the stack on this machine, until Ctrl-C."""
    current = stack.existing(arguments.stack, session.client("cloudformation"))
    try:
        server = make_console(current, session, arguments.port)
    except OSError as error:
        raise DeployError(f"PORT: expected a free port, got {arguments.port}: {error.strerror}.") from error
    with server:
        print(
            f"http://{HOST}:{server.server_port}/ shows endpoint {server.title}, read-only. Ctrl-C stops it."
        )
        server.serve_forever()


def report(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Save the report of the open or the last incident."""
    current = stack.existing(arguments.stack, session.client("cloudformation"))
    print(f"Report: {save_report(current.outputs, ROOT / 'out' / 'report', session).relative_to(ROOT)}")


def open_incident(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Open an incident for the last hour, regardless of the cooldown."""
    detail = {"reason": arguments.reason} if arguments.reason else {}
    _command(arguments, session, "open", **detail)


def extend(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Keep the hooked model, or watch, for some minutes from now."""
    _command(arguments, session, "extend", minutes=arguments.minutes)


def abort(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Restore the endpoint now and end the incident."""
    _command(arguments, session, "abort")


def pause(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Open no incident for some minutes from now."""
    _command(arguments, session, "pause", minutes=arguments.minutes)


def resume(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """End a pause."""
    _command(arguments, session, "resume")


def drill(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Send one message, marked as a drill, to all who get the notifications."""
    _command(arguments, session, "drill")


def _command(arguments: argparse.Namespace, session: boto3.Session, action: str, **detail: object) -> None:
    """Send an operator's command, unless it could not change an incident."""
    current = stack.existing(arguments.stack, session.client("cloudformation"))
    outputs = current.outputs
    incident = current_incident(outputs, session)
    is_open = incident is not None and incident.is_open
    if action == "open" and is_open:
        raise DeployError(f"Endpoint {outputs.endpoint_name}: expected no open incident, got {incident.id}.")  # type: ignore[union-attr]
    if action in ("extend", "abort") and not is_open:
        raise DeployError(f"Endpoint {outputs.endpoint_name}: expected an open incident, got none.")
    print(f"The same without make:\n  {aws_command(outputs.endpoint_name, action, **detail)}")
    send_command(outputs.endpoint_name, action, session, **detail)
    print(f"Sent {action!r} for endpoint {outputs.endpoint_name}. make status shows what it did.")


def remove(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Close an open incident, delete the twin and the stack."""
    current = stack.existing(arguments.stack, session.client("cloudformation"))
    print(removal_line(current), flush=True)
    _confirm(arguments)
    remove_stack(current, session)


def push(arguments: argparse.Namespace, session: boto3.Session) -> None:
    """Push the images of `make images` to ECR."""
    print("\n".join(images.push(session)) or "ECR already contains both images.")


COMMANDS: dict[str, Callable[[argparse.Namespace, boto3.Session], None]] = {
    "plan": plan,
    "deploy": deploy,
    "twin": twin,
    "explain": explain,
    "status": status,
    "report": report,
    "console": console,
    "open": open_incident,
    "extend": extend,
    "abort": abort,
    "pause": pause,
    "resume": resume,
    "drill": drill,
    "remove": remove,
    "push": push,
}


def _deploy_options(arguments: argparse.Namespace) -> DeployOptions:
    named = {
        "MaxClassShare": arguments.threshold,
        "NotificationEmail": arguments.email,
        "Stage": arguments.stage,
    }
    return DeployOptions(
        arguments.stack,
        arguments.endpoint,
        Overrides(arguments.image, arguments.model_data),
        arguments.model,
        {name: value for name, value in named.items() if value} | dict(arguments.set),
    )


def _confirm(arguments: argparse.Namespace) -> None:
    """Raise DeployError unless the user answers yes."""
    if arguments.yes:
        return
    try:
        answer = input("\nProceed? [y/N] ")
    except EOFError:  # standard input is closed
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise DeployError("Cancelled: nothing was changed. YES=1 skips the question.")


def _parameter(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"SET: expected Parameter=value, got {text!r}")
    return name, value


def port(text: str) -> int:
    """Return a port of a command line, or raise ArgumentTypeError."""
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"PORT: expected a number from 0 to 65535, got {text!r}")
    return int(text)


def _add_options(one: argparse.ArgumentParser, name: str) -> None:
    """Add the options of one command."""
    if name == "plan":
        one.add_argument("--check", action="store_true", help="run the endpoint's code on this machine")
        one.add_argument("--check-image", type=Path, default=CheckOptions.image, help="that the code answers")
        one.add_argument("--python", default="", help="interpreter with the code's requirements")
        one.add_argument("--content-type", default="", help="of the image (default: tried in turn)")
        one.add_argument("--seconds", type=float, default=CheckOptions.seconds, help="limit of the check")
    if name == "explain":
        one.add_argument("--image", type=Path, required=True, help="PNG or JPEG file, or an array (.npy)")
        one.add_argument("--endpoint", default="", help="endpoint of the stack, as a check")
    if name == "console":
        one.add_argument("--port", type=port, default=PORT, help=f"of {HOST} (default: {PORT})")
    if name == "open":
        one.add_argument("--reason", default="", help="text of the incident's cause")
    if name in ("extend", "pause"):
        one.add_argument("--minutes", type=minutes, default=30, help="from now (default: 30)")
    if name in ("deploy", "explain", "remove"):
        one.add_argument("--yes", action="store_true", help="skip the question")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in COMMANDS.items():
        one = commands.add_parser(name, help=run.__doc__)
        if name != "push":
            one.add_argument("--stack", default="glassbox")
        if name in ("plan", "deploy", "twin"):
            one.add_argument("--image", default="", help="image of the twin, or of the stack's own endpoint")
            one.add_argument("--model-data", default="", help="S3 URI of the twin's model.tar.gz")
        if name == "twin":
            one.add_argument(
                "--trial",
                default="",
                help="try the twin on an endpoint of its own: 1 (a captured input), or a file",
            )
        if name in ("plan", "deploy"):
            one.add_argument("--endpoint", default="", help="existing endpoint (default: create one)")
            one.add_argument(
                "--model", type=Path, help="state dict or model.tar.gz of the stack's own endpoint"
            )
            one.add_argument("--threshold", default="", help="MaxClassShare, 0 to 1")
            one.add_argument("--email", default="", help="NotificationEmail")
            one.add_argument("--stage", default="", help="dev or prod")
            one.add_argument("--set", type=_parameter, nargs="*", default=[], metavar="Parameter=value")
        _add_options(one, name)
    return parser.parse_args()


def main() -> None:
    """Run a command, and exit with its error."""
    arguments = _parse_arguments()
    session = boto3.Session()
    try:
        if not session.region_name:
            raise DeployError("AWS_REGION: expected a region, got none. Set AWS_REGION=….")
        COMMANDS[arguments.command](arguments, session)
    except (DeployError, ClientError, BotoCoreError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
