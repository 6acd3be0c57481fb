"""Data capture: the lines of a capture file -> records of predictions.

The record is that of the SageMaker developer guide, "Capture data from real-time endpoint": a JSON object a line,
each side encoded for itself (JSON, CSV or BASE64). Only what counting needs is parsed: the output, the time of the
inference and the custom attributes. The input is passed over, so that an image costs no more than its bytes.
"""

import base64
import binascii
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jmespath
import orjson

from glassbox.errors import BadInputError, SettingsError

REPLAY_ATTRIBUTE = "glassbox-replay"

CHUNK_BYTES = 1 << 20
LINE_BYTES = 32 << 20  # two bodies of 6 MiB (InvokeEndpoint's limit), escaped or in base64, fit
PARSED_BYTES = (
    8 << 20
)  # a parsed document may take 25 times its text: what is left of a line without its input
LABEL_CHARACTERS = 64
_SMALL = 2048  # bytes of a line that is parsed whole: nothing is to be gained from passing over its input
_DEPTH = 4  # lists within lists around a prediction

_CLASS_KEYS = ("class", "predicted_class", "class_id", "predicted_label", "label")
_CONFIDENCE_KEYS = ("probability", "confidence", "score")
_VECTOR_KEYS = ("probabilities", "scores", "logits")

Label = int | str


class Prediction(NamedTuple):
    """One predicted class, and its probability (0..1) where the response tells it."""

    label: Label
    confidence: float | None


class Record(NamedTuple):
    """A captured inference: its time (ISO 8601, as captured) and one prediction per sample of the batch.

    A replayed request is marked and has no predictions: it is not traffic.
    """

    time: str
    predictions: Sequence[Prediction]
    replayed: bool


class Unreadable(NamedTuple):
    """A line that cannot be counted: where it is and why; its time where at least that can be read."""

    source: str
    line: int
    reason: str
    time: str | None

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.reason}"


class _UnreadableError(ValueError):
    """The reason a record cannot be read, raised inside this module only."""


class ResponseForm:
    """How a response is read. Without paths, every usual form is understood; see :func:`predictions`.

    Args:
        class_path: JMESPath from the response to the class, the classes of a batch, or the scores.
        confidence_path: JMESPath to the probability of each predicted class.

    Raises:
        SettingsError: a path is no JMESPath.
    """

    def __init__(self, class_path: str | None = None, confidence_path: str | None = None) -> None:
        self._class = _compiled("CLASS_PATH", class_path)
        self._confidence = _compiled("CONFIDENCE_PATH", confidence_path)

    def read(self, response: Any) -> Sequence[Prediction]:
        """The predictions of a parsed response; ValueError says why there are none."""
        if self._class is None and self._confidence is None:
            return predictions(response)
        found = response if self._class is None else self._class.search(response)
        if found is None:
            raise _UnreadableError("CLASS_PATH finds nothing in the response")
        read = predictions(found)
        if self._confidence is None:
            return read
        confidences = self._confidence.search(response)
        confidences = confidences if isinstance(confidences, list) else [confidences]
        if len(confidences) != len(read):
            raise _UnreadableError(
                f"CONFIDENCE_PATH finds {len(confidences)} values for {len(read)} predictions"
            )
        return [Prediction(p.label, _confidence(c)) for p, c in zip(read, confidences, strict=True)]


def _compiled(name: str, path: str | None) -> Any:
    try:
        return jmespath.compile(path) if path else None
    except jmespath.exceptions.JMESPathError as error:
        raise SettingsError(f"{name}={path!r} is no JMESPath: {error}") from error


USUAL = ResponseForm()


def read(chunks: Iterable[bytes], source: str, form: ResponseForm = USUAL) -> Iterator[Record | Unreadable]:
    """Read a capture file from its bytes, in pieces of any size; memory does not grow with the file.

    Args:
        chunks: the bytes, for instance of :func:`glassbox.capture.chunks`.
        source: the file's name, for what is said about unreadable lines.
    """
    for number, line in enumerate(lines(chunks), 1):
        if line is None:
            yield Unreadable(source, number, f"longer than {LINE_BYTES >> 20} MiB", None)
        elif line and not line.isspace():
            record = read_line(line, form)
            yield record if isinstance(record, Record) else Unreadable(source, number, *record)


def chunks(stream: Any) -> Iterator[bytes]:
    """A binary file or an S3 body in pieces of 1 MiB."""
    return iter(functools.partial(stream.read, CHUNK_BYTES), b"")


def lines(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """The lines without their ends; None stands for one that is longer than LINE_BYTES."""
    pieces: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        size += len(first)
        if size > LINE_BYTES:
            pieces.clear()
        if others:
            yield b"".join(pieces) if size <= LINE_BYTES else None
            *whole, last = others
            yield from whole
            pieces, size = [last], len(last)
    if size:
        yield b"".join(pieces) if size <= LINE_BYTES else None


def read_line(line: bytes, form: ResponseForm = USUAL) -> Record | tuple[str, str | None]:
    """One line as a record, or why it cannot be read and its time (if that can be)."""
    time = None
    try:
        document = orjson.loads(line if len(line) < _SMALL else _without_input(line))
        metadata = document["eventMetadata"]
        moment(metadata["inferenceTime"])
        time = metadata["inferenceTime"]
        attributes = metadata.get("customAttributes")
        if attributes and _is_replay(attributes):
            return Record(time, (), True)
        output = document["captureData"]["endpointOutput"]
        if output["encoding"] == "JSON":
            data = output["data"]
            response = orjson.loads(data) if isinstance(data, str) else data
        else:
            response = _decoded(output)
        return Record(time, form.read(response), False)
    except _UnreadableError as error:
        return str(error), time
    except orjson.JSONDecodeError as error:
        return ("the response" if time else "the line") + f" is not JSON: {error}", time
    except (KeyError, TypeError, AttributeError) as error:
        return f"not a capture record: {error!r}", time


@functools.lru_cache(maxsize=4096)
def moment(time: str) -> datetime:
    """A time as captured (ISO 8601; without an offset it is UTC), as UTC; ValueError for anything else."""
    try:
        parsed = datetime.fromisoformat(time)
        return parsed.replace(tzinfo=parsed.tzinfo or UTC).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        raise _UnreadableError(f"inferenceTime {str(time)[:40]!r} is no time") from None


def _is_replay(attributes: Any) -> bool:
    given = attributes if isinstance(attributes, list) else [attributes]
    names = (part.partition("=")[0].strip() for text in given for part in str(text).split(","))
    return REPLAY_ATTRIBUTE in names


# ---------------------------------------------------------------- passing over the input

_HEAD = b'{"captureData":{"endpointInput":{'
_MEMBER = rb'"(?:observedContentType|mode|encoding)":(?:null|"[^"\\]*+")'
_BEFORE = re.compile(re.escape(_HEAD) + rb"(?:" + _MEMBER + rb',)*+"data":"')
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_AFTER = re.compile(rb"(?:," + _MEMBER + rb')*+\},(?="endpointOutput":)')


def _without_input(line: bytes) -> bytes:
    """The line without its ``endpointInput``, when it is laid out as SageMaker does; the line itself otherwise."""
    if (before := _BEFORE.match(line)) and line.isascii():
        start = before.end()
        end = line.find(b'"', start) + 1
        if line.find(b"\\", start, end) >= 0:
            string = _STRING.match(line, start)
            end = string.end() if string else 0
        if end and (after := _AFTER.match(line, end)):
            line = b'{"captureData":{' + line[after.end() :]
    if len(line) > PARSED_BYTES:
        raise _UnreadableError(f"{len(line)} bytes to parse, at most {PARSED_BYTES} are")
    return line


# ---------------------------------------------------------------- from the captured data to the response


def _decoded(output: Mapping[str, Any]) -> Any:
    """The response of a side that is not captured as JSON."""
    encoding, data = output["encoding"], output["data"]
    kind = str(output.get("observedContentType") or "").partition(";")[0].strip().lower()
    if not isinstance(data, str):
        raise _UnreadableError("the response has no data")
    if encoding == "CSV":
        return _csv(data)
    if encoding != "BASE64":
        raise _UnreadableError(f"encoding {str(encoding)[:40]!r} is none of JSON, CSV, BASE64")
    try:
        body = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _UnreadableError(f"the response is not base64: {error}") from error
    if kind == "text/csv":
        return _csv(_text(body))
    if kind in ("", "application/octet-stream", "text/plain") or kind.endswith("json"):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            if kind.endswith("json"):
                raise
            return _csv(_text(body))
    raise _UnreadableError(f"a response of type {kind[:60]} tells no class")


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"the response is not UTF-8: {error}") from error


def _csv(text: str) -> list[list[int | float]]:
    """One row a sample."""
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    try:
        return [[_number(cell.strip()) for cell in row] for row in rows]
    except ValueError as error:
        raise _UnreadableError(f"the CSV response holds no numbers: {error}") from error


def _number(cell: str) -> int | float:
    return int(cell) if cell.isdecimal() else float(cell)


# ---------------------------------------------------------------- from the response to the classes


def predictions(response: Any) -> list[Prediction]:
    """The predictions of a parsed response, one per sample.

    Understood are: our own form ``{"predictions": [{"class": 14, "probability": 0.93, …}, …]}``; a class (``14``,
    ``[[14]]``, ``"14"``, ``"Stop"``); a list of classes (whole numbers); scores or probabilities of all classes
    (``[0.1, 0.7, 0.2]``, one list a sample; the largest is the prediction, and its value the confidence when all
    lie in 0..1); ``{"probabilities": [...]}``; ``{"Stop": 0.93, "Yield": 0.05}``; and
    ``[{"label": "Stop", "score": 0.93}, …]``, the best labels of one sample.

    Raises:
        ValueError: there is no class in it; the message says why.
    """
    if isinstance(response, dict) and "predictions" in response:
        response = response["predictions"]
    found: list[Prediction] = []
    _collect(response, found, _DEPTH)
    if not found:
        raise _UnreadableError("the response holds no prediction")
    return found


def _collect(value: Any, found: list[Prediction], depth: int) -> None:
    if isinstance(value, dict):
        found.append(_entry(value))
    elif not isinstance(value, list):
        found.append(Prediction(_label(value), None))
    elif value and all(type(item) in (int, float) for item in value):
        _collect_numbers(value, found)
    elif value and all(isinstance(item, dict) and item.keys() == {"label", "score"} for item in value):
        found.append(_entry(max(value, key=lambda item: item["score"])))
    elif depth:
        for item in value:
            _collect(item, found, depth - 1)
    else:
        raise _UnreadableError(f"lists within lists, deeper than {_DEPTH}")


def _collect_numbers(values: list[int | float], found: list[Prediction]) -> None:
    if len(values) == 1 or all(type(v) is int for v in values) or not _are_scores(values):
        found += [Prediction(_label(v), None) for v in values]
    else:
        found.append(_best(values))


def _are_scores(values: Sequence[int | float]) -> bool:
    # floats that are all whole are classes too ([14.0, 9.0]), unless they are a one-hot row ([0.0, 1.0, 0.0])
    return any(v != int(v) for v in values) or abs(sum(values) - 1) < 1e-6 if _finite(values) else True


def _finite(values: Sequence[int | float]) -> bool:
    return all(abs(v) < float("inf") for v in values)  # false for NaN too


def _best(scores: Sequence[int | float]) -> Prediction:
    if not _finite(scores):
        raise _UnreadableError("the scores are not all finite")
    best = max(range(len(scores)), key=scores.__getitem__)
    return Prediction(best, float(scores[best]) if min(scores) >= 0 and scores[best] <= 1 else None)


def _entry(entry: Mapping[str, Any]) -> Prediction:
    for key in _CLASS_KEYS:
        if entry.get(key) is not None:
            confidence = next((entry[k] for k in _CONFIDENCE_KEYS if k in entry), None)
            return Prediction(_label(entry[key]), _confidence(confidence))
    for key in _VECTOR_KEYS:
        scores = entry.get(key)
        if isinstance(scores, list) and scores and all(type(s) in (int, float) for s in scores):
            return _best(scores)
    if entry and all(type(v) is float and 0 <= v <= 1 for v in entry.values()):
        label, confidence = max(entry.items(), key=lambda item: item[1])
        return Prediction(_label(label), confidence)
    if "message" in entry:
        raise _UnreadableError(f"an error instead of a prediction: {str(entry['message'])[:200]}")
    raise _UnreadableError(f"no class among the members {', '.join(sorted(map(str, entry)))[:200]}")


def _label(value: Any) -> Label:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and 0 < len(value) <= LABEL_CHARACTERS:
        return int(value) if value.isascii() and value.isdecimal() else value
    raise _UnreadableError(f"{str(value)[:40]!r} is no class")


def _confidence(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None


# ---------------------------------------------------------------- where a capture file lies


class CaptureFile(NamedTuple):
    """A capture object: whose predictions it holds, and the hour its directory names."""

    endpoint: str
    variant: str
    hour: datetime

    @property
    def stream(self) -> tuple[str, str]:
        return self.endpoint, self.variant


_KEY = re.compile(
    r"(?:.+/)?(?P<endpoint>[A-Za-z0-9-]{1,63})/(?P<variant>[A-Za-z0-9-]{1,63})"
    r"/(?P<hour>\d{4}/\d\d/\d\d/\d\d)/[^/]+\.jsonl"
)


def read_key(key: str) -> CaptureFile:
    """Read ``<prefix>/<endpoint>/<variant>/yyyy/mm/dd/hh/<file>.jsonl``; the prefix may be empty or hold slashes.

    Raises:
        BadInputError: the key is of another form.
    """
    if match := _KEY.fullmatch(key):
        try:
            hour = datetime.strptime(match["hour"], "%Y/%m/%d/%H").replace(tzinfo=UTC)
            return CaptureFile(match["endpoint"], match["variant"], hour)
        except ValueError:
            pass
    raise BadInputError(f"{key}: not the key of a capture file (…/endpoint/variant/yyyy/mm/dd/hh/name.jsonl)")
