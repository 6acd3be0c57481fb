"""A new incident -> its diagnosis, by repairing its inputs and asking the endpoint again."""

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
from botocore.config import Config

from glassbox.aws.bootstrap import IncidentSettings, incident_dependencies
from glassbox.aws.counts_table import CountsTable
from glassbox.aws.endpoint import Runtime
from glassbox.aws.objects import Objects
from glassbox.aws.replay_key import ReplayKey
from glassbox.diagnosis.investigation import DiagnosisSettings, InvestigationDependencies, investigate
from glassbox.incidents.diagnosing import diagnose_incident, read_request
from glassbox.incidents.incident_report import write_report
from glassbox.incidents.model import Outcome
from glassbox.incidents.replay import ReplayDependencies, ReplaySettings, captured_inputs, variants_of
from glassbox.queue_message import read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
# The first request without an answer ends the questions.
ONE_TRY = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Settings(IncidentSettings, ReplaySettings, DiagnosisSettings):
    counts_table: str
    bucket: str
    replay_key_arn: str


@functools.cache
def build() -> Callable[..., Outcome]:
    settings = from_env(Settings, os.environ)
    metrics.set_default_dimensions(endpoint=settings.endpoint_name)
    objects = Objects(boto3.client("s3"))
    counts = CountsTable(boto3.client("dynamodb"), settings.counts_table)
    replays = ReplayDependencies(
        settings=settings,
        captures=objects,
        key=ReplayKey(boto3.client("kms"), settings.replay_key_arn),
        runtime=Runtime(boto3.client("sagemaker-runtime", config=ONE_TRY)),
    )
    investigation = InvestigationDependencies(
        settings=settings, replays=replays, counts=counts, bucket=settings.bucket
    )
    return functools.partial(
        diagnose_incident,
        dependencies=incident_dependencies(settings, boto3),
        investigate=functools.partial(investigate, dependencies=investigation),
        report=functools.partial(
            write_report,
            bucket=settings.bucket,
            objects=objects,
            counts=counts,
            variants=functools.partial(variants_of, dependencies=replays),
            inputs=functools.partial(captured_inputs, dependencies=replays),
        ),
    )


@tracer.capture_method(capture_response=False)
def diagnose_for(record: SQSRecord) -> None:
    outcome = build()(read_request(read_event(record.body)), now=datetime.now(UTC))
    metrics.add_metric("Diagnoses", MetricUnit.Count, outcome is Outcome.DIAGNOSED)
    logger.info("diagnosis", outcome=outcome)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, diagnose_for, processor, context)
