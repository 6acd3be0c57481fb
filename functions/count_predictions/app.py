"""A capture file -> its predictions counted, its windows checked."""

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config

from glassbox.aws.counts_table import CountsTable
from glassbox.aws.events import Events
from glassbox.aws.objects import Objects
from glassbox.aws.replay_key import ReplayKey
from glassbox.monitoring.baseline import fetch_baseline
from glassbox.monitoring.capture import CaptureFile, CaptureFolder
from glassbox.monitoring.count_file import CountingDependencies, CountingSettings, check_file, count_file
from glassbox.monitoring.counts import RETENTION
from glassbox.monitoring.monitor_files import SHARES, file_metrics
from glassbox.queue_message import event_time, read_event, read_object
from glassbox.settings import from_env, names, setting

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]
# DynamoDB throttles a burst of files: up to 7 attempts with jitter, the last but one at most 31 s after the first.
MOST_CLASS_METRICS = 20
RETRIES = Config(retries={"mode": "standard", "total_max_attempts": 7})


@dataclass(frozen=True, kw_only=True)
class Settings(CountingSettings, CaptureFolder):
    counts_table: str
    replay_key_arn: str
    window_hours: int = setting(1, within=(1, 24))
    class_metrics: str = ""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if len(names(self.class_metrics)) > MOST_CLASS_METRICS:
            yield f"CLASS_METRICS: expected at most {MOST_CLASS_METRICS} classes, got more"


@functools.cache
def read_settings() -> Settings:
    return from_env(Settings, os.environ)


@functools.cache
def build() -> CountingDependencies:
    settings = read_settings()
    objects = Objects(boto3.client("s3"))
    return CountingDependencies(
        settings=settings,
        replay_key=ReplayKey(boto3.client("kms"), settings.replay_key_arn).public,
        captures=objects,
        counts=CountsTable(boto3.client("dynamodb", config=RETRIES), settings.counts_table),
        events=Events(boto3.client("events")),
        length=timedelta(hours=settings.window_hours),
        baseline=fetch_baseline(settings.baseline_statistics, objects),
        folder=settings.capture_folder,
    )


@tracer.capture_method(capture_response=False)
def count_and_check(record: SQSRecord) -> None:
    dependencies, event = build(), read_event(record.body)
    counted = count_file(read_object(event), event_time(event), dependencies)
    if counted.new:  # before the checks: a retry after they failed finds nothing new
        classes = sorted(names(read_settings().class_metrics))
        emit(counted.file, file_metrics(counted.counts, classes), {})
    checked = check_file(counted, dependencies)
    shares = {SHARES[v.check]: v.value for v in checked.verdicts if v.value is not None}
    emit(counted.file, {"Violations": len(checked.violations)}, shares)
    logger.info(
        "counted",
        endpoint=counted.file.endpoint,
        variant=counted.file.variant,
        new=counted.new,
        predictions=counted.tally.counts.sample_size,
        forged_markers=counted.tally.counts.forged,
        unreadable=[str(example) for example in counted.tally.examples],
        refused=f"{counted.expired} records are older than {RETENTION.days} days"
        if counted.expired
        else None,
        verdicts=[v.reason for v in checked.verdicts],
        violations=[v.reason for v in checked.violations],
    )


def emit(file: CaptureFile, counts: Mapping[str, int], shares: Mapping[str, float]) -> None:
    """Write one EMF line about a file."""
    metrics.add_dimension("endpoint", file.endpoint)
    metrics.add_dimension("variant", file.variant)
    for name, value in counts.items():
        metrics.add_metric(name, MetricUnit.Count, value)
    for name, share in shares.items():
        metrics.add_metric(name, MetricUnit.NoUnit, share)
    metrics.flush_metrics()


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, count_and_check, processor, context)
