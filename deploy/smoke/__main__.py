"""Rehearse on a throw-away stack what Glassbox assumes of AWS, and remove the stack.

Each check prints one line: what is assumed, what was seen, and ok, DIFFERENT or why it was not checked. Ctrl-C also
removes the stack. The exit code is 1 if an assumption is DIFFERENT or something was not removed.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy import DeployError
from deploy.smoke.checks import AFTER_DEPLOY, BEFORE_DEPLOY, NOT_CHECKED, Assumption
from deploy.smoke.rehearsal import NotChecked, Rehearsal
from glassbox.errors import GlassboxError


def check(rehearsal: Rehearsal, assumptions: Iterable[Assumption]) -> Iterator[bool]:
    """Check assumptions, print a line for each, and yield whether AWS differs."""
    for assumption in assumptions:
        different = False
        try:
            holds, seen = assumption.check(rehearsal)
            different, verdict = not holds, f"seen: {seen}; {'ok' if holds else 'DIFFERENT'}"
        except NotChecked as reason:
            verdict = f"seen: nothing; not checked because {reason}"
        except (ClientError, BotoCoreError, GlassboxError) as error:
            verdict = f"seen: nothing; not checked because of {error}"
        print(f"assumed: {assumption.text}; {' '.join(verdict.split())}", flush=True)
        yield different


def rehearse(rehearsal: Rehearsal, arguments: list[str]) -> int:
    """Return the number of assumptions that do not hold, after deployment, checks and removal."""
    try:
        different = list(check(rehearsal, BEFORE_DEPLOY))
        detail = {"EndpointName": [rehearsal.name]}
        rehearsal.listen("endpoints", {"source": ["aws.sagemaker"], "detail": detail})
        jobs = {"ProcessingJobName": [{"prefix": f"class-monitor-{rehearsal.name}"}]}
        rehearsal.listen("jobs", {"source": ["aws.sagemaker"], "detail": jobs})
        rehearsal.deploy(arguments)
        different += check(rehearsal, AFTER_DEPLOY)
        for assumed, reason in NOT_CHECKED.items():
            print(f"assumed: {assumed}; seen: nothing; not checked because {reason}")
        return sum(different)
    finally:
        rehearsal.remove()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Parse the arguments, rehearse, and exit."""
    parser = argparse.ArgumentParser(prog="make smoke", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--image", default="", help="serving image (default: the last one of make push)")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds that AWS may take to deliver")
    parser.add_argument("--set", nargs="*", default=[], metavar="Parameter=value", help="of the stack")
    options = parser.parse_args()
    session, name = boto3.Session(), f"glassbox-smoke-{secrets.token_hex(3)}"
    if not session.region_name:
        sys.exit("AWS_REGION: expected a region, got none. Set AWS_REGION=….")
    signal.signal(signal.SIGTERM, _interrupt)
    print(
        f"Stack {name}: takes about an hour on AWS, with one or two instances at a time. Ctrl-C removes it."
    )
    arguments = ["--image", options.image] if options.image else []
    arguments += ["--set", *options.set] if options.set else []
    rehearsal = Rehearsal(name, session, options.patience)
    try:
        different = rehearse(rehearsal, arguments)
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    except (DeployError, ClientError, BotoCoreError) as error:
        sys.exit(str(error))
    print(f"{different} of {len(BEFORE_DEPLOY) + len(AFTER_DEPLOY)} assumptions are DIFFERENT")
    sys.exit(1 if different or rehearsal.left else 0)


if __name__ == "__main__":
    main()
