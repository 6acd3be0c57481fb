"""A captured response -> the predictions in it."""

import base64
import binascii
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jmespath
import msgspec

from glassbox.errors import SettingsError

RESPONSE_BYTES = 8 << 20  # decoded, a response may take 25 times as much
LABEL_CHARACTERS = 64
_SHORT = 40  # characters
_REASON_CHARACTERS = 300
_DEPTH = 4  # lists within lists around a prediction
_NAME = re.compile(
    r"[^\W\d_][\w.-]*"
)  # a letter first and no blanks: what is no CSV at all seldom looks like it

_CLASS_KEYS = ("class", "predicted_class", "class_id", "predicted_label", "label")
_CONFIDENCE_KEYS = ("probability", "confidence", "score")
_SCORES_KEYS = ("probabilities", "scores", "logits")

Label = int | str


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """One predicted class, and its probability (0..1) where the response tells it."""

    label: Label
    confidence: float | None = None


class UnreadableError(ValueError):
    """Why a record, or the response in it, cannot be read; the record's time where that can be read."""

    def __init__(self, reason: str, time: str | None = None) -> None:
        super().__init__(reason[:_REASON_CHARACTERS])
        self.time = time


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
        self._usual = self._class is None and self._confidence is None
        # of short responses there are few: [[14]] is one of 43
        self._read_short = functools.lru_cache(maxsize=4096)(self._read)

    def read(self, data: str, encoding: str, content_type: str | None) -> Sequence[Prediction]:
        """The predictions in a captured response, one per sample.

        Args:
            data: as captured: the body itself, or its base64.
            encoding: JSON, CSV or BASE64.
            content_type: what the response called itself.

        Raises:
            UnreadableError: there is no prediction in it.
        """
        if len(data) <= _SHORT:
            return self._read_short(data, encoding, content_type)
        if len(data) > RESPONSE_BYTES:
            raise UnreadableError(f"the response has {len(data)} bytes, at most {RESPONSE_BYTES} are decoded")
        return self._read(data, encoding, content_type)

    def _read(self, data: str, encoding: str, content_type: str | None) -> Sequence[Prediction]:
        if not self._usual:
            return self._found(_decoded(data, encoding, content_type))
        if encoding == "JSON" and data.startswith('{"predictions":'):
            try:
                return _OURS.decode(data).predictions
            except (msgspec.DecodeError, RecursionError):
                pass  # another form that has this member, or none: the way below says why
        return predictions(_decoded(data, encoding, content_type))

    def _found(self, response: Any) -> list[Prediction]:
        at_class = _search(self._class, response)
        if at_class is None:
            raise UnreadableError("CLASS_PATH finds nothing in the response")
        found = predictions(at_class)
        if self._confidence is None:
            return found
        confidences = _search(self._confidence, response)
        confidences = confidences if isinstance(confidences, list) else [confidences]
        if len(confidences) != len(found):
            raise UnreadableError(
                f"CONFIDENCE_PATH finds {len(confidences)} values for {len(found)} predictions"
            )
        return [Prediction(p.label, _confidence(c)) for p, c in zip(found, confidences, strict=True)]


def _compiled(name: str, path: str | None) -> Any:
    try:
        return jmespath.compile(path) if path else None
    except jmespath.exceptions.JMESPathError as error:
        raise SettingsError(f"{name}={path!r} is no JMESPath: {error}") from error


def _search(path: Any, response: Any) -> Any:
    try:
        return response if path is None else path.search(response)
    except (
        jmespath.exceptions.JMESPathError,
        ArithmeticError,
    ) as error:  # a function was handed the wrong thing
        raise UnreadableError(f"the path cannot be followed: {error}") from error


# ---------------------------------------------------------------- from the captured text to values


def _decoded(data: str, encoding: str, content_type: str | None) -> Any:
    if encoding == "JSON":
        return _json(data)
    if encoding == "CSV":
        return _csv(data, named=True)
    if encoding != "BASE64":
        raise UnreadableError(f"encoding {encoding[:40]!r} is none of JSON, CSV, BASE64")
    try:
        body = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableError(f"the response is not base64: {error}") from error
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind.endswith("json"):
        return _json(body)
    if kind == "text/csv":
        return _csv(_text(body), named=True)
    if kind not in ("", "application/octet-stream", "text/plain"):
        raise UnreadableError(f"a response of type {kind} tells no class")
    try:
        return _json(body)
    except UnreadableError:
        return _csv(_text(body), named=False)


def _json(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the response is not JSON: {error}") from error


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(f"the response is not UTF-8: {error}") from error


def _csv(text: str, *, named: bool) -> list[list[Label | float]]:
    """One row a sample: numbers or, where classes may be ``named``, one plain name."""
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    try:
        return [[_cell(cell.strip(), named and len(row) == 1) for cell in row] for row in rows]
    except ValueError as error:
        raise UnreadableError(f"the response is no CSV of numbers: {error}") from error


def _cell(cell: str, named: bool) -> Label | float:
    try:
        return int(cell) if cell.isascii() and cell.isdecimal() else float(cell)
    except ValueError:
        if named and _NAME.fullmatch(cell):
            return cell
        raise


# ---------------------------------------------------------------- from values to classes


class _OurPrediction(Prediction, frozen=True, gc=False):
    label: int = msgspec.field(name="class")
    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = msgspec.field(name="probability")


class _OurResponse(msgspec.Struct, gc=False):
    """The response of the project's own model, by far the most frequent one: decoded as what it is."""

    predictions: Annotated[list[_OurPrediction], msgspec.Meta(min_length=1)]


_OURS = msgspec.json.Decoder(_OurResponse)


def predictions(response: Any) -> list[Prediction]:
    """The predictions of a decoded response, one per sample.

    Understood are: our own form ``{"predictions": [{"class": 14, "probability": 0.93, …}, …]}``; a class (``14``,
    ``[[14]]``, ``"14"``, ``"Stop"``); a list of classes (whole numbers); scores or probabilities of all classes
    (``[0.1, 0.7, 0.2]``, one list a sample; the largest is the prediction, and its value the confidence when all
    lie in 0..1); ``{"probabilities": [...]}``; ``{"Stop": 0.93, "Yield": 0.05}``; and
    ``[{"label": "Stop", "score": 0.93}, …]``, the best labels of one sample.

    Raises:
        UnreadableError: there is no class in it.
    """
    if isinstance(response, dict) and "predictions" in response:
        response = response["predictions"]
    found = _all(response, _DEPTH)
    if not found:
        raise UnreadableError("the response holds no prediction")
    return found


def _all(value: Any, depth: int) -> list[Prediction]:
    if isinstance(value, dict):
        return [_entry(value)]
    if not isinstance(value, list):
        return [Prediction(_label(value))]
    if not depth:
        raise UnreadableError(f"lists within lists, deeper than {_DEPTH}")
    if value and _are_numbers(value):
        return [_best(value)] if _are_scores(value) else [Prediction(_label(v)) for v in value]
    if value and all(isinstance(item, dict) and item.keys() == {"label", "score"} for item in value):
        return [
            max(
                (_entry(item) for item in value), key=lambda p: -1.0 if p.confidence is None else p.confidence
            )
        ]
    return [prediction for item in value for prediction in _all(item, depth - 1)]


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _are_scores(values: Sequence[int | float]) -> bool:
    """Whether a list of numbers is one score per class, and not one class per sample."""
    if len(values) == 1 or all(type(value) is int for value in values):
        return False
    # floats that are all whole are classes ([14.0, 9.0]), unless they are a one-hot row ([0.0, 1.0, 0.0])
    whole = all(isinstance(value, int) or value.is_integer() for value in values)
    return not whole or (values.count(1) == 1 and values.count(0) == len(values) - 1)


def _best(scores: Sequence[int | float]) -> Prediction:
    if not all(abs(score) <= sys.float_info.max for score in scores):  # an int may be beyond every float
        raise UnreadableError("the scores are not all finite floats")
    best = max(range(len(scores)), key=scores.__getitem__)
    return Prediction(best, _confidence(scores[best]) if min(scores) >= 0 else None)


def _entry(entry: Mapping[str, Any]) -> Prediction:
    for key in _CLASS_KEYS:
        if entry.get(key) is not None:
            return Prediction(
                _label(entry[key]),
                _confidence(next((entry[k] for k in _CONFIDENCE_KEYS if k in entry), None)),
            )
    for key in _SCORES_KEYS:
        scores = entry.get(key)
        if isinstance(scores, list) and scores and _are_numbers(scores):
            return _best(scores)
    if entry and all(type(value) is float and 0 <= value <= 1 for value in entry.values()):
        name, confidence = max(entry.items(), key=lambda item: item[1])
        return Prediction(_label(name), confidence)
    if "message" in entry:
        raise UnreadableError(f"an error instead of a prediction: {entry['message']}")
    raise UnreadableError(f"no class among its members {', '.join(entry)}")


def _label(value: Any) -> Label:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and 0 < len(value) <= LABEL_CHARACTERS:
        return int(value) if value.isascii() and value.isdecimal() else value
    raise UnreadableError(f"{str(value)[:40]!r} is no class")


def _confidence(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None
