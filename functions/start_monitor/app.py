"""Ten past the hour -> the monitor container over the hour before."""

import functools
import os

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from glassbox.aws.objects import Objects
from glassbox.aws.processing import ProcessingJobs
from glassbox.aws.replay_key import ReplayKey
from glassbox.monitoring.processing_job import MonitorSettings, start_monitor
from glassbox.queue_message import event_time, read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)


@functools.cache
def build():
    settings = from_env(MonitorSettings, os.environ)
    return functools.partial(
        start_monitor,
        settings=settings,
        replay_key=ReplayKey(boto3.client("kms"), settings.replay_key_arn).public,
        captures=Objects(boto3.client("s3")),
        jobs=ProcessingJobs(boto3.client("sagemaker")),
    )


@tracer.capture_method(capture_response=False)
def start(record):
    started = build()(event_time(read_event(record.body)))
    metrics.add_metric("MonitorJobsStarted", MetricUnit.Count, started.outcome == "started")
    logger.info(started.outcome, job=started.job, files=started.files, gigabytes=round(started.gigabytes, 3))


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event, context):
    build()
    return process_partial_response(event, start, processor, context)
