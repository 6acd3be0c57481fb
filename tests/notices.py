"""Every notification that the code can make."""

from dataclasses import replace

from glassbox.incidents import notifications
from glassbox.incidents.model import EndpointConfigs, EndpointState, Incident, Limits, State
from world import NOW


def every_notification(violation):
    """Return every notification, of an endpoint with the longest name and every text at its bound."""
    name, live = "e" * 63, EndpointState("UpdateRollbackFailed", "c" * 63, "reason " * 140)
    incident = Incident(
        name,
        "20261123t102105-" + "c" * 41,
        NOW,
        State.RESTORING,
        NOW,
        "p" * 63,
        "h" * 63,
        replace(violation, endpoint=name, reason="größer 1️⃣ " * 190),
        findings=tuple(f"{n} x class {n}" for n in range(60)),
        timeline=("x" * 300,) * 60,
        report=f"s3://{'b' * 63}/{'k' * 200}",
        report_link=f"https://s3.console.aws.amazon.com/s3/object/{'b' * 63}?region=eu-west-1&prefix={'k' * 200}",
    )
    configs, other = EndpointConfigs("p" * 63, "h" * 63, "s" * 128), incident.cause
    return [
        notifications.opened(incident, Limits()),
        notifications.opened(replace(incident, notify_only=True), Limits()),
        notifications.pending(incident, live.failure, Limits()),
        notifications.closed(incident),
        notifications.closed(replace(incident, unreported=live.failure)),
        notifications.closed(replace(incident, notify_only=True)),
        notifications.diagnosed(replace(incident, diagnosis=f"s3://{'b' * 63}/{'k' * 200}")),
        notifications.diagnosed(replace(incident, report="", diagnosis="s3://bucket/key")),
        notifications.failed(replace(incident, headline=f"Glassbox {name}: failed", failure=live.failure)),
        notifications.cooling_down(incident, other, NOW),
        notifications.cap_reached(incident, other, Limits()),
        notifications.stale_twin(name, live, configs),
        notifications.hooked_without_incident(name, configs),
        notifications.paused(other, NOW),
        notifications.drill(name),
        notifications.not_understood(name, live.failure, configs),
        notifications.aborted(incident),
        notifications.foreign_config(incident, live, configs),
        notifications.superseded(incident, live, configs),
        notifications.broken_endpoint(incident, live),
        notifications.rolled_back(incident, live),
        notifications.refused(incident, live.failure),
        notifications.endpoint_busy(incident, live, Limits()),
        notifications.not_restored(incident, live.failure, NOW),
        notifications.not_seen(incident, live.failure),
    ]
