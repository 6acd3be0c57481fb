"""The fingerprint of the model behind an endpoint, by which a diagnosis refuses the reference of another model."""

from __future__ import annotations

import hashlib
from contextlib import closing

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy.hook import MAX_ARCHIVE
from deploy.watched_endpoint import WatchedEndpoint, container_of

_CHUNK = 1 << 20  # bytes


def model_fingerprint(endpoint: WatchedEndpoint, session: boto3.Session) -> tuple[str, str]:
    """Return the sha256 of the model archive in hex, and a note.

    The sha256 is empty, and the note has the reason, for several models, a model without an archive of one file, and
    an archive that cannot be read or exceeds 2 GiB.
    """
    if len(endpoint.models) != 1:
        return "", _note(f"the endpoint has {len(endpoint.models)} models")
    (model,) = endpoint.models.values()
    container = container_of(model) or {}
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    uri = source.get("S3Uri") or container.get("ModelDataUrl")
    if not uri or source.get("S3DataType") == "S3Prefix":
        return "", _note("the model has no archive of one file")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        found = session.client("s3").get_object(Bucket=bucket, Key=key)
        if found["ContentLength"] > MAX_ARCHIVE:
            return "", _note(f"{uri} has more than {MAX_ARCHIVE} bytes")
        digest = hashlib.sha256()
        with closing(found["Body"]) as body:
            for chunk in body.iter_chunks(_CHUNK):
                digest.update(chunk)
    except (ClientError, BotoCoreError) as error:
        return "", _note(str(error))
    return digest.hexdigest(), ""


def _note(reason: str) -> str:
    return f"ModelFingerprint: {reason}. A diagnosis will not notice that the reference is of another model."
