"""A heat map, an operator's command or the sweep -> the endpoint restored to its plain config when due."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from glassbox.aws.bootstrap import IncidentSettings, incident_dependencies
from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.incidents.commands import handle_command
from glassbox.incidents.events import OPERATOR_SOURCE
from glassbox.incidents.model import Outcome
from glassbox.incidents.workflow import IncidentDependencies, restore
from glassbox.queue_message import read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Dependencies:
    endpoint: str
    incidents: IncidentDependencies
    exists: Callable[[str], bool]


@functools.cache
def build() -> Dependencies:
    settings = from_env(IncidentSettings, os.environ)
    metrics.set_default_dimensions(endpoint=settings.endpoint_name)
    incidents = incident_dependencies(settings, boto3)
    return Dependencies(
        settings.endpoint_name, incidents, SageMakerEndpoint(boto3.client("sagemaker")).exists
    )


@tracer.capture_method(capture_response=False)
def restore_for(record: SQSRecord) -> None:
    dependencies = build()
    event, now = read_event(record.body), datetime.now(UTC)
    if event.get("source") == OPERATOR_SOURCE:
        outcome = handle_command(
            event, dependencies.endpoint, dependencies.incidents, now, exists=dependencies.exists
        )
        logger.info("command", outcome=outcome)
    outcome = restore(dependencies.endpoint, dependencies.incidents, now)
    metrics.add_metric("Restores", MetricUnit.Count, outcome is Outcome.RESTORING)
    logger.info("restore", outcome=outcome)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, restore_for, processor, context)
