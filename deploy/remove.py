"""Remove a stack: close its incident, restore the endpoint, delete twin and stack."""

from __future__ import annotations

import time

import boto3
from botocore.exceptions import ClientError
from sagemaker.core.resources import Endpoint

from deploy import DeployError, stack
from deploy.hook import delete_hooks
from deploy.incident import CHANGES_ENDPOINT, current_incident, send_command
from deploy.polling import INTERVAL_SECONDS
from deploy.stack import Outputs, Stack
from deploy.twin import delete_twins, public_replay_key
from deploy.watched_endpoint import is_missing
from glassbox.incidents.model import State

RESTORE_SECONDS = 3600.0


def removal_line(current: Stack) -> str:
    """Describe what :func:`remove` deletes."""
    name, also = current.outputs.endpoint_name, ""
    if current.owns_endpoint:
        also = f", its endpoint {name}, WHICH SERVES REQUESTS"
    elif current.parameters.get("HookedConfigName"):
        also = f", the hooked twin of endpoint {name}"
    return f"Would delete stack {current.name}{also}. The bucket and the tables stay."


def remove(current: Stack, session: boto3.Session) -> None:
    """Close an open incident and delete twin and stack.

    A watched endpoint serves its original config again.
    """
    outputs, deleted = current.outputs, list[str]()
    _save_replay_key(outputs, session)
    if not current.owns_endpoint:
        with stack.violations_paused(current.name, session):
            _restore(outputs, session)
            # before the stack, so that a retry of make remove finds the rest
            deleted = delete_twins(current.name, session)
            delete_hooks(outputs.bucket, session)
    stack.delete(current.name, session.client("cloudformation"))
    print(f"Deleted: {', '.join([f'stack {current.name}', *deleted])}")
    if not current.owns_endpoint:
        print(f"Endpoint {outputs.endpoint_name} serves its original config.")
        print(f"Bucket {current.parameters['CaptureBucket']} still sends its events to EventBridge.")
    print("Kept, with the recorded data:")
    print(f"  s3://{outputs.bucket}, tables {outputs.counts_table} and {outputs.incidents_table}")


def _save_replay_key(outputs: Outputs, session: boto3.Session) -> None:
    """Save the public replay key: without it, no later baseline can distinguish replays from traffic."""
    if not outputs.replay_key_arn:  # a stack of an earlier storage version
        return
    s3, key = session.client("s3"), f"monitoring/{outputs.endpoint_name}/replay-key/public.pem"
    try:
        pem = public_replay_key(outputs.replay_key_arn, session).pem.encode()
        s3.put_object(Bucket=outputs.bucket, Key=key, Body=pem, ContentType="application/x-pem-file")
    except DeployError:
        # an interrupted removal may have saved the key, and the stack's deletion may have deleted it
        if not s3.list_objects_v2(Bucket=outputs.bucket, Prefix=key).get("KeyCount"):
            raise
    print(f"Saved the public replay key: s3://{outputs.bucket}/{key} (make baseline REPLAY_KEY=…)")


def _restore(outputs: Outputs, session: boto3.Session) -> None:
    """Abort an open incident and wait until the stack has restored the endpoint."""
    name, plain = outputs.endpoint_name, outputs.plain_config
    manually = (
        f"Restore it, then retry:\naws sagemaker update-endpoint --endpoint-name {name} "
        f"--endpoint-config-name {plain} --retain-all-variant-properties"
    )
    deadline, aborted = time.monotonic() + RESTORE_SECONDS, False
    while time.monotonic() < deadline:
        try:
            endpoint = Endpoint.get(name, session=session)
        except ClientError as error:
            if is_missing(error):
                return  # its owner deleted it
            raise
        incident = current_incident(outputs, session)
        closed = incident is None or incident.state not in CHANGES_ENDPOINT
        if closed and endpoint.endpoint_status == "InService":
            if endpoint.endpoint_config_name == outputs.hooked_config:
                raise DeployError(
                    f"Endpoint {name}: expected config {plain}, got {outputs.hooked_config} without an open incident. "
                    f"{manually}"
                )
            return
        if incident and incident.state in (State.SWAPPING, State.HOOKED) and not aborted:
            print(f"Aborting the open incident of {name} and restoring {plain} …", flush=True)
            send_command(name, "abort", session)
            aborted = True
        time.sleep(INTERVAL_SECONDS)
    raise DeployError(
        f"Endpoint {name}: expected InService on {plain}, got {endpoint.endpoint_status} on "
        f"{endpoint.endpoint_config_name}. {manually}"
    )
