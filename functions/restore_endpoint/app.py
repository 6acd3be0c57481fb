"""A picture was made, an operator spoke, or the sweep came round -> the endpoint back on its plain config when due."""

import functools
import os
from dataclasses import dataclass
from datetime import UTC, datetime

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from glassbox.aws.bootstrap import DeskSettings, desk
from glassbox.events import COMMAND_DETAIL_TYPE
from glassbox.incidents.workflow import obey, read_command, restore
from glassbox.queue_message import read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)


@dataclass(frozen=True, kw_only=True)
class Settings(DeskSettings):
    endpoint_name: str


@functools.cache
def build():
    settings = from_env(Settings, os.environ)
    return settings.endpoint_name, desk(settings, boto3)


@tracer.capture_method(capture_response=False)
def restore_for(record):
    endpoint, at_desk = build()
    event, now = read_event(record.body), datetime.now(UTC)
    if event.get("detail-type") == COMMAND_DETAIL_TYPE:
        logger.info("command", outcome=obey(read_command(event), at_desk, now))
    outcome = restore(endpoint, at_desk, now)
    metrics.add_metric("Restores", MetricUnit.Count, outcome == "restoring")
    logger.info("restore", outcome=outcome)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event, context):
    build()
    return process_partial_response(event, restore_for, processor, context)
