"""A view of the dashboard -> the HTML of its widget."""

import functools
import os
from datetime import UTC, datetime
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext

from glassbox.aws.counts_table import CountsTable
from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.objects import Objects
from glassbox.incidents.dashboard import WidgetDependencies, WidgetSettings, widget
from glassbox.settings import from_env

logger, tracer = Logger(), Tracer()


@functools.cache
def build() -> WidgetDependencies:
    settings = from_env(WidgetSettings, os.environ)
    dynamodb = boto3.client("dynamodb")
    return WidgetDependencies(
        settings=settings,
        endpoint=SageMakerEndpoint(boto3.client("sagemaker")),
        incidents=IncidentsTable(dynamodb, settings.incidents_table),
        counts=CountsTable(dynamodb, settings.counts_table),
        objects=Objects(boto3.client("s3")),
    )


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: dict[str, Any], context: LambdaContext) -> str:
    return widget(event, build(), datetime.now(UTC))
