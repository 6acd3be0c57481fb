"""Package the model of a stack's own endpoint and upload it to the account's SageMaker bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

import package
from deploy import ROOT, DeployError
from deploy.account import models_bucket

SAMPLE_WEIGHTS = ROOT / "demo" / "weights" / "signs_w16.pt"


def upload_model(model: Path, session: boto3.Session) -> str:
    """Package a state dict, or take a model.tar.gz, upload it, and return its S3 URI.

    The URI contains a digest of the content, so that an endpoint config never serves another model than before.
    """
    # imported here: only .venv-deploy contains it, and the tests of a twin import the modules that import this one
    from sagemaker.core.helper.session_helper import Session as SageMakerSession
    from sagemaker.core.s3 import S3Uploader

    bucket = models_bucket(session)
    _create_bucket(bucket, session)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "model.tar.gz"
        if model.name.endswith(".tar.gz"):
            archive.write_bytes(model.read_bytes())
        else:
            package.package(model, archive)
        target = f"s3://{bucket}/glassbox/{package.digest(archive)}"
        uploader = SageMakerSession(boto_session=session)
        S3Uploader.upload(str(archive), target, sagemaker_session=uploader)
    return f"{target}/model.tar.gz"


def _create_bucket(bucket: str, session: boto3.Session) -> None:
    """Create the bucket if it is missing. Raises DeployError if another account owns it."""
    s3, region = session.client("s3"), session.region_name
    account = bucket.rpartition("-")[2]
    try:
        s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise DeployError(
                f"Bucket {bucket}: expected a bucket of account {account}, got: {error}. "
                "Allow s3:ListBucket, or upload the model yourself and set SET=ModelDataUrl=s3://…."
            ) from error
        location = {} if region == "us-east-1" else {"LocationConstraint": region}
        s3.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": location} if location else {}))
