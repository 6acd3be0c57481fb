"""S3 objects, and what S3 answers when they cannot be had."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast

from botocore.exceptions import BotoCoreError

from glassbox.aws.errors import AWS_ERRORS, code_of, translate
from glassbox.errors import BadInputError, RetryableError
from glassbox.monitoring.capture import CHUNK_BYTES

_GONE = {"NoSuchKey", "NoSuchBucket", "404"}


class Objects:
    """Reads and writes objects through a boto3 ``s3`` client.

    Raises (every method):
        BadInputError: S3 says that the object or its bucket does not exist; another try will not find it either.
        RetryableError: any other answer of S3, and the network. So where S3 denies access: without s3:ListBucket S3
            denies access to a missing object too, and a role or key can be mended. The queue delivers the message
            three times, then its dead-letter queue has it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def chunks(self, bucket: str, key: str) -> Iterator[bytes]:
        """The body in pieces, for objects of any size."""
        body = self._call("get_object", Bucket=bucket, Key=key)["Body"]
        try:
            yield from body.iter_chunks(CHUNK_BYTES)
        except BotoCoreError as error:
            raise RetryableError(f"s3://{bucket}/{key}: {error}") from error

    def get(self, bucket: str, key: str, at_most: int = 64 << 20) -> bytes:
        """The whole body, refused with BadInputError beyond ``at_most`` bytes."""
        answer = self._call("get_object", Bucket=bucket, Key=key)
        if answer["ContentLength"] > at_most:
            raise BadInputError(
                f"s3://{bucket}/{key}: {answer['ContentLength']} bytes, at most {at_most} are read"
            )
        try:
            return cast("bytes", answer["Body"].read())
        except BotoCoreError as error:
            raise RetryableError(f"s3://{bucket}/{key}: {error}") from error

    def put(self, bucket: str, key: str, body: bytes, content_type: str) -> None:
        """Write one object; writing the same again changes nothing."""
        self._call("put_object", Bucket=bucket, Key=key, Body=body, ContentType=content_type)

    def folders(self, bucket: str, prefix: str) -> list[str]:
        """The names of the folders directly below ``prefix`` (which ends in a slash)."""
        found: list[str] = []
        request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
        while True:
            page = self._call("list_objects_v2", **request)
            found += [p["Prefix"].removeprefix(prefix).rstrip("/") for p in page.get("CommonPrefixes", ())]
            if not page.get("IsTruncated"):
                return found
            request["ContinuationToken"] = page["NextContinuationToken"]

    def listed(self, bucket: str, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """Key, size in bytes and time of writing of every object below ``prefix``, in the order of the keys."""
        request = {"Bucket": bucket, "Prefix": prefix}
        while True:
            page = self._call("list_objects_v2", **request)
            yield from (
                (item["Key"], item["Size"], item["LastModified"]) for item in page.get("Contents", ())
            )
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def sizes(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and size in bytes of every object below ``prefix``, in the order of the keys."""
        return ((key, size) for key, size, _ in self.listed(bucket, prefix))

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        where = f"s3://{request['Bucket']}/{request.get('Key', request.get('Prefix'))}"
        try:
            return cast("dict[str, Any]", getattr(self._client, operation)(**request))
        except AWS_ERRORS as error:
            # S3 answers so for a missing object too, unless the caller may list the whole bucket
            if operation == "get_object" and code_of(error) in ("AccessDenied", "403"):
                where += " does not exist, or s3:GetObject is not allowed"
            raise translate(error, where, bad=_GONE) from error
