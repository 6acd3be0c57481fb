"""The dependencies of the incident handlers, made of boto3's clients."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.aws.events import Events
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.topic import Topic
from glassbox.incidents.model import EndpointConfigs, Limits
from glassbox.incidents.workflow import IncidentDependencies


@dataclass(frozen=True, kw_only=True)
class IncidentSettings(Limits):
    """Settings of every incident handler.

    PLAIN_CONFIG and HOOKED_CONFIG are required unless REACT is false.
    """

    endpoint_name: str
    incidents_table: str
    topic_arn: str
    stack_name: str
    plain_config: str = ""
    hooked_config: str = ""
    rollback_alarm: str = ""

    def problems(self) -> Iterator[str]:
        """Yield what is missing to swap the endpoint."""
        if self.react is True:
            for name in ("plain_config", "hooked_config"):
                if not getattr(self, name):
                    yield f"{name.upper()} is not set, and needed unless REACT is false"


def incident_dependencies(settings: IncidentSettings, boto3: Any) -> IncidentDependencies:
    """Return the dependencies with AWS adapters; ``boto3`` is the module or a session."""
    return IncidentDependencies(
        configs=EndpointConfigs(settings.plain_config, settings.hooked_config, settings.stack_name),
        limits=settings,
        endpoint=SageMakerEndpoint(boto3.client("sagemaker"), settings.rollback_alarm),
        incidents=IncidentsTable(boto3.client("dynamodb"), settings.incidents_table),
        notices=Topic(boto3.client("sns"), settings.topic_arn),
        events=Events(boto3.client("events")),
        clock=lambda: datetime.now(UTC),
    )
