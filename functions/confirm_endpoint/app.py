"""A state change of the endpoint, or the sweep -> the incident's next state."""

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
from glassbox.incidents.hook_hello import has_hook
from glassbox.incidents.incident_report import write_report
from glassbox.incidents.model import Outcome
from glassbox.incidents.replay import ReplayDependencies, ReplaySettings, captured_inputs, replay, variants_of
from glassbox.incidents.workflow import confirm
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
# A later sweep sends an unanswered request again. Two unanswered requests must fit into the function's timeout.
ONE_TRY = Config(connect_timeout=5, read_timeout=40, retries={"total_max_attempts": 1})
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Settings(IncidentSettings, ReplaySettings):
    counts_table: str
    bucket: str
    replay_key_arn: str


@functools.cache
def build() -> Callable[[datetime], Outcome]:
    settings = from_env(Settings, os.environ)
    metrics.set_default_dimensions(endpoint=settings.endpoint_name)
    objects = Objects(boto3.client("s3"))
    replays = ReplayDependencies(
        settings=settings,
        captures=objects,
        key=ReplayKey(boto3.client("kms"), settings.replay_key_arn),
        runtime=Runtime(boto3.client("sagemaker-runtime", config=ONE_TRY)),
    )
    return functools.partial(
        confirm,
        settings.endpoint_name,
        incident_dependencies(settings, boto3),
        replay=functools.partial(replay, dependencies=replays),
        has_hook=functools.partial(has_hook, bucket=settings.bucket, objects=objects),
        report=functools.partial(
            write_report,
            bucket=settings.bucket,
            objects=objects,
            counts=CountsTable(boto3.client("dynamodb"), settings.counts_table),
            variants=functools.partial(variants_of, dependencies=replays),
            inputs=functools.partial(captured_inputs, dependencies=replays),
        ),
    )


@tracer.capture_method(capture_response=False)
def confirm_for(record: SQSRecord) -> None:
    outcome = build()(datetime.now(UTC))
    metrics.add_metric("OpenIncidents", MetricUnit.Count, outcome.is_open)
    logger.info("confirmed", outcome=outcome)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, confirm_for, processor, context)
