"""The hello objects of the hook, which the endpoint's role writes."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from fakes import FakeObjects
from glassbox.errors import BadInputError
from glassbox.incidents.events import read_violation
from glassbox.incidents.hook_hello import describe_hook, has_hook, hello_folder
from glassbox.incidents.model import Incident, State

OPENED = datetime(2026, 11, 23, 10, tzinfo=UTC)
HELLO = {
    "torch": "2.6.0",
    "python": "3.12.9",
    "self_test": "passed",
    "adapter": "SageMaker's inference toolkit",
}
LINE = "Hook: torch 2.6.0, Python 3.12.9, requests by SageMaker's inference toolkit, self-test passed"


class Written(FakeObjects):
    """Objects with the times of their writes, by key."""

    def __init__(self, **objects):
        super().__init__({("bucket", f"tensors/traffic-signs/hello/{k}"): v[1] for k, v in objects.items()})
        self.written = {f"tensors/traffic-signs/hello/{k}": v[0] for k, v in objects.items()}

    def listed(self, bucket, prefix):
        return ((key, size, self.written[key]) for key, size, _ in super().listed(bucket, prefix))

    def get(self, bucket, key, at_most=64 << 20):
        if len(found := super().get(bucket, key)) > at_most:
            raise BadInputError(f"expected at most {at_most} bytes, got {len(found)}")
        return found


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    return Incident("traffic-signs", "id", OPENED, State.HOOKED, OPENED, "plain", "hooked", cause)


def written(seconds, **changes):
    return OPENED + timedelta(seconds=seconds), json.dumps(HELLO | changes).encode()


@pytest.mark.parametrize(("seconds", "found"), [(-3600, False), (-61, False), (-60, True), (30, True)])
def test_only_a_hello_object_of_this_incident_counts(incident, seconds, found):
    objects = Written(one=written(seconds))
    assert has_hook(incident, "bucket", objects) is found
    assert list(describe_hook(OPENED, "traffic-signs", "bucket", objects)) == ([LINE] if found else [])


def test_processes_that_report_the_same_share_a_line(incident):
    failed = written(9, self_test="failed: self-test of the gradients with torch 2.6.0: gelu: incomplete")
    objects = Written(a=written(1), b=written(2), c=failed)
    first, second = describe_hook(OPENED, "traffic-signs", "bucket", objects)
    assert first == LINE
    assert second.endswith("self-test failed: self-test of the gradients with torch 2.6.0: gelu: incomplete")


def test_a_process_that_recognises_no_replay_gives_the_reason(incident):
    objects = Written(one=written(1, replays="BadInputError: REPLAY_KEY: expected base64, got another"))
    (line,) = describe_hook(OPENED, "traffic-signs", "bucket", objects)
    assert line == f"{LINE}, no replay is recognised: BadInputError: REPLAY_KEY: expected base64, got another"


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b'{"torch": 7}', b"[" * 4096, json.dumps(HELLO | {"torch": "2" * 5000}).encode()],
)
def test_an_unreadable_hello_object_is_named_and_proves_the_hook(incident, content):
    objects = Written(one=(OPENED, content))
    assert has_hook(incident, "bucket", objects)
    (line,) = describe_hook(OPENED, "traffic-signs", "bucket", objects)
    assert line.startswith("Hook: unreadable hello object: ")
    assert len(line) < 400


def test_texts_of_a_hello_object_are_cut_and_printable(incident):
    objects = Written(one=written(0, torch="2\n" + "x" * 500, self_test="y" * 3000))
    (line,) = describe_hook(OPENED, "traffic-signs", "bucket", objects)
    assert "\n" not in line
    assert len(line) < 600


def test_reads_a_few_objects_only(incident):
    objects = Written(**{f"{n:03d}": written(1, python=f"3.{n}") for n in range(50)})
    assert len(list(describe_hook(OPENED, "traffic-signs", "bucket", objects))) == 20


def test_the_folder_is_where_the_hook_writes(incident):
    assert hello_folder("traffic-signs") == "tensors/traffic-signs/hello/"
