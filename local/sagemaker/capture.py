"""Data capture: an endpoint's requests and responses as JSON lines in S3.

Format of records and keys: "Capture data from real-time endpoint" in the SageMaker developer guide.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.errors import StartFailedError
from local.sagemaker.platform import Platform, split_s3_uri

logger = logging.getLogger("glassbox.capture")

UPLOAD_ATTEMPTS = 3


@dataclass(frozen=True)
class Exchange:
    """The request and the response of one inference; `time` is the request's arrival, UTC."""

    time: datetime
    request: bytes
    request_type: str | None
    response: bytes
    response_type: str | None
    inference_id: str | None = None
    custom_attributes: str | None = None


def record(exchange: Exchange, config: dict[str, Any]) -> dict[str, Any]:
    """Return the captured record of one inference for a DataCaptureConfig."""
    modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
    data: dict[str, Any] = {}
    if modes & {"Input", "InputAndOutput"}:
        data["endpointInput"] = _side("INPUT", exchange.request, exchange.request_type, config)
    if modes & {"Output", "InputAndOutput"}:
        data["endpointOutput"] = _side("OUTPUT", exchange.response, exchange.response_type, config)
    metadata: dict[str, Any] = {"eventId": str(uuid.uuid4())}
    if exchange.inference_id:
        metadata["inferenceId"] = exchange.inference_id
    if exchange.custom_attributes:
        metadata["customAttributes"] = [exchange.custom_attributes]  # verbatim, as one element
    metadata["inferenceTime"] = exchange.time.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"captureData": data, "eventMetadata": metadata, "eventVersion": "0"}


def _side(mode: str, body: bytes, content_type: str | None, config: dict[str, Any]) -> dict[str, Any]:
    encoding, data = _encoded(body, content_type, config.get("CaptureContentTypeHeader") or {})
    return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}


def _encoded(body: bytes, content_type: str | None, headers: dict[str, Any]) -> tuple[str, str]:
    """Return encoding and data: text for the config's content types, base64 for all others, even JSON."""
    essence = (content_type or "").partition(";")[0].strip().lower()
    for encoding, member in (("CSV", "CsvContentTypes"), ("JSON", "JsonContentTypes")):
        if essence in (name.lower() for name in headers.get(member, [])):
            try:
                return encoding, body.decode()
            except UnicodeDecodeError:
                break
    return "BASE64", base64.b64encode(body).decode()


def object_key(prefix: str, endpoint: str, variant: str, first: datetime) -> str:
    """Return an object's key, by the time of its first record."""
    name = f"{first:%M-%S}-{first.microsecond // 1000:03d}-{uuid.uuid4()}.jsonl"
    return "/".join(filter(None, [prefix, endpoint, variant, f"{first:%Y/%m/%d/%H}", name]))


@dataclass
class _Buffer:
    role_arn: str
    kms_key: str | None
    first: datetime
    lines: list[str] = field(default_factory=list)


class Capture:
    """Buffers records by endpoint and variant, and writes them to S3 with the model's role.

    As on AWS, capture is best effort: after UPLOAD_ATTEMPTS failures the records are logged as lost.
    """

    def __init__(
        self,
        platform: Platform,
        *,
        flush_seconds: float = 1.0,
        flush_records: int = 100,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._platform = platform
        self._flush_records = flush_records
        self._draw = draw
        self._lock = threading.Lock()
        self._upload_lock = threading.Lock()
        self._buffers: dict[tuple[str, str, str], _Buffer] = {}
        self._full = threading.Event()
        self._closed = False
        self._seconds = flush_seconds
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def add(
        self, endpoint: str, variant: str, config: dict[str, Any], role_arn: str, exchange: Exchange
    ) -> None:
        """Capture the exchange if the config enables capture and the sample contains it."""
        if not config.get("EnableCapture", False):
            return
        if self._draw() * 100 >= config["InitialSamplingPercentage"]:
            return
        line = json.dumps(record(exchange, config), separators=(",", ":"))
        key = (endpoint, variant, config["DestinationS3Uri"])
        with self._lock:
            buffer = self._buffers.get(key)
            if buffer is None:
                buffer = self._buffers[key] = _Buffer(role_arn, config.get("KmsKeyId"), exchange.time)
            buffer.lines.append(line)
            if len(buffer.lines) >= self._flush_records:
                self._full.set()

    def flush(self) -> None:
        """Write all buffered records to S3."""
        with self._upload_lock:
            with self._lock:
                buffers, self._buffers = self._buffers, {}
            for (endpoint, variant, destination), buffer in buffers.items():
                self._upload(endpoint, variant, destination, buffer)

    def close(self) -> None:
        """Flush and stop."""
        self._closed = True
        self._full.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closed:
            self._full.wait(self._seconds)
            self._full.clear()
            self.flush()

    def _upload(self, endpoint: str, variant: str, destination: str, buffer: _Buffer) -> None:
        bucket, prefix = split_s3_uri(destination)
        key = object_key(prefix, endpoint, variant, buffer.first)
        encryption = (
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": buffer.kms_key} if buffer.kms_key else {}
        )
        body = "\n".join(buffer.lines).encode() + b"\n"
        for attempt in range(1, UPLOAD_ATTEMPTS + 1):
            try:
                self._platform.s3(buffer.role_arn).put_object(Bucket=bucket, Key=key, Body=body, **encryption)
            except (ClientError, BotoCoreError, StartFailedError) as error:
                logger.warning("capture of %s to s3://%s/%s failed: %s", endpoint, bucket, key, error)
                time.sleep(0.2 * attempt)
            else:
                return
        logger.error("%s: lost %d captured records", endpoint, len(buffer.lines))
