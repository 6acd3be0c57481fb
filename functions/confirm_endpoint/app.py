"""The endpoint changed its state, or the sweep came round -> the incident goes on from what is live."""

import functools
import os
from dataclasses import dataclass
from datetime import UTC, datetime

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from botocore.config import Config

from glassbox.aws.bootstrap import IncidentSettings, incident_dependencies
from glassbox.aws.counts_table import CountsTable
from glassbox.aws.endpoint import Runtime
from glassbox.aws.objects import Objects
from glassbox.aws.replay_key import ReplayKey
from glassbox.incidents.incident_report import write_report
from glassbox.incidents.replay import flagged_inputs, replay, variants_of
from glassbox.incidents.workflow import confirm
from glassbox.monitoring.counts import MAX_CLASSES
from glassbox.monitoring.response import ResponseParser
from glassbox.settings import from_env, names, setting

logger, tracer, metrics = Logger(), Tracer(), Metrics()
# a request that was not answered is sent again by a later sweep: two of them must fit into the function's timeout
ONE_TRY = Config(connect_timeout=5, read_timeout=40, retries={"total_max_attempts": 1})
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)


@dataclass(frozen=True, kw_only=True)
class Settings(IncidentSettings):
    endpoint_name: str
    counts_table: str
    bucket: str
    capture_bucket: str
    capture_prefix: str
    replay_key_arn: str
    max_flagged_replays: int = setting(12, within=(1, 100))
    max_comparison_replays: int = setting(4, within=(0, 100))
    shadow_variants: str = ""
    class_path: str | None = None
    confidence_path: str | None = None
    low_confidence: float | None = setting(None, within=(0, 1))
    num_classes: int | None = setting(None, within=(1, MAX_CLASSES))


@functools.cache
def build():
    settings = from_env(Settings, os.environ)
    objects = Objects(boto3.client("s3"))
    captured = {
        "bucket": settings.capture_bucket,
        "prefix": settings.capture_prefix,
        "shadows": names(settings.shadow_variants),
        "captures": objects,
    }
    chosen = captured | {
        "max_flagged_replays": settings.max_flagged_replays,
        "parser": ResponseParser(settings.class_path, settings.confidence_path),
        "low_confidence": settings.low_confidence,
        "num_classes": settings.num_classes,
        "key": ReplayKey(boto3.client("kms"), settings.replay_key_arn),
    }
    return functools.partial(
        confirm,
        settings.endpoint_name,
        incident_dependencies(settings, boto3),
        replay=functools.partial(
            replay,
            **chosen,
            max_comparison_replays=settings.max_comparison_replays,
            runtime=Runtime(boto3.client("sagemaker-runtime", config=ONE_TRY)),
        ),
        report=functools.partial(
            write_report,
            bucket=settings.bucket,
            objects=objects,
            counts=CountsTable(boto3.client("dynamodb"), settings.counts_table),
            variants=functools.partial(variants_of, **captured),
            inputs=functools.partial(flagged_inputs, **chosen),
        ),
    )


@tracer.capture_method(capture_response=False)
def confirm_for(record):
    outcome = build()(now=datetime.now(UTC))
    metrics.add_metric("OpenIncidents", MetricUnit.Count, outcome.is_open)
    logger.info("confirmed", outcome=outcome)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event, context):
    build()
    return process_partial_response(event, confirm_for, processor, context)
