"""What the reactions to an incident work with, made of boto3's clients."""

from typing import Any, Protocol

from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.notices import Topic
from glassbox.incident import Configs, Desk, Limits


class DeskSettings(Protocol):
    """The settings that every function at the desk has."""

    @property
    def incidents_table(self) -> str: ...
    @property
    def topic_arn(self) -> str: ...
    @property
    def plain_config(self) -> str: ...
    @property
    def hooked_config(self) -> str: ...
    @property
    def stack_name(self) -> str: ...
    @property
    def rollback_alarm(self) -> str: ...


def desk(settings: DeskSettings, limits: Limits, boto3: Any) -> Desk:
    """``boto3`` is the module or a session."""
    return Desk(
        Configs(settings.plain_config, settings.hooked_config, settings.stack_name),
        limits,
        SageMakerEndpoint(boto3.client("sagemaker"), settings.rollback_alarm),
        IncidentsTable(boto3.client("dynamodb"), settings.incidents_table),
        Topic(boto3.client("sns"), settings.topic_arn),
    )
