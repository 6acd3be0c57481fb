"""A capture file has arrived -> its predictions counted, its windows judged."""

import functools
import os
from dataclasses import dataclass
from datetime import timedelta

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from botocore.config import Config

from glassbox.aws.counts_table import CountsTable
from glassbox.aws.events import Events
from glassbox.aws.objects import Objects
from glassbox.aws.replay_key import ReplayKey
from glassbox.monitoring.count_file import CountingSettings, count_file, judge_file
from glassbox.monitoring.counts import RETENTION
from glassbox.monitoring.monitor_files import SHARES, fetch_baseline, file_metrics
from glassbox.monitoring.response import ResponseParser
from glassbox.queue_message import event_time, read_event, read_object
from glassbox.settings import from_env, setting

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)
# A burst of files is throttled: up to 7 tries, with jitter, 31 s at most between the first and the last but one.
RETRIES = Config(retries={"mode": "standard", "total_max_attempts": 7})


@dataclass(frozen=True, kw_only=True)
class Settings(CountingSettings):
    counts_table: str
    endpoint_name: str
    capture_prefix: str
    replay_key_arn: str
    window_hours: int = setting(1, within=(1, 24))


@functools.cache
def build():
    settings = from_env(Settings, os.environ)
    objects = Objects(boto3.client("s3"))
    counts = CountsTable(boto3.client("dynamodb", config=RETRIES), settings.counts_table)
    count = functools.partial(
        count_file,
        settings=settings,
        parser=ResponseParser(settings.class_path, settings.confidence_path),
        replay_key=ReplayKey(boto3.client("kms"), settings.replay_key_arn).public,
        captures=objects,
        counts=counts,
        folder=f"{settings.capture_prefix}/{settings.endpoint_name}",
    )
    judge = functools.partial(
        judge_file,
        settings=settings,
        length=timedelta(hours=settings.window_hours),
        baseline=fetch_baseline(settings.baseline_statistics, objects),
        counts=counts,
        events=Events(boto3.client("events")),
    )
    return count, judge


@tracer.capture_method(capture_response=False)
def count_and_judge(record):
    count, judge = build()
    event = read_event(record.body)
    counted = count(read_object(event), arrived=event_time(event))
    if counted.new:  # at once: should judging fail, the retry finds nothing new
        emit(counted.file, file_metrics(counted.counts), {})
    judged = judge(counted)
    shares = {SHARES[v.check]: v.value for v in judged.verdicts if v.value is not None}
    emit(counted.file, {"Violations": len(judged.violations)}, shares)
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
        verdicts=[v.reason for v in judged.verdicts],
        violations=[v.reason for v in judged.violations],
    )


def emit(file, counts, shares):
    """One EMF line about a file."""
    metrics.add_dimension("endpoint", file.endpoint)
    metrics.add_dimension("variant", file.variant)
    for name, value in counts.items():
        metrics.add_metric(name, MetricUnit.Count, value)
    for name, value in shares.items():
        metrics.add_metric(name, MetricUnit.NoUnit, value)
    metrics.flush_metrics()


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event, context):
    build()
    return process_partial_response(event, count_and_judge, processor, context)
