"""What S3 refuses: another bucket owner than a request expects, and to tell that an object is missing."""

from __future__ import annotations

from typing import Any

import ministack.app as ministack
from ministack.core import iam_evaluator
from ministack.core.responses import get_region
from ministack.core.router import extract_access_key_id
from ministack.services import s3

EXPECTED = "x-amz-expected-bucket-owner"


def install() -> None:
    """Refuse a request that expects another owner than the bucket has.

    An object that is missing is told (404) only to who may list the bucket; anybody else is denied access (403).
    """
    answer = ministack.SERVICE_HANDLERS["s3"]

    async def handle(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any], **more: Any
    ) -> Any:
        bucket, key = s3._parse_bucket_key(path, headers)
        owner = s3._bucket_owner_account(bucket) if EXPECTED in headers else None
        if owner not in (None, headers.get(EXPECTED)):
            return s3._error("AccessDenied", "Access Denied", 403, path)
        answered = await answer(method, path, headers, body, query, **more)
        if method in ("GET", "HEAD") and key and answered[0] == 404:
            caller = extract_access_key_id(headers, query)
            if iam_evaluator.enforce(
                caller, "s3:ListBucket", "s3", get_region(), resource_arn=f"arn:aws:s3:::{bucket}"
            ):
                return s3._error("AccessDenied", "Access Denied", 403, path)
        return answered

    ministack.SERVICE_HANDLERS["s3"] = handle
