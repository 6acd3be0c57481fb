"""A button of the dashboard's widget -> an operator's command on the event bus."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext

from glassbox.aws.events import Events
from glassbox.incidents.dashboard import command
from glassbox.settings import from_env

logger, tracer = Logger(), Tracer()


@dataclass(frozen=True, kw_only=True)
class Settings:
    endpoint_name: str


@functools.cache
def build() -> Callable[[Mapping[str, Any]], str]:
    settings = from_env(Settings, os.environ)
    return functools.partial(command, endpoint=settings.endpoint_name, events=Events(boto3.client("events")))


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: dict[str, Any], context: LambdaContext) -> str:
    answer = build()(event)
    logger.info("command sent", action=event.get("action"))
    return answer
