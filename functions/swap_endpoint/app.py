"""A violation -> an incident, and the endpoint on its hooked config."""

import functools
import os
from datetime import UTC, datetime

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from glassbox.aws.bootstrap import IncidentSettings, incident_dependencies
from glassbox.aws.objects import Objects
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Outcome
from glassbox.incidents.workflow import swap
from glassbox.queue_message import read_event
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)


@functools.cache
def build():
    return Objects(boto3.client("s3")), incident_dependencies(from_env(IncidentSettings, os.environ), boto3)


@tracer.capture_method(capture_response=False)
def swap_for(record):
    reports, dependencies = build()
    violation = read_violation(read_event(record.body), reports)
    if violation is None:
        logger.info("the monitor's report holds no violations")
        return
    outcome = swap(violation, dependencies, datetime.now(UTC))
    metrics.add_dimension("endpoint", violation.endpoint)
    metrics.add_metric("Violations", MetricUnit.Count, 1)
    metrics.add_metric("EndpointSwaps", MetricUnit.Count, outcome is Outcome.SWAPPING)
    logger.info("violation handled", outcome=outcome, check=violation.check, reason=violation.reason)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event, context):
    build()
    return process_partial_response(event, swap_for, processor, context)
