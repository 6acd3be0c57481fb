"""S3: expected bucket owners, and 403 for missing objects, both of which ministack lacks."""

from __future__ import annotations

from typing import Any

import ministack.app as ministack
from ministack.core import iam_evaluator, router
from ministack.services import s3

EXPECTED = "x-amz-expected-bucket-owner"


def install(region: str) -> None:
    """Deny requests that expect another owner, and 404 to callers without s3:ListBucket."""
    answer = ministack.SERVICE_HANDLERS["s3"]

    async def handle(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any], **more: Any
    ) -> Any:
        bucket, key = s3._parse_bucket_key(path, headers)
        owner = s3._bucket_owner_account(bucket) if EXPECTED in headers else None
        if owner not in (None, headers.get(EXPECTED)):
            return s3._error("AccessDenied", "Access Denied", 403, path)
        response = await answer(method, path, headers, body, query, **more)
        if response[0] == 404 and key and method in ("GET", "HEAD") and bucket in s3._buckets:
            caller = router.extract_access_key_id(headers, query)
            if iam_evaluator.enforce(caller, "s3:ListBucket", "s3", region, f"arn:aws:s3:::{bucket}"):
                status, denied, text = s3._error("AccessDenied", "Access Denied", 403, path)
                return status, denied, b"" if method == "HEAD" else text
        return response

    ministack.SERVICE_HANDLERS["s3"] = handle
