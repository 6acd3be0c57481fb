"""A capture file has arrived -> its predictions counted, its windows judged."""

import functools
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from glassbox.aws.counts_table import CountsTable
from glassbox.aws.events import Events
from glassbox.aws.objects import Objects
from glassbox.count import CountingSettings, count_file
from glassbox.report import SHARES, fetch_baseline, file_metrics
from glassbox.response import ResponseForm
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)


@dataclass(frozen=True, kw_only=True)
class Settings(CountingSettings):
    counts_table: str


@functools.cache
def build():
    settings = from_env(Settings, os.environ)
    objects = Objects(boto3.client("s3"))
    return functools.partial(
        count_file,
        settings=settings,
        form=ResponseForm(settings.class_path, settings.confidence_path),
        baseline=fetch_baseline(settings.baseline_statistics, objects),
        captures=objects,
        counts=CountsTable(boto3.client("dynamodb"), settings.counts_table),
        events=Events(boto3.client("events")),
    )


@tracer.capture_method(capture_response=False)
def count(record):
    counted = build()(json.loads(record.body)["detail"], now=datetime.now(UTC))
    emit(counted)
    logger.info(
        "counted",
        endpoint=counted.file.endpoint,
        variant=counted.file.variant,
        new=counted.new,
        predictions=counted.tally.counts.n,
        unreadable=[str(example) for example in counted.tally.examples],
        verdicts=[v.reason for v in counted.verdicts],
        violations=[v.reason for v in counted.violations],
    )


def emit(counted):
    """One EMF line a file: what was new in it, and the shares of the hour up to it."""
    metrics.add_dimension("endpoint", counted.file.endpoint)
    metrics.add_dimension("variant", counted.file.variant)
    if counted.new:
        for name, value in file_metrics(counted.tally.counts).items():
            metrics.add_metric(name, MetricUnit.Count, value)
    for verdict in counted.verdicts:
        if verdict.value is not None:
            metrics.add_metric(SHARES[verdict.name], MetricUnit.NoUnit, verdict.value)
    metrics.add_metric("Violations", MetricUnit.Count, len(counted.violations))
    metrics.flush_metrics()


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event, context):
    build()
    return process_partial_response(event, count, processor, context)
