"""Apply a plan: create or update the stack and the hooked twin."""

from __future__ import annotations

from collections.abc import Mapping

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy import DeployError, stack
from deploy.alarms import check_alarm
from deploy.hook import Hooks, delete_hooks, read_hooks
from deploy.incident import aws_command, check_no_incident
from deploy.model_fingerprint import model_fingerprint
from deploy.model_upload import SAMPLE_WEIGHTS, upload_model
from deploy.plan import TO_BE_UPLOADED, Plan, kept_lines, watching_parameters
from deploy.stack import Outputs, Stack
from deploy.twin import (
    Overrides,
    create_twin,
    delete_twins,
    keep_overrides,
    mounted_hook,
    public_replay_key,
)
from deploy.watched_endpoint import WatchedEndpoint, enable_eventbridge, read_endpoint

# these parameters change only when the twin exists
AFTER_TWIN = ("PlainConfigName", "PlainConfigArn", "HookedConfigName", "React")


def apply(plan: Plan, session: boto3.Session) -> None:
    """Create or update the stack and the twin of its endpoint, and test an alarm."""
    name, parameters, endpoint = plan.options.stack, dict(plan.parameters), plan.endpoint
    cloudformation = session.client("cloudformation")
    current = stack.describe(name, cloudformation)
    if current and not current.was_created:
        stack.delete(name, cloudformation)
        current = None
    if current:  # an incident may have opened since the plan
        check_no_incident(current, session)
    if endpoint:
        enable_eventbridge(endpoint.bucket, session.client("s3"))
        if plan.reacts and current:  # before the update: the stack never names a config that does not exist
            _update_twin(endpoint, plan, current, session)
    elif parameters.get("ModelDataUrl") == TO_BE_UPLOADED:
        parameters["ModelDataUrl"] = upload_model(plan.options.model or SAMPLE_WEIGHTS, session)
    stack.sam_deploy(name, parameters, session.region_name)
    outputs = stack.existing(name, cloudformation).outputs
    if endpoint:
        if plan.reacts and not current:
            _create_first_twin(endpoint, name, outputs, session, plan.overrides, plan.hooks)
        _delete_other_twins(parameters.get("HookedConfigName", ""), name, outputs.bucket, session)
    print("\nDone.")
    if email := plan.options.parameters.get("NotificationEmail"):
        print(f"Confirm the subscription e-mail sent to {email}; no notifications are sent until then.")
    print(_test_alarm(name, session))
    if plan.reacts:
        print("To open an incident for the traffic of the last hour, run:")
        print(f"  {aws_command(outputs.endpoint_name, 'open')}")


def _update_twin(endpoint: WatchedEndpoint, plan: Plan, current: Stack, session: boto3.Session) -> None:
    if plan.hooks.paths:
        # SageMaker refuses a model whose role may not read the hook, so the bucket's policy comes first
        early = {name: value for name, value in plan.parameters.items() if name not in AFTER_TWIN}
        roles = {"EndpointRoleArns": _both_roles(plan.parameters, current)}
        stack.sam_deploy(current.name, early | roles, session.region_name)
    _create_twin(endpoint, current.name, current.outputs, session, plan.overrides, plan.hooks)


def _both_roles(parameters: Mapping[str, str], current: Stack) -> str:
    """Return the roles of the old and the new models."""
    named = f"{current.parameters.get('EndpointRoleArns', '')},{parameters['EndpointRoleArns']}"
    return ",".join(sorted(set(named.split(",")) - {""}))


def _test_alarm(name: str, session: boto3.Session) -> str:
    """Return the result of an alarm's test; a refused call must not fail a completed deployment."""
    try:
        return check_alarm(name, session)
    except (ClientError, BotoCoreError) as error:
        return f"Alarms: not tested: {error}"


def renew_twin(name: str, requested: Overrides, session: boto3.Session) -> None:
    """Create the twin of the current config, update the stack, and delete the old twin."""
    cloudformation = session.client("cloudformation")
    current = stack.existing(name, cloudformation)
    if current.owns_endpoint:
        raise DeployError(
            f"Stack {name}: expected a watched endpoint, got {current.parameters['EndpointName']}, the stack's own. "
            "make deploy MODEL=… updates its model and its twin."
        )
    check_reacts(current)
    check_no_incident(current, session)
    endpoint = read_endpoint(current.parameters["EndpointName"], session)
    overrides = keep_overrides(requested, current.parameters["HookedConfigName"], endpoint, session)
    hooks = read_hooks(
        endpoint, replaced=bool(overrides.members), model_data=overrides.model_data, session=session
    )
    fingerprint, unread = "", ""
    if current.parameters.get("Reference"):
        fingerprint, unread = model_fingerprint(endpoint, session)
    parameters = watching_parameters(endpoint, current.parameters, reacts=True, fingerprint=fingerprint)
    if hooks.paths:  # SageMaker refuses a model whose role may not read the hook
        roles = {"EndpointRoleArns": _both_roles(parameters, current)}
        stack.change_parameters(name, roles, cloudformation)
    hooked = _create_twin(endpoint, name, current.outputs, session, overrides, hooks)
    enable_eventbridge(endpoint.bucket, session.client("s3"))
    stack.change_parameters(name, parameters, cloudformation)
    print(f"{endpoint.name} runs {endpoint.config_name}; its hooked twin is {hooked}.")
    notes = [*kept_lines(requested, overrides), *hooks.notes, *([unread] if unread else [])]
    print("".join(f"{line}\n" for line in notes), end="")
    _delete_other_twins(hooked, name, current.outputs.bucket, session)


def check_reacts(current: Stack) -> None:
    """Raise DeployError for a stack with React=false, which has no twin."""
    if not current.reacts:
        raise DeployError(
            f"Stack {current.name}: expected React=true, got false. It has no hooked twin; "
            'make deploy … SET="React=true" creates one.'
        )


def _create_twin(
    endpoint: WatchedEndpoint,
    name: str,
    outputs: Outputs,
    session: boto3.Session,
    overrides: Overrides,
    hooks: Hooks,
) -> str:
    # the twin gets the public key in its environment, since its network may not reach KMS
    key = public_replay_key(outputs.replay_key_arn, session).text
    return create_twin(endpoint, name, outputs.bucket, key, session, overrides, hooks)


def _create_first_twin(
    endpoint: WatchedEndpoint,
    name: str,
    outputs: Outputs,
    session: boto3.Session,
    overrides: Overrides,
    hooks: Hooks,
) -> None:
    try:
        _create_twin(endpoint, name, outputs, session, overrides, hooks)
    except (DeployError, ClientError, BotoCoreError) as error:
        raise DeployError(
            f"{error}\nStack {name} exists without a twin and cannot swap. Run make twin with the same IMAGE and "
            "MODEL_DATA."
        ) from error


def _delete_other_twins(hooked: str, name: str, bucket: str, session: boto3.Session) -> None:
    for deleted in delete_twins(name, session, keep=hooked):
        print(f"deleted: {deleted}")
    delete_hooks(bucket, session, keep=mounted_hook(hooked, session))
