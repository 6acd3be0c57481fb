"""A captured response -> the predictions in it."""

import base64
import binascii
import csv
import functools
import io
import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jmespath
import msgspec

from glassbox.errors import SettingsError, is_printable, printable
from glassbox.monitoring import npy

RESPONSE_BYTES = 8 << 20  # decoded, a response may take 25 times as much
PREDICTIONS = 10_000  # of one response: 6 MiB of `1,` would be 3 million
CLASS_CHARACTERS = 64
_ROW_VALUES = 100_000  # of one CSV row
_PATH_CHARACTERS = 1000
_SHORT = 40  # characters
_REASON_CHARACTERS = 300
_DEPTH = 4  # lists within lists around a prediction
# A class name in a CSV cell: a letter first and no spaces, which text in another format seldom matches.
_NAME = re.compile(r"[^\W\d_][\w.-]*")
_ANY_TEXT = re.compile(r".*", re.DOTALL)
_BOM = "\ufeff"

# Softmax in float16 returns up to 1.001; many probabilities, each rounded for print, sum to 1 less exactly.
_ROUNDING, _SUM_ROUNDING = 0.001, 0.05

_CLASS_KEYS = ("class", "predicted_class", "class_id", "predicted_label", "label")
_CONFIDENCE_KEYS = ("probability", "confidence", "score", "prob")
_SCORES_KEYS = ("probabilities", "scores", "logits")
_NAMES_KEYS = ("labels", "classes", "class_ids", "class_names")  # the class of each score
_ERROR_KEYS = ("message", "error", "errormessage", "detail")
# Members of responses that are not class names: an object with one of them does not hold scores by class name.
_KNOWN_KEYS = {
    *(*_CLASS_KEYS, *_CONFIDENCE_KEYS, *_SCORES_KEYS, *_ERROR_KEYS),
    *("prediction", "predictions", "output", "outputs", "result", "results", "probs", "softmax"),
    *("threshold", "certainty", "entropy", "accuracy", "loss", "margin", "temperature", "uncertainty"),
    *("id", "index", "code", "status", "version", "model", "name", "value", "time", "latency", "duration"),
}

_PAIR_HINT = "set ClassPath to '[*][0]' and ConfidencePath to '[*][1]' (class, confidence)"
PredictedClass = int | str


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """One predicted class, and its probability (0..1) if the response contains it."""

    predicted_class: PredictedClass
    confidence: float | None = None


class UnreadableError(ValueError):
    """A record, or the response in it, cannot be read.

    Attributes:
        time: the record's timestamp, if at least that is readable.
        forged: the record carries a replay marker that does not verify.
    """

    def __init__(self, reason: str, time: str | None = None) -> None:
        super().__init__(printable(reason, _REASON_CHARACTERS))
        self.time = time
        self.forged = False


class ResponseParser:
    """Parses responses in the forms that :func:`predictions` lists, or by JMESPath.

    Args:
        class_path: JMESPath from the response to the class, the classes of a batch, or the scores. Each line of JSON
            Lines is one response; CSV is a list of rows.
        confidence_path: JMESPath to the probability of each predicted class.

    Raises:
        SettingsError: a path is not valid JMESPath.
    """

    def __init__(self, class_path: str | None = None, confidence_path: str | None = None) -> None:
        self._class = _compiled("CLASS_PATH", class_path)
        self._confidence = _compiled("CONFIDENCE_PATH", confidence_path)
        self._usual = self._class is None and self._confidence is None
        # short responses repeat: 43 classes give 43 responses like [[14]]
        self._read_short = functools.lru_cache(maxsize=4096)(self._read)

    def read(self, data: str, encoding: str, content_type: str | None) -> Sequence[Prediction]:
        """Return the predictions in a captured response, one per sample.

        Args:
            data: the captured body, or its base64.
            encoding: JSON, CSV or BASE64.
            content_type: the captured content type of the response.

        Raises:
            UnreadableError: the response contains no prediction.
        """
        if len(data) <= _SHORT:
            return self._read_short(data, encoding, content_type)
        if len(data) > RESPONSE_BYTES:
            raise UnreadableError(f"response: expected at most {RESPONSE_BYTES} characters, got {len(data)}")
        return self._read(data, encoding, content_type)

    def _read(self, data: str, encoding: str, content_type: str | None) -> Sequence[Prediction]:
        if not self._usual:
            documents = _documents(data, encoding, content_type, text=_ANY_TEXT)
            return _at_most(itertools.chain.from_iterable(map(self._found, documents)))
        if encoding == "JSON" and data.startswith('{"predictions":'):
            try:
                return _OURS.decode(data).predictions
            except (msgspec.DecodeError, RecursionError):
                pass  # another form with this member: read below, or refused with its reason
        documents = _documents(data, encoding, content_type, text=_NAME)
        if len(documents) == 1:
            return predictions(documents[0])
        return _at_most(_all([_as_sample(line) for line in documents], _DEPTH, _Place("", rows=False)))

    def _found(self, response: Any) -> list[Prediction]:
        at_class = _search(self._class, response)
        if at_class is None:
            raise UnreadableError("CLASS_PATH finds nothing in the response")
        if self._class is not None and _is_batch(at_class):
            found = _at_most(Prediction(_predicted_class(value)) for value in at_class)
        else:
            found = predictions(at_class)
        if self._confidence is None:
            return found
        confidences = _search(self._confidence, response)
        confidences = confidences if isinstance(confidences, list) else [confidences]
        if len(confidences) != len(found):
            raise UnreadableError(
                f"CONFIDENCE_PATH finds {len(confidences)} values for {len(found)} predictions"
            )
        return [
            Prediction(p.predicted_class, _confidence(_number(c)))
            for p, c in zip(found, confidences, strict=True)
        ]


def _compiled(name: str, path: str | None) -> Any:
    if not path:
        return None
    if len(path) > _PATH_CHARACTERS:
        raise SettingsError(
            f"{name}: expected at most {_PATH_CHARACTERS} characters of JMESPath, got {len(path)}"
        )
    try:
        return jmespath.compile(path)
    except (jmespath.exceptions.JMESPathError, ValueError, RecursionError) as error:
        raise SettingsError(f"{name}={printable(path, 100)!r}: invalid JMESPath: {error}") from error


def _search(path: Any, response: Any) -> Any:
    try:
        return response if path is None else path.search(response)
    except (
        jmespath.exceptions.JMESPathError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:  # Python's error, when a JMESPath function gets an argument of an unexpected type
        raise UnreadableError(f"a JMESPath function got an invalid argument: {error}") from error


def _is_batch(found: Any) -> bool:
    """Return whether a path found a list of classes; a path to scores finds floats or objects."""
    return isinstance(found, list) and bool(found) and all(type(value) is int for value in found)


def _at_most(found: Iterable[Prediction]) -> list[Prediction]:
    """Return at most PREDICTIONS predictions; raise UnreadableError for more or none."""
    taken = list(itertools.islice(found, PREDICTIONS + 1))
    if len(taken) > PREDICTIONS:
        raise _too_many()
    if not taken:
        raise UnreadableError("the response holds no prediction")
    return taken


def _too_many() -> UnreadableError:
    return UnreadableError(
        f"response: expected at most {PREDICTIONS} predictions, got more. Send smaller batches."
    )


# ---------------------------------------------------------------- from the captured text to values


def _documents(data: str, encoding: str, content_type: str | None, *, text: re.Pattern[str]) -> Sequence[Any]:
    """Return the response as JSON-like values: one, or one per line of JSON Lines.

    Args:
        text: the texts that a CSV cell may hold beside numbers.
    """
    if encoding == "JSON":
        return _json(data)
    if encoding == "CSV":
        return [_csv(data, text)]
    if encoding != "BASE64":
        raise UnreadableError(f"encoding: expected JSON, CSV or BASE64, got {encoding[:40]!r}")
    try:
        body = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableError(f"the response is not base64: {error}") from error
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind.endswith(("json", "jsonlines", "jsonl")):
        return _json(body)
    if kind == "text/csv":
        return [_csv(_text(body), text)]
    if body.startswith(npy.MAGIC):
        return [_npy(body)]
    if kind not in ("", "application/octet-stream", "text/plain"):
        raise UnreadableError(f"cannot extract a class from content type {kind}")
    try:
        return _json(body)
    except UnreadableError:
        return [_csv(_text(body), None)]


def _json(text: str | bytes) -> Sequence[Any]:
    """Return one document, or the documents of JSON Lines."""
    text = text.removeprefix(_BOM) if isinstance(text, str) else text.removeprefix(_BOM.encode())
    try:
        document = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        lines = _json_lines(text)
        if not lines:
            raise UnreadableError(f"the response is not JSON: {error}") from error
        return lines
    if isinstance(document, str) and document.lstrip().startswith(_JSON_BEGINS):  # encoded twice
        try:
            return [msgspec.json.decode(document)]
        except (ValueError, RecursionError) as error:
            raise UnreadableError(
                f"the response is a JSON string whose content is not JSON: {error}"
            ) from error
    return [document]


def _json_lines(text: str | bytes) -> Sequence[Any]:
    """Return the documents of JSON Lines; empty for another format."""
    newlines = text.count("\n") if isinstance(text, str) else text.count(b"\n")
    if not newlines:
        return ()
    try:
        lines = _JSON_LINES.decode_lines(text)
    except (ValueError, RecursionError):
        return ()
    if len(lines) > PREDICTIONS:
        raise _too_many()
    return lines


_JSON_LINES = msgspec.json.Decoder()
_JSON_BEGINS = ("{", "[")


def _as_sample(document: Any) -> Any:
    """Return the content of a line of JSON Lines as one element of a batch."""
    document = _unwrapped(document)
    return document if isinstance(document, list) else [document]


def _npy(body: bytes) -> Any:
    try:
        return npy.read(body, rows=PREDICTIONS)
    except ValueError as error:
        raise UnreadableError(f"the response is not a readable array: {error}") from error


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(f"the response is not UTF-8: {error}") from error


def _csv(content: str, text: re.Pattern[str] | None) -> list[list[PredictedClass | float]]:
    """Return one row per sample: numbers, and texts that ``text`` matches (_NAME: in rows of one cell only).

    Raises:
        UnreadableError: a cell is neither, or the first row is a header that no path skips.
    """
    rows: list[list[PredictedClass | float]] = []
    try:
        for cells in _cells(content.removeprefix(_BOM)):
            allowed = text if len(cells) == 1 or text is _ANY_TEXT else None
            rows.append([_cell(cell.strip(), allowed) for cell in cells])
            if len(rows) > PREDICTIONS:
                raise _too_many()
    except UnreadableError:
        raise
    except (ValueError, csv.Error) as error:
        hint = "" if text is None else "; for rows of a name and numbers, " + _PAIR_HINT
        raise UnreadableError(f"the response is not a CSV of numbers: {error}{hint}") from error
    names = [isinstance(row[0], str) for row in rows]
    if text is _NAME and len(rows) > 1 and names[0] and not any(names[1:]):
        raise UnreadableError(
            f"{rows[0][0]!r} above numbers may be a header: set ClassPath to '[1:][0]' (header) or '[].[@]' (class)"
        )
    return rows


def _cells(content: str) -> Iterator[list[str]]:
    # a line at a time: a list of 3 million lines takes 180 MB
    lines = (line for line in io.StringIO(content, newline=None) if line.strip())
    if '"' in content:
        yield from csv.reader(lines, strict=True)
        return
    for line in lines:
        if line.count(",") >= _ROW_VALUES:
            raise UnreadableError(f"CSV row: expected at most {_ROW_VALUES} values, got more")
        yield line.split(",")


def _cell(cell: str, text: re.Pattern[str] | None) -> PredictedClass | float:
    value: PredictedClass | float = _number(cell)
    if isinstance(value, str) and (text is None or not text.fullmatch(value)):
        raise ValueError(f"expected a number, got {printable(cell, 60)!r}")
    return value


# ---------------------------------------------------------------- from values to classes


class _OurPrediction(Prediction, frozen=True, gc=False):
    predicted_class: int = msgspec.field(name="class")
    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = msgspec.field(name="probability")


class _OurResponse(msgspec.Struct, gc=False):
    """The response of the project's own model, decoded directly because it is the most frequent form."""

    predictions: Annotated[list[_OurPrediction], msgspec.Meta(min_length=1, max_length=PREDICTIONS)]


_OURS = msgspec.json.Decoder(_OurResponse)


def predictions(response: Any) -> list[Prediction]:
    """Return the predictions of a decoded response, one per sample.

    Accepted forms:

    - the project's own, ``{"predictions": [{"class": 14, "probability": 0.93, …}, …]}``
    - a class: ``14``, ``[[14]]``, ``"14"``, ``"Stop"``; or a list of class numbers
    - a class and its confidence, ``[14, 0.93]``
    - scores of all classes, ``[0.1, 0.7, 0.2]``, one list per sample: the largest is the prediction, and its value is
      the confidence if all are in 0..1
    - ``{"probabilities": [...]}``, with or without the classes' names, ``{"labels": [...]}``
    - ``{"Stop": 0.93, "Yield": 0.07}``
    - a tensor of scores or classes, ``{"outputs": [{"datatype": "FP32", "shape": [1, 3], "data": [...]}]}``
    - ``[{"label": "Stop", "score": 0.93}, …]``: the ranking of one sample, or one answer per sample if labels repeat
      or scores sum to over 1

    All rows of one response are read in the same form.

    Raises:
        UnreadableError: the response contains no class, or permits several readings; the reason names the paths that
            select one.
    """
    key = _wrapper(response)
    return _at_most(_all(_unwrapped(response), _DEPTH, _Place(key or "")))


def _wrapper(response: Any) -> str | None:
    """Return the member that holds all predictions of a response."""
    return next((k for k in ("predictions", "outputs") if isinstance(response, dict) and k in response), None)


def _unwrapped(response: Any) -> Any:
    key = _wrapper(response)
    if key is None:
        return response
    value = response[key]
    if not isinstance(value, list) or not value:
        return value
    if all(map(_is_tensor, value)):
        return _tensor_values(value)
    named = any(isinstance(response.get(name), list) for name in _NAMES_KEYS)
    rows = (_score_rows(value) if named else None) or ()
    scores = not all(_is_whole(score) for row in rows for score in row)
    return (
        {name: response[name] for name in _NAMES_KEYS if name in response} | {"scores": value}
        if scores
        else value
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and {"datatype", "shape", "data"} <= value.keys()


def _tensor_values(tensors: Sequence[Mapping[str, Any]]) -> Any:
    """Return the scores (floats) or classes (integers) of the Open Inference Protocol (Triton, KServe).

    Raises:
        UnreadableError: the response has several tensors, or this one holds neither scores nor a class per sample.
    """
    hint = (
        "set ClassPath to 'outputs[0].data' (classes) or '{scores: outputs[0].data}' (scores of one sample)"
    )
    if len(tensors) > 1:
        raise UnreadableError(f"outputs: expected one tensor, got {len(tensors)}; {hint}")
    kind, shape, data = (tensors[0][key] for key in ("datatype", "shape", "data"))
    sizes = isinstance(shape, list) and bool(shape) and all(type(n) is int and n > 0 for n in shape)
    if not sizes or not isinstance(data, list) or math.prod(shape) != len(data) or not _are_numbers(data):
        raise UnreadableError(f"outputs[0]: expected as many numbers in data as its shape has; {hint}")
    width = shape[-1]
    if str(kind).startswith(("FP", "BF")):
        return {"scores": [data[start : start + width] for start in range(0, len(data), width)]}
    if (len(shape) == 1 or width == 1) and all(type(value) is int for value in data):
        return [[value] for value in data]
    raise UnreadableError(
        f"outputs[0]: {_shown(kind)} of shape {_shown(shape)} may be scores or classes; {hint}"
    )


class _Place(NamedTuple):
    """The JMESPath to a value, and whether it leads to rows or, in JSON Lines, to one row per line."""

    path: str
    rows: bool = True

    def may_be(self, value: str, readings: str, column: int = 0) -> UnreadableError:
        """Return the error for numbers that permit several readings, with a path for each."""
        one_class = f"{self.path}{'[*]' if self.rows else ''}[{column}]"
        scores = f"{self.path}[*].{{scores: @}}" if self.rows else f"{{scores: {self.path or '@'}}}"
        return UnreadableError(
            f"{value} may be {readings}: set ClassPath to '{one_class}' (class beside other numbers), "
            f"'{self.path}[].[@]' (a class per value) or '{scores}' (scores)"
        )


def _all(value: Any, depth: int, place: _Place) -> Iterator[Prediction]:
    if isinstance(value, dict):
        yield from _entry(value)
    elif not isinstance(value, list):
        yield Prediction(_predicted_class(value))
    elif not depth:
        raise UnreadableError(f"response: expected at most {_DEPTH} nested lists, got more")
    elif value and _are_numbers(value):
        yield from _row(value, _Place(place.path, rows=False))
    elif value and all(isinstance(item, list) and _are_numbers(item) for item in value):
        yield from _rows(value, place)
    elif key := _ranked_by(value):
        yield from _labelled(value, key, place)
    elif len({_kind(item) for item in value}) > 1:
        raise UnreadableError(
            f"a list of {len(value)} values of several kinds: set ClassPath to '{place.path}[0]' if the first holds "
            "the prediction"
        )
    else:
        for item in value:
            yield from _all(item, depth - 1, _Place(f"{place.path}[] | "))


def _kind(value: Any) -> str:
    """Return the kind of a list's element; all rows of one response have the same kind."""
    kinds = {dict: "object", list: "list", str: "text", int: "number", float: "number"}
    return kinds.get(type(value), "other")


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _is_whole(value: int | float) -> bool:
    return isinstance(value, int) or value.is_integer()


# ---- numbers: classes, scores, or classes with their confidences


def _row(row: Sequence[int | float], place: _Place) -> Iterator[Prediction]:
    """Read a list of numbers: the scores of one sample, its class and confidence, or a class per sample."""
    if len(row) == 2 and sorted(row) == [0, 1] and type(row[0]) is int:
        raise place.may_be(str(list(row)), "scores, two classes, or a class and its confidence")
    if all(type(value) is int for value in row):
        yield from (Prediction(_predicted_class(value)) for value in row)
    else:
        yield from _rows([row], place)


def _rows(rows: Sequence[Sequence[int | float]], place: _Place) -> Iterator[Prediction]:
    """Read lists of numbers, one sample each, all in the same form."""
    if len(rows) > PREDICTIONS:
        raise _too_many()
    whole = all(_is_whole(value) for row in rows for value in row)
    widths = {len(row) for row in rows}
    if widths == {1} or (whole and len(widths) > 1):
        yield from (Prediction(_predicted_class(value)) for row in rows for value in row)
    elif len(widths) > 1:
        raise UnreadableError(
            f"rows of {min(widths)} to {max(widths)} numbers: expected one length, set ClassPath"
        )
    elif widths == {2} and _are_pairs(rows, place):
        yield from (Prediction(_predicted_class(row[0]), _confidence(row[1])) for row in rows)
    elif not whole or all(_is_one_hot(row) for row in rows):
        _refuse_header(rows, place)
        _refuse_column_of_classes(rows, place)
        yield from _scores(rows)
    else:
        yield from (Prediction(_predicted_class(value)) for row in rows for value in row)


def _are_pairs(rows: Sequence[Sequence[int | float]], place: _Place) -> bool:
    """Return whether rows of two numbers are a class, written as an integer, and its confidence.

    Raises:
        UnreadableError: the numbers permit several readings.
    """
    if not all(_is_whole(a) and a >= 0 and 0 <= b <= 1 + _ROUNDING for a, b in rows):
        return False
    integers = all(type(a) is int for a, _ in rows)
    example = str(list(rows[0]))
    if all(a <= 1 and abs(a + b - 1) <= _ROUNDING for a, b in rows):
        if not integers or (len(rows) > 1 and any(a == 1 for a, _ in rows)):
            return False  # one-hot scores, since a prediction never has confidence 0
        raise place.may_be(example, "scores, or a class and its confidence")
    if not integers and not all(_is_whole(b) for _, b in rows):
        raise place.may_be(example, "scores, or a class and its confidence in an array of floats")
    if integers and all(type(b) is int for _, b in rows):
        raise place.may_be(example, "two classes, or a class and its confidence")
    return integers


def _is_one_hot(row: Sequence[int | float]) -> bool:
    return row.count(1) == 1 and row.count(0) == len(row) - 1


def _scores(rows: Sequence[Sequence[int | float]]) -> Iterator[Prediction]:
    """Read one row of scores per sample; the scores are confidences if all rows are in 0..1."""
    # an integer may exceed every float
    if not all(abs(score) <= sys.float_info.max for row in rows for score in row):
        raise UnreadableError("scores: expected finite floats")
    if len(rows[0]) == 1:
        raise UnreadableError("expected a score per class, got one score; set ClassPath if it is a class")
    probabilities = all(_are_probabilities(row) for row in rows)
    for row in rows:
        best = max(range(len(row)), key=row.__getitem__)
        yield Prediction(best, _confidence(row[best]) if probabilities else None)


def _are_probabilities(row: Sequence[int | float]) -> bool:
    if max(row) > 1 + _ROUNDING or min(row) < -_ROUNDING:
        return False
    return min(row) >= 0 or abs(sum(row) - 1) <= _ROUNDING  # rounding may leave -1e-9


def _refuse_header(rows: Sequence[Sequence[int | float]], place: _Place) -> None:
    """Raise UnreadableError if the first of several rows counts the columns, as a pandas header does."""
    if len(rows) > 1 and len(rows[0]) > 2 and all(a == b for a, b in enumerate(rows[0])):
        raise UnreadableError(
            f"a first row of 0 to {len(rows[0]) - 1} may be a header: set ClassPath to "
            f"'{place.path}[1:].{{scores: @}}' (header) or '{place.path}[*].{{scores: @}}' (scores)"
        )


def _refuse_column_of_classes(rows: Sequence[Sequence[int | float]], place: _Place) -> None:
    """Raise UnreadableError if one column holds integers beside probabilities: class or row numbers.

    The column has values outside 0..1, or it is the first or last one and the others sum to 1 without it. There an
    integer in front of floats is a class number, and a float is a probability.
    """
    outside = {i for row in rows for i, value in enumerate(row) if not 0 <= value <= 1 + _ROUNDING}
    for column in (0, -1) if len(rows[0]) > 2 and not outside else ():
        values = [row[column] for row in rows]
        others = [row[1:] if column == 0 else row[:-1] for row in rows]
        as_integers = column == 0 and all(type(value) is int for value in values)
        as_integers = as_integers and all(type(value) is float for row in others for value in row)
        if (
            all(value in (0, 1) for value in values)
            and all(abs(sum(row) - 1) <= _SUM_ROUNDING for row in others)
            and (1 in values or as_integers)
        ):
            shown = f"{values[0]} beside probabilities"
            raise place.may_be(shown, "a class number, or a score", column)
    if len(outside) != 1:
        return
    (column,) = outside
    values = [row[column] for row in rows]
    if all(value >= 0 and _is_whole(value) for value in values):
        raise place.may_be(f"{values[0]} beside probabilities", "a class number, or a score", column)


# ---- objects


def _ranked_by(entries: list[Any]) -> str | None:
    """Return the member by which a list of objects whose class is their label may be a ranking."""
    if not entries or not all(isinstance(entry, dict) and _class_key(entry) == "label" for entry in entries):
        return None
    return next((key for key in _CONFIDENCE_KEYS if all(key in entry for entry in entries)), None)


def _labelled(entries: Sequence[Mapping[str, Any]], key: str, place: _Place) -> Iterator[Prediction]:
    """Read ``[{"label", "score"}, …]``: the ranking of one sample, or one answer per sample.

    Repeated labels, or scores that sum to over 1, show one answer per sample.
    """
    found = [prediction for entry in entries for prediction in _entry(entry)]
    scores = [0.0 if prediction.confidence is None else prediction.confidence for prediction in found]
    if (
        len({prediction.predicted_class for prediction in found}) < len(found)
        or sum(scores) > 1 + _SUM_ROUNDING
    ):
        yield from found
    elif sum(scores) < 1 - _SUM_ROUNDING and scores != sorted(scores, reverse=True):
        raise UnreadableError(
            f"labels with scores may be an answer per input or the ranking of one input: set ClassPath to "
            f"'{place.path}[*].[@]' (an answer per input) or 'max_by({place.path or '@'}, &{key})' (a ranking)"
        )
    else:
        yield found[scores.index(max(scores))]


def _entry(entry: Mapping[str, Any]) -> Iterator[Prediction]:
    class_key = _class_key(entry)
    if class_key is not None:
        predicted_class = _predicted_class(entry[class_key])
        yield Prediction(predicted_class, _confidence(_number(_value_of(predicted_class, entry))))
        return
    for key in _SCORES_KEYS:
        scores = entry.get(key)
        if isinstance(scores, list) and (rows := _score_rows(scores)):
            yield from _named_rows(key, rows, entry)
            return
        if isinstance(scores, dict) and _are_named(scores):  # the best of many sum to less than 1
            yield _named(scores)
            return
    if not _are_named_scores(entry):
        raise _no_class(entry)
    yield _named(entry)


def _class_key(entry: Mapping[str, Any]) -> str | None:
    return next((key for key in _CLASS_KEYS if entry.get(key) is not None), None)


def _no_class(entry: Mapping[str, Any]) -> UnreadableError:
    for key, value in entry.items():
        if key.lower() in _ERROR_KEYS and isinstance(value, str):
            return UnreadableError(f"expected a prediction, got an error: {value}")
    if _are_named(entry):
        return UnreadableError(
            f"the numbers {_listed(entry)}: expected a sum of 1, got {sum(entry.values()):.3g}; set ClassPath to "
            "'{scores: @}' if they are scores of classes"
        )
    return UnreadableError(
        f"expected a class, got an object of {_listed(entry)}; set ClassPath if one of its members is the class"
    )


def _named_rows(
    key: str, rows: Sequence[Sequence[int | float]], entry: Mapping[str, Any]
) -> Iterator[Prediction]:
    """Read the scores under a key; their classes are those that the response names, or their indices."""
    if len({len(row) for row in rows}) > 1:
        raise UnreadableError(f"{key}: expected rows of one length, got several")
    found = _names_of(rows, entry)
    if found is None:
        yield from _scores(rows)
        return
    names_key, names = found
    if len(rows) == 1 and not _are_classes_of(rows[0], names[0]):
        raise UnreadableError(
            f"{names_key} and {key} may be an answer per input: if they are, set ClassPath to '{names_key}' and "
            f"ConfidencePath to '{key}'"
        )
    for row, prediction in zip(names, _scores(rows), strict=True):
        yield Prediction(_predicted_class(row[int(prediction.predicted_class)]), prediction.confidence)


def _are_classes_of(scores: Sequence[int | float], names: Sequence[Any]) -> bool:
    """Return whether names can be the classes of one sample: unique, with probabilities of at most 1 in sum."""
    once = len({_predicted_class(name) for name in names}) == len(names)
    return once and not (_are_probabilities(scores) and sum(scores) > 1 + _SUM_ROUNDING)


def _value_of(predicted_class: PredictedClass, entry: Mapping[str, Any]) -> Any:
    """Return the confidence of a class: the only one, or its entry in the probabilities of all classes."""
    found = next((entry[key] for key in (*_CONFIDENCE_KEYS, *_SCORES_KEYS) if key in entry), None)
    if isinstance(found, dict):
        return found.get(str(predicted_class))
    if not isinstance(found, list) or not found or not _are_numbers(found):
        return found
    _, names = _names_of([found], entry) or ("", [range(len(found))])
    classes = [_predicted_class(name) for name in names[0]]
    if predicted_class not in classes or not _are_probabilities(found):
        return None
    return found[classes.index(predicted_class)]


def _names_of(
    rows: Sequence[Sequence[int | float]], entry: Mapping[str, Any]
) -> tuple[str, Sequence[Sequence[Any]]] | None:
    """Return the key of the scores' classes, and a list of them per row; None if not all are named.

    Raises:
        UnreadableError: the names may be those of the rows, too.
    """
    width = len(rows[0])
    for key in _NAMES_KEYS:
        names = entry.get(key)
        if not isinstance(names, list):
            continue
        if len(names) == len(rows) and all(isinstance(row, list) and len(row) == width for row in names):
            return key, names
        if len(names) != width or any(isinstance(name, (list, dict)) for name in names):
            continue
        if len(rows) == width > 1:
            raise UnreadableError(
                f"{key} may name the rows or the columns of the scores: set ClassPath to '{key}' if they are the "
                "classes of the rows"
            )
        return key, [names] * len(rows)
    return None


def _score_rows(scores: list[Any]) -> Sequence[Sequence[int | float]] | None:
    """Return the rows of one or several lists of scores; None for anything else."""
    rows = scores if scores and isinstance(scores[0], list) else [scores]
    return rows if all(isinstance(row, list) and row and _are_numbers(row) for row in rows) else None


def _are_named_scores(entry: Mapping[str, Any]) -> bool:
    """Return whether an object holds one sample's scores by class name: two or more that sum to about 1."""
    return _are_named(entry) and abs(sum(entry.values()) - 1) <= _SUM_ROUNDING


def _are_named(entry: Mapping[str, Any]) -> bool:
    """Return whether an object holds two or more numbers in 0..1, under names other than _KNOWN_KEYS."""
    return (
        len(entry) > 1
        and _KNOWN_KEYS.isdisjoint(map(str.lower, entry))
        and _are_numbers(list(entry.values()))
        and all(0 <= value <= 1 + _ROUNDING for value in entry.values())
    )


def _named(scores: Mapping[str, Any]) -> Prediction:
    name, confidence = max(scores.items(), key=lambda item: item[1])
    return Prediction(_predicted_class(name), _confidence(confidence))


def _listed(entry: Mapping[str, Any]) -> str:
    return printable(", ".join(itertools.islice(entry, 10)), 100)


def _predicted_class(value: Any) -> PredictedClass:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str):
        name = value.strip()
        number = _number(name)
        plain = 0 < len(name) <= CLASS_CHARACTERS and not name.startswith(_JSON_BEGINS)
        if isinstance(number, str) and plain and is_printable(name):
            return sys.intern(name)  # a file may repeat a few names a million times
        if not isinstance(number, str) and len(name) <= CLASS_CHARACTERS and float(number).is_integer():
            return int(number)
    raise UnreadableError(f"expected a class, got {_shown(value)}; set ClassPath if the class is elsewhere")


def _number(text: Any) -> Any:
    """Return the number in a text, or the value unchanged: CSV and some servers write numbers as text."""
    if not isinstance(text, str) or not text.isascii():
        return text
    try:
        return int(text) if text.isdecimal() else float(text.replace("_", "?"))  # float() accepts 1_0, a name
    except ValueError:
        return text


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object of {_listed(value)}"
    return f"a list of {len(value)}" if isinstance(value, list) else printable(repr(value), 40)


def _confidence(value: Any) -> float | None:
    return min(1.0, float(value)) if type(value) in (int, float) and 0 <= value <= 1 + _ROUNDING else None
