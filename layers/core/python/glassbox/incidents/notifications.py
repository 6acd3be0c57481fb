"""The texts of the notifications to ops: the reason first, then the facts, then what to do.

What to do is a line ``To …:`` and the commands below it, up to an empty line: :mod:`glassbox.incidents.messages` makes
the next steps of a chat message of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from glassbox.errors import printable
from glassbox.incidents.model import DELETED, EndpointConfigs, EndpointState, Incident, Limits
from glassbox.violation import Violation

_TEXT_LINE_CHARACTERS = 2500
_LISTED = 10  # findings, and lines of the time line: an e-mail has fewer than 40 lines
SEVERITIES: Mapping[str, str] = {
    "swapping": "warning",
    "watching": "warning",
    "restored": "info",
    "closed": "info",
    "diagnosed": "info",
    "failed": "error",
    "cooling-down": "warning",
    "cap-reached": "error",
    "stale-twin": "warning",
    "hooked-without-incident": "warning",
    "paused": "warning",
    "drill": "info",
    "not-understood": "warning",
}
HOOK_NOT_LOADED = (
    "the hook did not load in the hooked model. Likely: its image starts Python with -I or -E, has no torch or boto3, "
    "is isolated from the network, or its role may not write to the stack's bucket"
)


@dataclass(frozen=True)
class Notice:
    """A notification of one event, with its texts and the facts for programs.

    Attributes:
        event: ``swapping``, ``restored``, …: the keys of SEVERITIES.
        incident: id of the incident; empty for a notification about the endpoint alone.
        violation: the cause of the incident, or the violation that opened none.
        report: S3 URI of the incident report, empty before it is written; ``link`` is its address in the console.
    """

    event: str
    endpoint: str
    subject: str
    text: str
    incident: str = ""
    violation: Violation | None = None
    report: str = ""
    link: str = ""

    @property
    def severity(self) -> str:
        """One of PagerDuty's severities, error, warning or info."""
        return SEVERITIES[self.event]

    @property
    def deduplication_key(self) -> str:
        """The same text for all notifications of an incident.

        Two endpoints may have an incident of the same id.
        """
        return f"{self.endpoint}.{self.incident or self.event}"

    @property
    def attributes(self) -> Mapping[str, str]:
        """The SNS message attributes, for filter policies."""
        named = {
            "event": self.event,
            "severity": self.severity,
            "deduplication_key": self.deduplication_key,
            "endpoint": self.endpoint,
        }
        return named | ({"incident": self.incident} if self.incident else {})


def opened(incident: Incident, limits: Limits) -> Notice:
    """Return the notification that an incident has begun."""
    if incident.notify_only:
        return _watching(incident)
    return _notice(incident, "swapping", "violation, swapping to the hooked model", *_begun(incident, limits))


def pending(incident: Incident, reason: str, limits: Limits) -> Notice:
    """Return the notification that an incident has begun and its swap must wait."""
    return _notice(
        incident,
        "swapping",
        "violation, swap pending",
        *_begun(
            incident,
            limits,
            f"The swap is pending: {reason}",
            f"Glassbox retries every few minutes, for {limits.update_minutes:g} minutes at most.",
            "",
        ),
    )


def _watching(incident: Incident) -> Notice:
    return _notice(
        incident,
        "watching",
        "violation (notify-only)",
        *_headline(incident),
        "",
        *_facts(incident),
        "",
        "Glassbox runs in notify-only mode (parameter React=false) and does not change the endpoint.",
        f"You get the report when the window ends, at {incident.cause.window_end:%H:%M} UTC.",
        "Until then, Glassbox adds further violations to this incident and sends no e-mail about them.",
        "",
        "To end it now:",
        *_command(incident.endpoint, "abort"),
    )


def _begun(incident: Incident, limits: Limits, *pending: str) -> Sequence[str]:
    return (
        *_headline(incident),
        "",
        *_facts(incident),
        "",
        *pending,
        f"Glassbox updates the endpoint from {incident.plain_config} to its hooked twin {incident.hooked_config}.",
        "The endpoint keeps serving. Glassbox sends the flagged inputs again, explains them, restores the endpoint",
        f"after {limits.explain_minutes:g} minutes at most, and sends you the report. You need not act.",
        "",
        "To stop it now:",
        *_command(incident.endpoint, "abort"),
    )


def closed(incident: Incident) -> Notice:
    """Return the notification that an incident has ended, with or without its report."""
    headline = "incident closed" if incident.notify_only else "restored"
    return _notice(
        incident,
        "closed" if incident.notify_only else "restored",
        f"{headline}, {'NO report' if incident.unreported else 'report is ready'}",
        *_headline(incident),
        "",
        "Glassbox did not change the endpoint (notify-only)."
        if incident.notify_only
        else f"The endpoint serves {incident.plain_config} again. Heat maps: {len(incident.heatmaps)}.",
        *_first(incident.findings),
        "",
        *_where(incident),
        "",
        *_facts(incident),
        "",
        "Timeline (UTC)",
        *_last(incident.timeline),
    )


def diagnosed(incident: Incident) -> Notice:
    """Return the notification of a diagnosis that came after the notification of the end."""
    return _notice(
        incident,
        "diagnosed",
        "diagnosed after its end",
        *_headline(incident),
        "",
        "The incident ended before its diagnosis.",
        "",
        *(
            ("Its report is written again, with the cause.", *_where(incident))
            if incident.report
            else ("It has no report. To read the diagnosis:", f"aws s3 cp {incident.diagnosis} -")
        ),
        "",
        *_facts(incident),
    )


def _first(lines: Sequence[str]) -> Sequence[str]:
    more = len(lines) - _LISTED
    return (*lines[:_LISTED], f"… {more:,} more, in the report") if more > 0 else lines


def _last(lines: Sequence[str]) -> Sequence[str]:
    more = len(lines) - _LISTED
    return (f"… {more:,} earlier, in the report", *lines[-_LISTED:]) if more > 0 else lines


def _headline(incident: Incident) -> Sequence[str]:
    return (*([incident.why] if incident.why else []), incident.cause.reason)


def _where(incident: Incident) -> Sequence[str]:
    if not incident.unreported:
        return (
            *_opening(incident),
            "To get a link to the report, valid for an hour:",
            f"aws s3 presign {incident.report}",
        )
    return (
        f"Glassbox could not write the report: {incident.unreported}",
        f"The heat maps are in the stack's bucket, under saliency/{incident.endpoint}/{incident.id}/",
    )


def cooling_down(incident: Incident, violation: Violation, until: datetime) -> Notice:
    """Return the notification that a violation in the cooldown opens no incident."""
    notice = _notice(
        incident,
        "cooling-down",
        "another violation, no incident (cooldown)",
        violation.reason,
        "",
        f"The last incident ended at {incident.since:%H:%M} UTC. Glassbox opens no incident before {until:%H:%M} UTC",
        "and does not change the endpoint. Until then, it sends no e-mail about further violations of this check.",
        "",
        "To open an incident for the last hour now:",
        *_command(violation.endpoint, "open"),
    )
    return replace(notice, violation=violation)


def cap_reached(incident: Incident, violation: Violation, limits: Limits) -> Notice:
    """Return the notification that a violation beyond the daily cap opens no incident."""
    notice = _notice(
        incident,
        "cap-reached",
        "another violation, no incident (cap per day)",
        violation.reason,
        "",
        f"Glassbox opened {limits.incidents_per_day} incidents in 24 hours, the most that IncidentsPerDay allows.",
        "It opens no further incident and does not change the endpoint until one of them is 24 hours old.",
        "The problem persists: roll back the model, or block the traffic that causes it.",
        "",
        "To open an incident for the last hour now:",
        *_command(violation.endpoint, "open"),
    )
    return replace(notice, violation=violation)


def stale_twin(endpoint: str, live: EndpointState, configs: EndpointConfigs) -> Notice:
    """Return the notification that an unknown config was deployed outside any incident."""
    return Notice(
        "stale-twin",
        endpoint,
        _subject(endpoint, "a new config is live, its hooked twin is missing"),
        _text(
            f"{endpoint} serves the config {live.config}, which was deployed by someone else.",
            f"Glassbox can only swap between {configs.plain} and its hooked twin {configs.hooked}.",
            "It still counts predictions and notifies you of violations, but does not swap the endpoint.",
            "",
            "To make the hooked twin, in a checkout of Glassbox:",
            _twin(configs),
        ),
    )


def hooked_without_incident(endpoint: str, configs: EndpointConfigs) -> Notice:
    """Return the notification that the endpoint is hooked, and no incident restores it."""
    return Notice(
        "hooked-without-incident",
        endpoint,
        _subject(endpoint, "on the hooked model without an incident"),
        _text(
            f"{endpoint} serves {configs.hooked}, and no incident is open: Glassbox does not restore it.",
            "Someone deployed it, or a swap completed after its incident had ended.",
            "The endpoint keeps serving with the hooked model, a little slower.",
            "",
            "To restore it by hand:",
            _update(endpoint, configs.plain),
        ),
    )


def paused(violation: Violation, until: datetime) -> Notice:
    """Return the notification that a violation in a pause opens no incident."""
    notice = Notice(
        "paused",
        violation.endpoint,
        _subject(violation.endpoint, "violation while paused, no incident"),
        _text(
            violation.reason,
            "",
            f"An operator paused Glassbox until {until:%Y-%m-%d %H:%M} UTC: it counts and checks, and does not change",
            "the endpoint. In this pause, it sends no e-mail about further violations of this check.",
            "",
            "To end the pause now:",
            *_command(violation.endpoint, "resume"),
            "",
            "To open an incident for the last hour now:",
            *_command(violation.endpoint, "open"),
        ),
    )
    return replace(notice, violation=violation)


def drill(endpoint: str) -> Notice:
    """Return the notification of a drill."""
    return Notice(
        "drill",
        endpoint,
        _subject(endpoint, "DRILL, no violation"),
        _text(
            "This is a drill: an operator tests whether notifications arrive. Nothing was changed.",
            "A violation comes to you the same way. You need not act.",
        ),
    )


def not_understood(endpoint: str, reason: str, configs: EndpointConfigs) -> Notice:
    """Return the answer to an operator's event that is not a command."""
    return Notice(
        "not-understood",
        endpoint,
        _subject(endpoint, "command not understood, nothing done"),
        _text(
            f"An event of source glassbox.operator was not understood: {reason}.",
            f'Expected: detail type "Glassbox Command", endpoint "{endpoint}", and one of the actions abort, extend,',
            "open, pause, resume and drill. extend and pause take minutes, 1440 at most.",
            "",
            "To send a command, in a checkout of Glassbox:",
            f"make abort STACK={configs.stack}",
            f"make extend STACK={configs.stack} MINUTES=30",
        ),
    )


def failed(incident: Incident) -> Notice:
    """Return the notification of a failure as the incident holds it."""
    return _made(incident, "failed", incident.headline, incident.failure)


def aborted(incident: Incident) -> Notice:
    """Return the notification that an operator aborted before the swap began."""
    return _notice(
        incident,
        "failed",
        "aborted by an operator",
        "An operator aborted the incident before Glassbox swapped the endpoint. You need not act.",
        "",
        *_facts(incident),
    )


def foreign_config(incident: Incident, live: EndpointState, configs: EndpointConfigs) -> Notice:
    """Return the notification that the endpoint serves neither config, so it is not swapped."""
    return _notice(
        incident,
        "failed",
        "violation, NOT swapped: unknown endpoint config",
        f"The endpoint serves {live.config}, which was deployed by someone else. Glassbox did not change it.",
        f"Glassbox can only swap between {incident.plain_config} and its hooked twin {incident.hooked_config}.",
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        "To make the hooked twin of the config that is live, in a checkout of Glassbox:",
        _twin(configs),
    )


def superseded(incident: Incident, live: EndpointState, configs: EndpointConfigs) -> Notice:
    """Return the notification that someone deployed another config during the incident."""
    return _notice(
        incident,
        "failed",
        "incident closed: a new config was deployed",
        f"Someone deployed {live.config} during the incident. Glassbox ended it and did not change the endpoint.",
        f"Heat maps until then: {len(incident.heatmaps)}.",
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        f"Glassbox can only swap between {incident.plain_config} and its hooked twin {incident.hooked_config}.",
        "To make the hooked twin of the new config, in a checkout of Glassbox:",
        _twin(configs),
    )


def broken_endpoint(incident: Incident, live: EndpointState) -> Notice:
    """Return the notification that the endpoint is broken, deleted or updated for too long."""
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
    """Return the notification that DescribeEndpoint fails, so nothing is done."""
    return _notice(
        incident,
        "failed",
        "DescribeEndpoint fails, state unknown",
        f"DescribeEndpoint failed: {error}",
        f"The endpoint may still serve {incident.hooked_config}. Glassbox retries every few minutes and restores the",
        "endpoint as soon as DescribeEndpoint succeeds.",
        *_permission(error),
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        "To see the endpoint's state, and to restore it by hand:",
        f"aws sagemaker describe-endpoint --endpoint-name {incident.endpoint}",
        _update(incident.endpoint, incident.plain_config),
    )


def _repair(incident: Incident, live: EndpointState) -> Sequence[str]:
    name, plain = incident.endpoint, incident.plain_config
    create = f"aws sagemaker create-endpoint --endpoint-name {name} --endpoint-config-name {plain}"
    if live.status == DELETED:
        return ("To create the endpoint again:", create)
    if live.status == "Failed":  # UpdateEndpoint refuses an endpoint that has failed
        delete = f"aws sagemaker delete-endpoint --endpoint-name {name}"
        return ("The endpoint does not serve. Delete it and create it again:", delete, create)
    describe = f"aws sagemaker describe-endpoint --endpoint-name {name}"
    return ("To see the endpoint's state, then to restore it:", describe, _update(name, plain))


def rolled_back(incident: Incident, live: EndpointState) -> Notice:
    """Return the notification that SageMaker rolled the swap back."""
    return _notice(
        incident,
        "failed",
        "the hooked model did not start, rolled back",
        f"SageMaker rolled the swap back{': ' + live.failure if live.failure else ''}.",
        f"The endpoint serves {live.config} as before. Glassbox explained nothing.",
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        "To read the hooked model's log:",
        f"aws logs tail /aws/sagemaker/Endpoints/{incident.endpoint} --since 1h",
    )


def refused(incident: Incident, error: str) -> Notice:
    """Return the notification that SageMaker refused the swap until Glassbox gave it up."""
    return _notice(
        incident,
        "failed",
        "violation, NOT swapped: SageMaker refused",
        f"SageMaker refused the swap: {error}",
        "Glassbox does not retry the swap.",
        *_permission(error),
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        "To open an incident for the last hour once the cause is fixed:",
        *_command(incident.endpoint, "open"),
    )


def endpoint_busy(incident: Incident, live: EndpointState, limits: Limits) -> Notice:
    """Return the notification that an update by someone else blocked the swap for too long."""
    return _notice(
        incident,
        "failed",
        "violation, NOT swapped: endpoint busy",
        f"The endpoint was still {live.status} after {limits.update_minutes:g} minutes. Glassbox gave up the swap.",
        "",
        incident.cause.reason,
        *_facts(incident),
        "",
        "To open an incident for the last hour once the update has ended:",
        *_command(incident.endpoint, "open"),
    )


def not_restored(incident: Incident, error: str, retry: datetime) -> Notice:
    """Return the notification that the endpoint still serves the hooked model.

    Args:
        retry: time of the next retry.
    """
    return _notice(
        incident,
        "failed",
        "NOT restored, still on the hooked model",
        f"Glassbox could not restore the endpoint to {incident.plain_config}: {error}",
        "The endpoint keeps serving with the hooked model, which is slower.",
        f"Tries so far: {incident.retries + 1}. Glassbox retries at {retry:%H:%M} UTC.",
        *_permission(error),
        "",
        *_facts(incident),
        "",
        "To restore it by hand (create the config again first if it was deleted):",
        _update(incident.endpoint, incident.plain_config),
    )


def _permission(error: str) -> Sequence[str]:
    """Return what to do about an error that names a permission or a key."""
    lower = error.lower()
    if "kms" in lower:
        return (
            "A KMS key denies access. Set the stack's parameter EndpointKeyArn to the KmsKeyId of the endpoint config,",
            "and allow the stack's roles in the key's policy (make plan prints the statement).",
        )
    if "denied" in lower or "not authorized" in lower:
        return (
            "An IAM policy, a permissions boundary or a service control policy denies the call: see the error.",
        )
    return ()


def _notice(incident: Incident, event: str, headline: str, *lines: str) -> Notice:
    return _made(incident, event, _subject(incident.endpoint, headline), _text(*lines))


def _made(incident: Incident, event: str, subject: str, text: str) -> Notice:
    if incident.report_link and incident.report_link not in text:
        text = "\n".join((text, "", *_opening(incident))).rstrip()
    report, link = incident.report, incident.report_link
    return Notice(event, incident.endpoint, subject, text, incident.id, incident.cause, report, link)


def _opening(incident: Incident) -> Sequence[str]:
    if not incident.report_link:
        return ()
    return (f"To open the report of incident {incident.id}, signed in to AWS:", incident.report_link, "")


def _text(*lines: str) -> str:
    # a reason or an error from outside must not add lines of its own
    return "\n".join(printable(line, _TEXT_LINE_CHARACTERS) for line in lines)


def _subject(endpoint: str, headline: str) -> str:
    return f"Glassbox {endpoint}: {headline}"


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
