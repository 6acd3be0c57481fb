"""Reading one traced step from S3 over HTTP: our reader and smdebug's create_trial."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import boto3

from benchmarks.saliency import Bucket, traced
from benchmarks.side_by_side import milliseconds, row, show
from glassbox.aws.objects import Objects
from glassbox.explanation.trace_reader import read_index, read_trace
from local.emulator import EmbeddedAws


class Requests:
    """Counts the requests of boto3's default session, in which smdebug creates its clients."""

    def __init__(self) -> None:
        self.sent = 0
        boto3.setup_default_session()
        boto3.DEFAULT_SESSION.events.register("before-send.s3", self._count)

    def _count(self, **_: Any) -> None:
        self.sent += 1

    def of(self, read: Callable[[], object]) -> int:
        """Return the number of requests of a call."""
        before = self.sent
        read()
        return self.sent - before


@contextmanager
def embedded_s3() -> Iterator[Any]:
    """Yield a client of a new S3 with a bucket, which the environment names too."""
    with EmbeddedAws() as aws:
        before = {name: os.environ.get(name) for name in aws.environment}
        os.environ.update(aws.environment)
        try:
            aws.create_bucket("bucket")
            yield boto3.client("s3")
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def ours(objects: Objects, key: str) -> dict[str, Any]:
    """Read a step as functions/render_saliency does."""
    index = read_index(key, objects.get("bucket", key))
    return dict(read_trace(index, objects.get("bucket", index.events_key)).tensors)


def create_trial(key: str) -> dict[str, Any]:
    """Read a step as the article does, from a trial, tensor by tensor."""
    from smdebug.core.modes import ModeKeys
    from smdebug.trials import create_trial

    trial = create_trial(f"s3://bucket/{key.partition('/index/')[0]}")
    (step,) = trial.steps()
    return {name: trial.tensor(name).value(step, mode=ModeKeys.PREDICT) for name in trial.tensor_names()}


def run() -> list[dict[str, Any]]:
    """Measure all rows."""
    rows = []
    requests = Requests()
    with embedded_s3() as client:
        objects = Objects(client)
        for trace_form in ("full", "reduced"):
            key, written = traced(trace_form)
            for name, content in written.items():
                client.put_object(Bucket="bucket", Key=name, Body=content)
            ways = {"ours": partial(ours, objects, key), "theirs": partial(create_trial, key)}
            found, expected = (
                {name: tensor.tobytes() for name, tensor in read().items()} for read in ways.values()
            )
            assert found == expected, "the tensors differ"
            sent = {name: requests.of(read) for name, read in ways.items()}
            times = milliseconds(ways, rounds=3)
            reach = "≥ 50×" if trace_form == "full" else ""  # the article reads full traces
            what = f"{trace_form} step: {len(found)} tensors, {max(map(len, written.values())) / 1e6:.2f} MB"
            rows += [
                row(what, "ms", times["ours"], "create_trial", times["theirs"], reach),
                row(what, "S3 requests", sent["ours"], "create_trial", sent["theirs"], "2"),
                decoding(trace_form, key, written),
            ]
    return rows


def decoding(trace_form: str, key: str, written: Bucket) -> dict[str, Any]:
    """Measure bytes to tensors only, without S3."""
    from smdebug.core.tfrecord.tensor_reader import TensorReader

    events = written[read_index(key, written[key]).events_key]
    times = milliseconds(
        {
            "ours": lambda: read_trace(read_index(key, written[key]), events),
            "theirs": lambda: list(TensorReader(events).read_tensors()),
        },
        rounds=30,
    )
    return row(
        f"{trace_form} step: bytes to tensors only",
        "ms",
        times["ours"],
        "smdebug's TensorReader",
        times["theirs"],
    )


if __name__ == "__main__":
    show(__doc__, run())
