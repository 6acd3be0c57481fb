"""What the tests of the hook of an unchanged endpoint share: an AWS SDK that writes files, and its traces."""

from pathlib import Path

from glassbox.explanation.trace_reader import Trace, read_index, read_trace

# What the hook needs of the AWS SDK: objects become files.
BOTO3 = """
import os, pathlib

class Client:
    def put_object(self, Bucket, Key, Body):
        path = pathlib.Path(os.environ["OBJECTS"], Bucket, Key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Body)

def client(name, **_):
    return Client()
"""


def write_sdk(folder: Path) -> None:
    """Write a ``boto3`` whose objects become files below ``$OBJECTS``."""
    (folder / "boto3.py").write_text(BOTO3)
    (folder / "botocore").mkdir()
    (folder / "botocore" / "__init__.py").touch()
    (folder / "botocore" / "config.py").write_text("Config = dict\n")


def traces_in(folder: Path) -> list[Trace]:
    """Return the traces of all runs, in the order of their steps."""
    return [
        read_trace(index, (folder / "bucket" / index.events_key).read_bytes())
        for path in sorted((folder / "bucket").rglob("index/*/*.json"))
        for index in [read_index(str(path.relative_to(folder / "bucket")), path.read_bytes())]
    ]
