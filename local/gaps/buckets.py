"""S3's check of the bucket owner that a request expects."""

from __future__ import annotations

from typing import Any

import ministack.app as ministack
from ministack.services import s3

EXPECTED = "x-amz-expected-bucket-owner"


def install() -> None:
    """Refuse a request that expects another owner than the bucket has."""
    answer = ministack.SERVICE_HANDLERS["s3"]

    async def handle(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any], **more: Any
    ) -> Any:
        bucket, _ = s3._parse_bucket_key(path, headers)
        owner = s3._bucket_owner_account(bucket) if EXPECTED in headers else None
        if owner not in (None, headers.get(EXPECTED)):
            return s3._error("AccessDenied", "Access Denied", 403, path)
        return await answer(method, path, headers, body, query, **more)

    ministack.SERVICE_HANDLERS["s3"] = handle
