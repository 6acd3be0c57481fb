"""A violation -> an incident, and the endpoint swapped to its hooked config."""

import functools
import os
from collections.abc import Callable, Iterator
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
from glassbox.aws.queue import Queue
from glassbox.incidents.diagnosing import request_diagnosis
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Incident, Outcome
from glassbox.incidents.workflow import IncidentDependencies, swap
from glassbox.queue_message import read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Settings(IncidentSettings):
    """Settings of the swap.

    Without the URLs of the queues, no incident is diagnosed.
    """

    diagnose_queue_url: str = ""
    confirm_queue_url: str = ""

    def problems(self) -> Iterator[str]:
        """Yield a queue that is missing beside the other."""
        if bool(self.diagnose_queue_url) != bool(self.confirm_queue_url):
            yield "expected both DIAGNOSE_QUEUE_URL and CONFIRM_QUEUE_URL, or neither"


@dataclass(frozen=True)
class Dependencies:
    objects: Objects
    incidents: IncidentDependencies
    request_diagnosis: Callable[[Incident], None] | None


@functools.cache
def build() -> Dependencies:
    settings = from_env(Settings, os.environ)
    metrics.set_default_dimensions(endpoint=settings.endpoint_name)
    request = None
    if settings.diagnose_queue_url:
        queues = boto3.client("sqs")
        request = functools.partial(
            request_diagnosis,
            diagnoses=Queue(queues, settings.diagnose_queue_url),
            confirmations=Queue(queues, settings.confirm_queue_url),
        )
    incidents = incident_dependencies(settings, boto3)
    return Dependencies(Objects(boto3.client("s3")), incidents, request)


@tracer.capture_method(capture_response=False)
def swap_for(record: SQSRecord) -> None:
    dependencies = build()
    violation = read_violation(read_event(record.body), dependencies.objects)
    if violation is None:
        logger.info("constraint_violations.json holds no violations")
        return
    outcome = swap(
        violation,
        dependencies.incidents,
        datetime.now(UTC),
        request_diagnosis=dependencies.request_diagnosis,
    )
    metrics.add_metric("Violations", MetricUnit.Count, 1)
    metrics.add_metric("EndpointSwaps", MetricUnit.Count, outcome is Outcome.SWAPPING)
    logger.info("violation handled", outcome=outcome, check=violation.check, reason=violation.reason)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, swap_for, processor, context)
