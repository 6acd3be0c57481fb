"""A violation -> an incident, and the endpoint swapped to its hooked config."""

import functools
import os
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
from glassbox.aws.objects import Objects
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Outcome
from glassbox.incidents.workflow import IncidentDependencies, swap
from glassbox.queue_message import read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Dependencies:
    objects: Objects
    incidents: IncidentDependencies


@functools.cache
def build() -> Dependencies:
    incidents = incident_dependencies(from_env(IncidentSettings, os.environ), boto3)
    return Dependencies(Objects(boto3.client("s3")), incidents)


@tracer.capture_method(capture_response=False)
def swap_for(record: SQSRecord) -> None:
    dependencies = build()
    violation = read_violation(read_event(record.body), dependencies.objects)
    if violation is None:
        logger.info("constraint_violations.json holds no violations")
        return
    outcome = swap(violation, dependencies.incidents, datetime.now(UTC))
    metrics.add_dimension("endpoint", violation.endpoint)
    metrics.add_metric("Violations", MetricUnit.Count, 1)
    metrics.add_metric("EndpointSwaps", MetricUnit.Count, outcome is Outcome.SWAPPING)
    logger.info("violation handled", outcome=outcome, check=violation.check, reason=violation.reason)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, swap_for, processor, context)
