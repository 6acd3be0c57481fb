"""What the tests of a mounted hook share: an owner's network, an AWS SDK that writes files, and traces."""

from pathlib import Path

from glassbox.explanation.trace_reader import Trace, read_index, read_trace

# A small network of an owner, for images of 4 × 4 pixels and 3 channels.
OWNED = """
import numpy as np, torch
from torch import nn

class Owned(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))
"""

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
