"""The custom widget of the CloudWatch dashboard: endpoint, incident, heat maps and counts per class as HTML.

CloudWatch shows it without JavaScript, and calls :func:`command` for a button, with the viewer's own permissions.
"""

import base64
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import jinja2
import msgspec

from glassbox.errors import BadInputError, printable
from glassbox.explanation.facts import Refusal, read_facts
from glassbox.incidents.events import COMMAND_DETAIL_TYPE, OPERATOR_SOURCE
from glassbox.incidents.incident_report import PREVIEW_BYTES, bars
from glassbox.incidents.model import EndpointConfigs, Incident
from glassbox.monitoring.counts import SLOT, Window, slot_start, total
from glassbox.ports import CountsStore, Endpoint, EventBus, IncidentsStore, Objects
from glassbox.settings import setting

DESCRIPTION = """### Glassbox
Shows what the endpoint serves, its open or last incident with heat maps, and the counts per class.
The parameter `heatmaps` is the number of them, 0 to 24, by default 8.
"""
"""CloudWatch shows it where someone adds the widget to a dashboard."""

_FACTS_BYTES = 1 << 20
_REASON_CHARACTERS = 300
_PAST = timedelta(days=7)
_LISTED = 5  # past incidents


@dataclass(frozen=True, kw_only=True)
class WidgetSettings:
    """Settings of the widget.

    Without ``command_function_arn``, it has no buttons, and its reports are pages of the server that shows it.
    """

    endpoint_name: str
    bucket: str
    incidents_table: str
    counts_table: str
    stack_name: str
    command_function_arn: str
    plain_config: str = ""
    hooked_config: str = ""
    window_hours: int = setting(1, within=(1, 24))
    min_predictions: int = setting(50, within=(1, None))


@dataclass(frozen=True, kw_only=True)
class WidgetDependencies:
    """Dependencies of the widget, which only reads."""

    settings: WidgetSettings
    endpoint: Endpoint
    incidents: IncidentsStore
    counts: CountsStore
    objects: Objects


class _Parameters(msgspec.Struct):
    heatmaps: Annotated[int, msgspec.Meta(ge=0, le=24)] = 8
    describe: bool = False


class _Button(msgspec.Struct):
    action: Literal["abort", "extend", "open"]
    minutes: Annotated[int, msgspec.Meta(ge=1, le=24 * 60)] = 30


@dataclass(frozen=True)
class _Heatmap:
    title: str
    note: str
    uri: str


def widget(event: Mapping[str, Any], dependencies: WidgetDependencies, now: datetime) -> str:
    """Return the HTML of the widget, or its description as Markdown.

    Args:
        event: the parameters of the widget, and its context.

    Raises:
        BadInputError: a parameter has another type or is out of range.
        RetryableError: an AWS service does not answer.
    """
    try:
        given = msgspec.convert(event, _Parameters, strict=False)
    except ValueError as error:
        raise BadInputError(f"widget: {error}") from error
    if given.describe:
        return DESCRIPTION
    settings = dependencies.settings
    live = dependencies.endpoint.describe(settings.endpoint_name)
    incident = dependencies.incidents.current(settings.endpoint_name)
    past = dependencies.incidents.past(settings.endpoint_name, now - _PAST)
    paused = dependencies.incidents.paused_until(settings.endpoint_name)
    end = slot_start(now) + SLOT
    window = Window(end - timedelta(hours=settings.window_hours), end)
    counted = total(
        slot
        for variant in live.variants
        for slot in dependencies.counts.read(f"{settings.endpoint_name}/{variant}", window).values()
    )
    source = importlib.resources.files("glassbox.incidents").joinpath("dashboard.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        settings=settings,
        live=live,
        role=_role(
            live.config, EndpointConfigs(settings.plain_config, settings.hooked_config, settings.stack_name)
        ),
        incident=incident,
        paused=paused if paused is not None and now < paused else None,
        heatmaps=_heatmaps(incident, given.heatmaps, dependencies) if incident else [],
        past=[one for one in reversed(past) if incident is None or one.id != incident.id][:_LISTED],
        bars=bars(counted.classes),
        largest=max(counted.classes.values(), default=1),
        frequent=counted.classes.most_common(10),
        counted=counted.sample_size,
        few=counted.sample_size < settings.min_predictions,
    )


def _role(config: str, configs: EndpointConfigs) -> str:
    if config and config in (configs.plain, configs.hooked):
        return "plain" if config == configs.plain else "hooked"
    return "" if not configs.plain else "other"


def _heatmaps(incident: Incident, most: int, dependencies: WidgetDependencies) -> list[_Heatmap]:
    """Return the heat maps to show, those of flagged requests first; an unreadable one has its reason."""
    bucket, objects = dependencies.settings.bucket, dependencies.objects
    folder = f"saliency/{incident.endpoint}/{incident.id}/"
    names = sorted(incident.heatmaps, key=lambda name: (name not in incident.flagged, name))
    found = []
    for name in names[:most]:
        try:
            facts = read_facts(objects.get(bucket, f"{folder}{name}.json", at_most=_FACTS_BYTES))
            preview = objects.get(bucket, f"{folder}{name}.webp", at_most=PREVIEW_BYTES)
        except (BadInputError, ValueError) as error:
            found.append(_Heatmap(printable(name, 80), printable(error, _REASON_CHARACTERS), ""))
            continue
        if isinstance(facts, Refusal):
            found.append(_Heatmap(printable(name, 80), printable(facts.refused, _REASON_CHARACTERS), ""))
            continue
        uri = f"data:image/webp;base64,{base64.b64encode(preview).decode()}"
        title = f"Class {facts.predicted_class}, {facts.probability:.1%}"
        flagged = "flagged" if name in incident.flagged else "not flagged"
        found.append(_Heatmap(title, flagged if facts.is_sound else f"{flagged}, do not rely on it", uri))
    return found


def command(event: Mapping[str, Any], endpoint: str, events: EventBus) -> str:
    """Send an operator's command, and return the HTML of the answer.

    Raises:
        BadInputError: another action, or minutes out of range.
        RetryableError: EventBridge does not answer.
    """
    try:
        given = msgspec.convert(event, _Button, strict=False)
    except ValueError as error:
        raise BadInputError(f"command: {error}") from error
    detail: dict[str, Any] = {"endpoint": endpoint, "action": given.action}
    if given.action == "extend":
        detail["minutes"] = given.minutes
    events.put(OPERATOR_SOURCE, COMMAND_DETAIL_TYPE, detail)
    return f"<p>Sent <b>{given.action}</b>. Refresh the widget in a minute to see its effect.</p>"
