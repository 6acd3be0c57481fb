"""What ops are told: when an incident begins, when it ends, and whenever a hand is needed.

Plain text that reads well in an e-mail and on a phone: the reason first, the facts, then what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from glassbox.errors import printable

if TYPE_CHECKING:
    from glassbox.events import Violation
    from glassbox.incidents.workflow import EndpointConfigs, EndpointState, Incident, Limits


_SUBJECT_CHARACTERS = 100  # of SNS, in ASCII
_LINE_CHARACTERS = 2500


@dataclass(frozen=True)
class Notice:
    """A message. The subject is ASCII, at most 100 characters (SNS); ``attributes`` are for filter policies."""

    subject: str
    text: str
    attributes: Mapping[str, str]

    def machine_readable(self) -> str:
        """What subscribers other than people get: one JSON object."""
        return json.dumps({"subject": self.subject, "text": self.text, **self.attributes})


def opened(incident: Incident, limits: Limits) -> Notice:
    """The incident begins; the endpoint is being swapped, or left alone in notify-only mode."""
    if incident.notify_only:
        return _watching(incident)
    return _notice(incident, "swapping", "violation, swapping to the hooked model", *_begun(incident, limits))


def pending(incident: Incident, reason: str, limits: Limits) -> Notice:
    """The incident begins, but the endpoint cannot be swapped yet."""
    return _notice(
        incident,
        "swapping",
        "violation, to be swapped as soon as possible",
        *_begun(incident, limits),
        "",
        f"Not yet: {reason}",
        f"It is tried again every few minutes, for {limits.update_minutes:g} minutes.",
    )


def _watching(incident: Incident) -> Notice:
    return _notice(
        incident,
        "watching",
        "violation (notify-only)",
        incident.cause.reason,
        "",
        *_facts(incident),
        "",
        "Glassbox is in notify-only mode (parameter React=false) and leaves the endpoint alone.",
        f"The report comes when the window is over, at {incident.cause.window_end:%H:%M} UTC.",
        "Further violations join this incident until then.",
        "",
        "To end it now:",
        *_command(incident.endpoint, "abort"),
    )


def _begun(incident: Incident, limits: Limits) -> Sequence[str]:
    return (
        incident.cause.reason,
        "",
        *_facts(incident),
        "",
        f"The endpoint goes from {incident.plain_config} to its debugger-hooked twin {incident.hooked_config}",
        "and keeps serving. The flagged inputs are sent again and explained; then it is restored, after",
        f"{limits.explain_minutes:g} minutes at the latest, and you get the report.",
        "",
        "To stop it now:",
        *_command(incident.endpoint, "abort"),
    )


def closed(incident: Incident) -> Notice:
    """The incident is over: the key facts of its pictures, and where the report is or why there is none."""
    headline = "incident over" if incident.notify_only else "restored"
    return _notice(
        incident,
        "closed" if incident.notify_only else "restored",
        f"{headline}, {'NO report' if incident.unreported else 'report is ready'}",
        incident.cause.reason,
        "",
        "The endpoint was left alone (notify-only)."
        if incident.notify_only
        else f"{len(incident.pictures)} pictures were made; the endpoint serves {incident.plain_config} again.",
        *incident.findings,
        "",
        *_where(incident),
        "",
        *_facts(incident),
        "",
        "Time line (UTC)",
        *incident.timeline,
    )


def _where(incident: Incident) -> Sequence[str]:
    if not incident.unreported:
        return ("A link to the report, for an hour:", f"aws s3 presign {incident.report}")
    return (
        f"The report could not be written: {incident.unreported}",
        f"What was drawn is in the stack's bucket, under saliency/{incident.endpoint}/{incident.id}/",
    )


def cooling_down(incident: Incident, violation: Violation, until: datetime) -> Notice:
    """A violation soon after an incident, which opens none of its own."""
    return _notice(
        incident,
        "cooling-down",
        "another violation, not swapped (cooldown)",
        violation.reason,
        "",
        f"The last incident ended at {incident.since:%H:%M} UTC, and none opens before {until:%H:%M} UTC:",
        "the endpoint was left alone. Further ones of this check are not told until then.",
        "",
        "To explain the last hour all the same:",
        *_command(violation.endpoint, "open"),
    )


def cap_reached(incident: Incident, violation: Violation, limits: Limits) -> Notice:
    """A violation that opens no incident any more today."""
    return _notice(
        incident,
        "cap-reached",
        "another violation, not swapped (cap per day)",
        violation.reason,
        "",
        f"{limits.incidents_per_day} incidents were handled within a day, the most that are allowed:",
        "the endpoint was left alone.",
        "The problem persists and is known by now: roll back the model, or stop the traffic that causes it.",
    )


def stale_twin(endpoint: str, live: EndpointState, configs: EndpointConfigs) -> Notice:
    """Somebody deployed a config that Glassbox does not know, outside any incident."""
    return Notice(
        _subject(endpoint, "a new config is live, its hooked twin is missing"),
        _text(
            f"{endpoint} runs the config {live.config}.",
            f"Glassbox knows {configs.plain} and its twin {configs.hooked}.",
            "Violations are still counted and told, but the endpoint will not be swapped.",
            "",
            "Make its hooked twin, in a checkout of Glassbox:",
            _twin(configs),
        ),
        {"event": "stale-twin", "endpoint": endpoint},
    )


def failed(incident: Incident) -> Notice:
    """A failure whose own message was lost: the same once more."""
    return Notice(incident.headline, incident.failure, _attributes(incident, "failed"))


def aborted(incident: Incident) -> Notice:
    """An operator aborted before the swap had begun."""
    return _notice(
        incident,
        "failed",
        "aborted by an operator",
        "An operator aborted the incident before the endpoint was swapped; there is nothing to do.",
        "",
        *_facts(incident),
    )


def foreign_config(incident: Incident, live: EndpointState, configs: EndpointConfigs) -> Notice:
    """The endpoint runs neither of the two configs: it was left alone."""
    return _notice(
        incident,
        "failed",
        "violation, NOT swapped: unknown endpoint config",
        f"The endpoint runs {live.config}, so it was left alone.",
        f"Glassbox knows {incident.plain_config} and its hooked twin {incident.hooked_config}.",
        incident.cause.reason,
        "",
        *_facts(incident),
        "",
        "Make its hooked twin, in a checkout of Glassbox:",
        _twin(configs),
    )


def superseded(incident: Incident, live: EndpointState, configs: EndpointConfigs) -> Notice:
    """Somebody deployed during the incident, and keeps what was deployed."""
    return _notice(
        incident,
        "failed",
        "incident over: a new config was deployed",
        f"Somebody deployed {live.config} during the incident, so the endpoint was left alone.",
        f"Pictures made until then: {len(incident.pictures)}. The violation was:",
        incident.cause.reason,
        "",
        *_facts(incident),
        "",
        f"Glassbox knows {incident.plain_config} and its twin {incident.hooked_config}.",
        "To watch the new config, make its hooked twin, in a checkout of Glassbox:",
        _twin(configs),
    )


def broken_endpoint(incident: Incident, live: EndpointState) -> Notice:
    """The endpoint is in a state that no update leaves, or an update does not end."""
    return _notice(
        incident,
        "failed",
        f"the endpoint is {live.status}",
        f"The endpoint is {live.status}{' on ' + live.config if live.config else ''}"
        f"{': ' + live.failure if live.failure else ''}.",
        incident.cause.reason,
        "",
        *_facts(incident),
        "",
        *_repair(incident, live),
    )


def not_seen(incident: Incident, error: str) -> Notice:
    """DescribeEndpoint is refused, so nothing is known of the endpoint and nothing is done."""
    return _notice(
        incident,
        "failed",
        "the endpoint cannot be looked at",
        f"DescribeEndpoint is refused: {error}",
        f"The endpoint may serve {incident.hooked_config} still. Every sweep looks again, and restores it then.",
        *_permission(error),
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        "To look at it, and to put the plain config back:",
        f"aws sagemaker describe-endpoint --endpoint-name {incident.endpoint}",
        _update(incident.endpoint, incident.plain_config),
    )


def _repair(incident: Incident, live: EndpointState) -> Sequence[str]:
    name, plain = incident.endpoint, incident.plain_config
    create = f"aws sagemaker create-endpoint --endpoint-name {name} --endpoint-config-name {plain}"
    if live.status == "Deleted":
        return ("To make it again:", create)
    if live.status == "Failed":  # SageMaker updates no endpoint that has failed
        delete = f"aws sagemaker delete-endpoint --endpoint-name {name}"
        return ("It does not serve, and can only be deleted and made again:", delete, create)
    describe = f"aws sagemaker describe-endpoint --endpoint-name {name}"
    return ("Look at it, then put the plain config back:", describe, _update(name, plain))


def rolled_back(incident: Incident, live: EndpointState) -> Notice:
    """SageMaker gave the update up and returned to the old config."""
    return _notice(
        incident,
        "failed",
        "the hooked model did not start, rolled back",
        f"SageMaker rolled the swap back{': ' + live.failure if live.failure else ''}.",
        f"The endpoint serves {live.config} as before; nothing was explained.",
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        "The hooked model's log says why:",
        f"aws logs tail /aws/sagemaker/Endpoints/{incident.endpoint} --since 1h",
    )


def refused(incident: Incident, error: str) -> Notice:
    """UpdateEndpoint was refused for good, or for too long."""
    return _notice(
        incident,
        "failed",
        "violation, NOT swapped: SageMaker refused",
        f"SageMaker refused the swap: {error}",
        *_permission(error),
        incident.cause.reason,
        "",
        *_facts(incident),
        "",
        "To explain the last hour once the cause is gone:",
        *_command(incident.endpoint, "open"),
    )


def not_restored(incident: Incident, error: str, retry: datetime) -> Notice:
    """The endpoint still serves the hooked model; nothing is broken, but it is not as it was.

    Args:
        retry: when it is tried again.
    """
    return _notice(
        incident,
        "failed",
        "NOT restored, still on the hooked model",
        f"The endpoint could not be put back on {incident.plain_config}: {error}",
        "It keeps serving with the hooked model, a little slower.",
        f"Tries so far: {incident.retries + 1}. It is tried again at {retry:%H:%M} UTC.",
        *_permission(error),
        "",
        *_facts(incident),
        "",
        "To restore it by hand (make the config again first if it is gone):",
        _update(incident.endpoint, incident.plain_config),
    )


def _permission(error: str) -> Sequence[str]:
    """What to do about an error that names a right or a key."""
    said = error.lower()
    if "kms" in said:
        return (
            "A KMS key is in the way. Set the stack's parameter EndpointKeyArn to the KmsKeyId of the endpoint config,",
            "and let the stack's roles into the key's policy (make plan shows the line).",
        )
    if "denied" in said or "not authorized" in said:
        return (
            "An IAM policy, a permissions boundary or a service control policy is in the way: see the error.",
        )
    return ()


def _notice(incident: Incident, event: str, headline: str, *lines: str) -> Notice:
    return Notice(_subject(incident.endpoint, headline), _text(*lines), _attributes(incident, event))


def _text(*lines: str) -> str:
    # a reason or an error from outside must not add lines of its own
    return "\n".join(printable(line, _LINE_CHARACTERS) for line in lines)


def _attributes(incident: Incident, event: str) -> Mapping[str, str]:
    return {"event": event, "endpoint": incident.endpoint, "incident": incident.id}


def _subject(endpoint: str, headline: str) -> str:
    return f"Glassbox {endpoint}: {headline}".encode("ascii", "replace").decode()[:_SUBJECT_CHARACTERS]


def _facts(incident: Incident) -> Sequence[str]:
    violation = incident.cause
    return (
        f"Endpoint  {incident.endpoint}",
        f"Incident  {incident.id}",
        f"Check     {violation.check}",
        f"Window    {violation.window_start:%Y-%m-%d %H:%M} to {violation.window_end:%H:%M} UTC",
    )


def _update(endpoint: str, config: str) -> str:
    return (
        f"aws sagemaker update-endpoint --endpoint-name {endpoint} --endpoint-config-name {config} "
        "--retain-all-variant-properties"
    )


def _command(endpoint: str, action: str) -> Sequence[str]:
    detail = json.dumps(json.dumps({"endpoint": endpoint, "action": action}))
    return (
        "aws events put-events --entries \\",
        f"  'Source=glassbox.operator,DetailType=Glassbox Command,Detail={detail}'",
    )


def _twin(configs: EndpointConfigs) -> str:
    return f"make twin STACK={configs.stack}"
