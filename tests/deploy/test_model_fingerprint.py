"""The fingerprint of an endpoint's model, and the endpoints that have none."""

import hashlib

import boto3
import pytest
from moto import mock_aws

from deploy.model_fingerprint import model_fingerprint
from deploy.watched_endpoint import WatchedEndpoint


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        session = boto3.Session(region_name="us-east-1")
        session.client("s3").create_bucket(Bucket="models")
        session.client("s3").put_object(Bucket="models", Key="a/model.tar.gz", Body=b"archive" * 300_000)
        yield session


def watched(*containers):
    models = {f"m{i}": {"PrimaryContainer": container} for i, container in enumerate(containers)}
    return WatchedEndpoint({"EndpointName": "shop"}, {}, models, "captures", "c", "", "")


def source(**members):
    return {"ModelDataSource": {"S3DataSource": {"S3Uri": "s3://models/a/model.tar.gz"} | members}}


@pytest.mark.parametrize(
    "container", [{"ModelDataUrl": "s3://models/a/model.tar.gz"}, source(S3DataType="S3Object")]
)
def test_it_is_the_sha256_of_the_archive(session, container):
    assert model_fingerprint(watched(container), session) == (
        hashlib.sha256(b"archive" * 300_000).hexdigest(),
        "",
    )


@pytest.mark.parametrize(
    ("containers", "reason"),
    [
        ([{}], "the model has no archive of one file"),
        ([source(S3DataType="S3Prefix")], "the model has no archive of one file"),
        ([{"ModelDataUrl": "s3://models/a/model.tar.gz"}] * 2, "the endpoint has 2 models"),
        ([{"ModelDataUrl": "s3://models/absent"}], "NoSuchKey"),
    ],
)
def test_without_one_a_note_has_the_reason(session, containers, reason):
    found, note = model_fingerprint(watched(*containers), session)
    assert found == ""
    assert reason in note
    assert note.endswith("will not notice that the reference is of another model.")


def test_a_large_archive_is_not_read(session, monkeypatch):
    monkeypatch.setattr("deploy.model_fingerprint.MAX_ARCHIVE", 100)
    found, note = model_fingerprint(watched({"ModelDataUrl": "s3://models/a/model.tar.gz"}), session)
    assert (
        found,
        note.startswith("ModelFingerprint: s3://models/a/model.tar.gz has more than 100 bytes"),
    ) == ("", True)
