"""A trace on S3 -> the heat maps of its samples."""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.objects import Objects
from glassbox.errors import printable
from glassbox.explanation.heatmap import PALETTES, PERCEPTUAL
from glassbox.explanation.render import Rendered, render_step
from glassbox.incidents.model import HeatmapLimit
from glassbox.monitoring.counts import ResponsePaths
from glassbox.queue_message import read_event, read_object
from glassbox.settings import from_env

logger, tracer, metrics = Logger(), Tracer(), Metrics()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False, logger=logger)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Settings(ResponsePaths, HeatmapLimit):
    bucket: str
    endpoint_name: str
    incidents_table: str
    palette: str = PERCEPTUAL

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.palette not in PALETTES:
            yield f"PALETTE={printable(self.palette, 80)!r} must be one of {', '.join(PALETTES)}"


@functools.cache
def build() -> Callable[[str], list[Rendered]]:
    settings = from_env(Settings, os.environ)
    metrics.set_default_dimensions(endpoint=settings.endpoint_name)
    return functools.partial(
        render_step,
        bucket=settings.bucket,
        endpoint=settings.endpoint_name,
        max_heatmaps=settings.max_heatmaps,
        palette=settings.palette,
        responses=settings.parser(),
        objects=Objects(boto3.client("s3")),
        incidents=IncidentsTable(boto3.client("dynamodb"), settings.incidents_table),
    )


@tracer.capture_method(capture_response=False)
def render(record: SQSRecord) -> None:
    rendered = build()(read_object(read_event(record.body)).key)
    refused = [r for r in rendered if r.refused]
    metrics.add_metric("HeatmapsRendered", MetricUnit.Count, len(rendered) - len(refused))
    metrics.add_metric(
        "IncompleteExplanations", MetricUnit.Count, sum(not (r.complete or r.refused) for r in rendered)
    )
    metrics.add_metric("RefusedReplays", MetricUnit.Count, len(refused))
    logger.info("rendered", keys=[r.key for r in rendered], refused=[r.refused for r in refused])


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    build()
    return process_partial_response(event, render, processor, context)
