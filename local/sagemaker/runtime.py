"""InvokeEndpoint: the request to a variant's container and its response, both captured."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from local.sagemaker.capture import Capture, Exchange
from local.sagemaker.clock import CaptureClock
from local.sagemaker.container import Answer
from local.sagemaker.endpoints import Endpoints
from local.sagemaker.errors import SageMakerError
from local.sagemaker.hosting import Fleet, Variant
from local.sagemaker.platform import Platform

MAX_BODY = 6_291_456  # bytes

FORWARDED = (
    "Content-Type",
    "Accept",
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-Inference-Id",
)

TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)


@dataclass(frozen=True)
class _Request:
    arrived: datetime
    body: bytes
    headers: Mapping[str, str]


class Runtime:
    """Routes invocations to the live fleet, also during an update."""

    def __init__(
        self, platform: Platform, endpoints: Endpoints, capture: Capture, clock: CaptureClock
    ) -> None:
        self._platform = platform
        self._endpoints = endpoints
        self._capture = capture
        self._clock = clock

    def invoke(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> tuple[str, Answer]:
        """Invoke an endpoint and return the variant's name and its response.

        Args:
            headers: of the HTTP request, names in lower case.

        Raises:
            SageMakerError: ValidationError, ModelError, or status 413 for a large body.
        """
        if len(body) > MAX_BODY:
            raise SageMakerError("", f"HTTP content length exceeded {MAX_BODY} bytes.", status=413)
        request = _Request(self._clock.now(), body, headers)
        while True:
            fleet = self._endpoints.live(endpoint)
            if fleet is None:
                raise SageMakerError(
                    "ValidationError", f"Endpoint {endpoint} of account {self._platform.account} not found."
                )
            with fleet.lease():
                # Another thread may have retired the fleet before the lease; a live fleet waits for the lease.
                if self._endpoints.live(endpoint) is fleet:
                    variant = self._variant(fleet, request)
                    self._mirror(fleet, variant, request)
                    answer = self._ask(fleet, variant, request)
                    break
        if not 200 <= answer.status < 300:
            raise self._model_error(endpoint, answer)
        return variant.name, answer

    def _variant(self, fleet: Fleet, request: _Request) -> Variant:
        target = request.headers.get("x-amzn-sagemaker-target-variant")
        variant = fleet.choose(target)
        if variant is None:
            raise SageMakerError(
                "ValidationError", f"Variant {target} not found for Request. Endpoint {fleet.endpoint}."
            )
        return variant

    def _mirror(self, fleet: Fleet, variant: Variant, request: _Request) -> None:
        """Copy requests to the shadow variants, in the ratio of their weights to the variant's."""
        for shadow in fleet.shadow:
            if random.random() * variant.weight < shadow.weight:
                threading.Thread(target=self._ask_shadow, args=(fleet, shadow, request), daemon=True).start()

    def _ask_shadow(self, fleet: Fleet, variant: Variant, request: _Request) -> None:
        with fleet.lease():
            self._ask(fleet, variant, request)

    def _ask(self, fleet: Fleet, variant: Variant, request: _Request) -> Answer:
        forwarded = {n: request.headers[n.lower()] for n in FORWARDED if request.headers.get(n.lower())}
        try:
            answer = fleet.instance(variant).invoke(request.body, forwarded)
        except TimeoutError:
            answer = Answer(0, TIMED_OUT.encode(), None, None)
        except (OSError, http.client.HTTPException) as error:
            answer = Answer(500, f"No answer from container primary: {error}".encode(), None, None)
        if config := fleet.config.get("DataCaptureConfig"):
            exchange = Exchange(
                time=request.arrived,
                request=request.body,
                request_type=request.headers.get("content-type"),
                response=answer.body,
                response_type=answer.content_type,
                inference_id=request.headers.get("x-amzn-sagemaker-inference-id"),
                custom_attributes=request.headers.get("x-amzn-sagemaker-custom-attributes"),
            )
            self._capture.add(fleet.endpoint, variant.name, config, variant.role_arn, exchange)
        return answer

    def _model_error(self, endpoint: str, answer: Answer) -> SageMakerError:
        text = answer.body.decode(errors="replace")
        kind = "client" if 400 <= answer.status < 500 else "server"
        group = f"/aws/sagemaker/Endpoints/{endpoint}"
        region, account = self._platform.region, self._platform.account
        return SageMakerError(
            "ModelError",
            f'Received {kind} error ({answer.status}) from primary with message "{text}". See '
            f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group} "
            f"in account {account} for more information.",
            status=424,
            OriginalStatusCode=answer.status,
            OriginalMessage=text,
            LogStreamArn=f"arn:aws:logs:{region}:{account}:log-group:{group}",
        )
