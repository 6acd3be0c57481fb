"""The schedule, at ten past every hour -> a monitor job over the previous hour."""

import functools
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from glassbox.aws.objects import Objects
from glassbox.aws.processing import ProcessingJobs
from glassbox.aws.replay_key import ReplayKey
from glassbox.monitoring.processing_job import MonitorSettings, Outcome, Started, start_monitor
from glassbox.queue_message import event_time, read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]


@functools.cache
def build() -> Callable[[datetime], Started]:
    settings = from_env(MonitorSettings, os.environ)
    metrics.set_default_dimensions(endpoint=settings.endpoint_name)
    return functools.partial(
        start_monitor,
        settings=settings,
        replay_key=ReplayKey(boto3.client("kms"), settings.replay_key_arn).public,
        captures=Objects(boto3.client("s3")),
        jobs=ProcessingJobs(boto3.client("sagemaker")),
    )


@tracer.capture_method(capture_response=False)
def start(record: SQSRecord) -> None:
    started = build()(event_time(read_event(record.body)))
    metrics.add_metric("MonitorJobsStarted", MetricUnit.Count, started.outcome is Outcome.STARTED)
    logger.info(started.outcome, job=started.job, files=started.files, gigabytes=round(started.gigabytes, 3))


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, start, processor, context)
