"""A violation event -> the endpoint on its hooked config, and ops told."""

import functools
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.notices import Topic
from glassbox.aws.objects import Objects
from glassbox.incident import read_violation, swap
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)


@dataclass(frozen=True)
class Settings:
    incidents_table: str
    topic_arn: str
    plain_config: str
    hooked_config: str


@functools.cache
def build():
    settings = from_env(Settings, os.environ)
    return functools.partial(read_violation, reports=Objects(boto3.client("s3"))), functools.partial(
        swap,
        plain_config=settings.plain_config,
        hooked_config=settings.hooked_config,
        endpoint=SageMakerEndpoint(boto3.client("sagemaker")),
        incidents=IncidentsTable(boto3.client("dynamodb"), settings.incidents_table),
        notices=Topic(boto3.client("sns"), settings.topic_arn),
    )


@tracer.capture_method(capture_response=False)
def swap_for(record):
    read, swap_once = build()
    violation = read(json.loads(record.body))
    if violation is None:
        logger.info("the monitor's report holds no violations")
        return
    outcome = swap_once(violation, now=datetime.now(UTC))
    metrics.add_dimension("endpoint", violation.endpoint)
    metrics.add_metric("Violations", MetricUnit.Count, 1)
    metrics.add_metric("Swaps", MetricUnit.Count, outcome == "swapped")
    logger.info("violation handled", outcome=outcome, incident=violation.incident_id, reason=violation.reason)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event, context):
    build()
    return process_partial_response(event, swap_for, processor, context)
