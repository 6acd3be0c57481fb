"""S3 objects."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlencode

from glassbox.aws.errors import AWS_ERRORS, code_of, translate, translated
from glassbox.errors import BadInputError
from glassbox.monitoring.capture import CHUNK_BYTES

# The S3 console of a partition. Those of the isolated partitions are not public.
_CONSOLES = {
    "aws": "s3.console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}
_GONE = {"NoSuchKey", "NoSuchBucket", "404"}


class Objects:
    """Reads and writes objects through a boto3 ``s3`` client.

    Raises (every method):
        BadInputError: the object or its bucket does not exist.
        RetryableError: any other error of S3, and the network. Also a denied access: without s3:ListBucket, S3
            denies access to a missing object too, and a missing permission can be granted. SQS delivers the message
            three times, then moves it to the dead-letter queue.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def chunks(self, bucket: str, key: str) -> Iterator[bytes]:
        """Yield the body in chunks, for objects of any size."""
        body = self._call("get_object", Bucket=bucket, Key=key)["Body"]
        with translated(f"s3://{bucket}/{key}"):
            yield from body.iter_chunks(CHUNK_BYTES)

    def get(self, bucket: str, key: str, at_most: int = 64 << 20) -> bytes:
        """Return the whole body, or raise BadInputError beyond ``at_most`` bytes."""
        answer = self._call("get_object", Bucket=bucket, Key=key)
        if answer["ContentLength"] > at_most:
            raise BadInputError(
                f"s3://{bucket}/{key}: expected at most {at_most} bytes, got {answer['ContentLength']}"
            )
        with translated(f"s3://{bucket}/{key}"):
            return cast("bytes", answer["Body"].read())

    def put(self, bucket: str, key: str, body: bytes, content_type: str) -> None:
        """Write one object (idempotent)."""
        self._call("put_object", Bucket=bucket, Key=key, Body=body, ContentType=content_type)

    def console_link(self, bucket: str, key: str) -> str:
        """Return an object's address in the S3 console, empty in a partition without a public one.

        It opens for people who may read the object, after they sign in to AWS.
        """
        meta = self._client.meta
        if meta.partition not in _CONSOLES:
            return ""
        query = urlencode({"region": meta.region_name, "prefix": key}, safe="/")
        return f"https://{_CONSOLES[meta.partition]}/s3/object/{bucket}?{query}"

    def folders(self, bucket: str, prefix: str) -> list[str]:
        """Return the names of the folders directly below ``prefix``, which ends in a slash."""
        pages = self._pages(Bucket=bucket, Prefix=prefix, Delimiter="/")
        found = (folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ()))
        return [folder.removeprefix(prefix).rstrip("/") for folder in found]

    def listed(self, bucket: str, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """Yield key, size in bytes and time of the last write of each object, sorted by key."""
        for page in self._pages(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                yield item["Key"], item["Size"], item["LastModified"]

    def _pages(self, **request: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self._call("list_objects_v2", **request)
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        where = f"s3://{request['Bucket']}/{request.get('Key', request.get('Prefix'))}"
        try:
            return cast("dict[str, Any]", getattr(self._client, operation)(**request))
        except AWS_ERRORS as error:
            # without s3:ListBucket, S3 also denies access to a missing object
            if operation == "get_object" and code_of(error) in ("AccessDenied", "403"):
                where += " does not exist, or s3:GetObject is not allowed"
            raise translate(error, where, bad=_GONE) from error
