"""The hello objects of the hook: each process of the hooked model writes one when it has connected to S3.

Without one the hook did not load, and no trace will come.
"""

from datetime import datetime, timedelta

import msgspec

from glassbox.errors import BadInputError, printable
from glassbox.incidents.model import Incident
from glassbox.ports import Objects

# S3 gives the time of a write in seconds of its own clock.
_CLOCKS = timedelta(minutes=1)
_OBJECTS, _BYTES, _CHARACTERS = 20, 4096, 300


class Hello(msgspec.Struct, frozen=True):
    """The report of one process.

    ``self_test`` is ``passed`` or its error; ``adapter`` names how the process reads requests; ``replays`` is the
    reason why it recognises no replay, otherwise empty.
    """

    torch: str
    python: str
    self_test: str
    adapter: str
    replays: str = ""


def hello_folder(endpoint: str) -> str:
    """Return the prefix of an endpoint's hello objects in the stack's bucket."""
    return f"tensors/{endpoint}/hello/"


def has_hook(incident: Incident, bucket: str, objects: Objects) -> bool:
    """Return whether the hook has loaded in a process of the hooked model.

    Raises:
        RetryableError: S3 does not answer.
    """
    return bool(_keys(incident.opened, incident.endpoint, bucket, objects))


def describe_hook(since: datetime, endpoint: str, bucket: str, objects: Objects) -> list[str]:
    """Return one line for each different hello object since a time.

    The endpoint's role writes them, so their content is checked and cut.

    Raises:
        RetryableError: S3 does not answer.
    """
    lines = []
    for key in _keys(since, endpoint, bucket, objects)[:_OBJECTS]:
        try:
            lines.append(_line(objects.get(bucket, key, at_most=_BYTES)))
        except (BadInputError, msgspec.MsgspecError, RecursionError) as error:
            lines.append(f"Hook: unreadable hello object: {printable(error, _CHARACTERS)}")
    return list(dict.fromkeys(lines))


def _keys(since: datetime, endpoint: str, bucket: str, objects: Objects) -> list[str]:
    listed = objects.listed(bucket, hello_folder(endpoint))
    return [key for key, _, written in listed if written >= since - _CLOCKS]


def _line(content: bytes) -> str:
    hello = msgspec.json.decode(content, type=Hello)
    torch, python, adapter = (printable(text, 60) for text in (hello.torch, hello.python, hello.adapter))
    test = printable(hello.self_test, _CHARACTERS)
    replays = printable(hello.replays, _CHARACTERS)
    unread = f", no replay is recognised: {replays}" if replays else ""
    return f"Hook: torch {torch}, Python {python}, requests by {adapter}, self-test {test}{unread}"
