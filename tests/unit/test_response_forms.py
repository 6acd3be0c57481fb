"""Responses of real containers: each row is one form of a response and its possible readings."""

import base64
import io
import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassbox.errors import SettingsError
from glassbox.monitoring import npy
from glassbox.monitoring.response import PREDICTIONS, ResponseParser, UnreadableError, predictions

NPY, LINES = "application/x-npy", "application/jsonlines"


def read(data, encoding="JSON", content_type="application/json", **paths):
    return [
        (p.predicted_class, p.confidence) for p in ResponseParser(**paths).read(data, encoding, content_type)
    ]


def row(name, text, expected, encoding="JSON", content_type="application/json", **paths):
    return pytest.param(text, encoding, content_type, paths, expected, id=name)


def base64_of(body):
    return base64.b64encode(body.encode() if isinstance(body, str) else body).decode()


def npy_of(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return base64_of(stream.getvalue())


def tensor(datatype, shape, data):
    output = {"name": "OUTPUT__0", "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"model_name": "signs", "model_version": "1", "outputs": [output]})


@pytest.mark.parametrize(
    ("text", "encoding", "content_type", "paths", "expected"),
    [
        # a class and its confidence: two values, the first a JSON integer, that do not sum to 1
        row("csv-class-and-confidence", "14,0.93", [(14, 0.93)], "CSV", "text/csv"),
        row("pair", "[14, 0.93]", [(14, 0.93)]),
        row("pair-in-a-list", "[[14, 0.93]]", [(14, 0.93)]),
        row("pair-in-predictions", '{"predictions": [[14, 0.93]]}', [(14, 0.93)]),
        row("pair-of-class-0", "[0, 0.93]", [(0, 0.93)]),
        row("pairs-of-a-batch", "14,0.93\n0,0.8\n1,0.75\n", [(14, 0.93), (0, 0.8), (1, 0.75)], "CSV"),
        row("pair-with-confidence-1.0", "[14, 1.0]", [(14, 1.0)]),
        row("pair-a-little-over-1", "[14, 1.0000001]", [(14, 1.0)]),
        row("csv-pair-in-quotes", '"14","0.93"\r\n', [(14, 0.93)], "CSV"),
        row("csv-after-a-byte-order-mark", "\ufeff14,0.93\n", [(14, 0.93)], "CSV"),
        row(
            "csv-name-by-path",
            "no,0.97",
            [("no", 0.97)],
            "CSV",
            class_path="[*][0]",
            confidence_path="[*][1]",
        ),
        row(
            "csv-names-with-blanks-and-a-header-by-path",
            'label,score\nStop,0.97\n"No entry, one way",0.8\n',
            [("Stop", 0.97), ("No entry, one way", 0.8)],
            "CSV",
            class_path="[1:][0]",
            confidence_path="[1:][1]",
        ),
        # Hugging Face
        row(
            "one-answer-per-input",
            '[{"label": "Stop", "score": 0.9}, {"label": "Stop", "score": 0.8}]',
            [("Stop", 0.9), ("Stop", 0.8)],
        ),
        row(
            "one-answer-per-input-of-different-labels",
            '[{"label": "Stop", "score": 0.9}, {"label": "Yield", "score": 0.8}]',
            [("Stop", 0.9), ("Yield", 0.8)],
        ),
        row(
            "a-ranking",
            '[{"label": "Stop", "score": 0.7}, {"label": "Yield", "score": 0.2}]',
            [("Stop", 0.7)],
        ),
        row(
            "a-ranking-per-input",
            '[[{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}], [{"label": "b", "score": 0.9},'
            ' {"label": "a", "score": 0.1}]]',
            [("a", 0.6), ("b", 0.9)],
        ),
        # rows of one response are read alike
        row("whole-numbers-among-scores", "[[0.2, 0.8], [1, 0]]", [(1, 0.8), (0, 1.0)]),
        row("csv-whole-numbers-among-scores", "0.2,0.8\n1,0", [(1, 0.8), (0, 1.0)], "CSV"),
        row("one-hot-rows", "[[0, 1, 0], [1, 0, 0]]", [(1, 1.0), (0, 1.0)]),
        row("one-hot-row-of-csv", "0,0,1\n", [(2, 1.0)], "CSV"),
        row("one-hot-rows-of-two", "[[1, 0], [0, 1]]", [(0, 1.0), (1, 1.0)]),
        row("logits-in-one-row-are-logits-in-all", "[[0.2, 0.8], [3.5, -2.5]]", [(1, None), (0, None)]),
        row("batch-of-classes", "[[14, 3], [9, 2]]", [(14, None), (3, None), (9, None), (2, None)]),
        # rounding
        row("probability-over-1", '{"class": 14, "probability": 1.00001}', [(14, 1.0)]),
        row("our-probability-over-1", '{"predictions":[{"class":14,"probability":1.0000001}]}', [(14, 1.0)]),
        row("named-scores-over-1", '{"Stop": 1.0000001, "Yield": 1e-9}', [("Stop", 1.0)]),
        row("float16-softmax", "[0.0, 1.0009765625]", [(1, 1.0)]),
        row("a-probability-under-0", "[-1e-9, 1.0]", [(1, 1.0)]),
        row("named-scores-as-integers", '{"Stop": 1, "Yield": 0}', [("Stop", 1.0)]),
        row("named-scores-under-a-key", '{"scores": {"Stop": 0.9, "Yield": 0.1}}', [("Stop", 0.9)]),
        row("rows-under-a-key", '{"probabilities": [[0.1, 0.9], [1, 0]]}', [(1, 0.9), (0, 1.0)]),
        row("numbers-as-texts", '{"class": "14.0", "probability": "0.93"}', [(14, 0.93)]),
        row("a-name-with-a-newline", '"Stop\\n"', [("Stop", None)]),
        # JSON Lines
        row("json-lines", '{"class": 14}\n{"class": 3}\n', [(14, None), (3, None)], content_type=LINES),
        row("json-lines-as-json", "[0.2, 0.8]\n[1, 0]\n", [(1, 0.8), (0, 1.0)]),
        row("json-lines-of-classes", "0\r\n1\r\n", [(0, None), (1, None)]),
        row(
            "json-lines-base64",
            base64_of('{"class": 14}\n\n{"class": 3}'),
            [(14, None), (3, None)],
            "BASE64",
            LINES,
        ),
        row(
            "x-ndjson",
            base64_of('"Stop"\n"Yield"'),
            [("Stop", None), ("Yield", None)],
            "BASE64",
            "application/x-ndjson",
        ),
        row(
            "json-lines-of-answers",
            '{"label": "Stop", "score": 0.3}\n{"label": "Yield", "score": 0.2}',
            [("Stop", 0.3), ("Yield", 0.2)],
        ),
        row(
            "json-lines-of-batches",
            '{"predictions": [[0.1, 0.9]]}\n{"predictions": [[0.9, 0.1]]}',
            [(1, 0.9), (0, 0.9)],
        ),
        row("json-lines-by-path", '{"x": 14}\n{"x": 3}', [(14, None), (3, None)], class_path="x"),
        row("json-after-a-byte-order-mark", base64_of("\ufeff[[14]]"), [(14, None)], "BASE64"),
        # arrays
        row("npy-scores", npy_of(np.array([[0.25, 0.75], [1.0, 0.0]])), [(1, 0.75), (0, 1.0)], "BASE64", NPY),
        row("npy-classes", npy_of(np.array([14, 3, 14])), [(14, None), (3, None), (14, None)], "BASE64", NPY),
        row(
            "npy-column-of-classes",
            npy_of(np.array([[14], [3]], "u1")),
            [(14, None), (3, None)],
            "BASE64",
            NPY,
        ),
        row(
            "npy-with-pixels-pooled",
            npy_of(np.array([[[[0.25]], [[0.75]]]], "f4")),
            [(1, 0.75)],
            "BASE64",
            NPY,
        ),
        row(
            "npy-of-another-type",
            npy_of(np.array([0.25, 0.75])),
            [(1, 0.75)],
            "BASE64",
            "application/octet-stream",
        ),
        row("a-first-class-of-0.0", "[0.0, 0.8, 0.2]", [(1, 0.8)]),
        row("a-last-class-of-0", "0.8,0.2,0", [(0, 0.8)], "CSV"),
        row("several-classes-of-0", "0,0.8,0.2,0", [(1, 0.8)], "CSV"),
        row("a-first-class-of-1.0", "[1.0, 0.0, 0.0]", [(0, 1.0)]),
        row("names-of-classes", "Stop\nYield", [("Stop", None), ("Yield", None)], "CSV"),
        # scores with the classes beside them, by name or by number, in any order
        row("scores-and-labels", '{"labels": ["Stop", "Yield"], "scores": [0.9, 0.1]}', [("Stop", 0.9)]),
        row(
            "scores-and-labels-unsorted", '{"probabilities": [0.1, 0.9], "labels": ["a", "b"]}', [("b", 0.9)]
        ),
        row(
            "predictions-and-labels",
            '{"predictions": [0.9, 0.1], "labels": ["dog", "cat"]}',
            [("dog", 0.9)],
        ),
        row(
            "classes-and-labels",
            '{"predictions": [3, 14], "labels": ["dog", "cat"]}',
            [(3, None), (14, None)],
        ),
        row("scores-and-class-ids", '{"class_ids": [14, 3], "scores": [0.9, 0.1]}', [(14, 0.9)]),
        row(
            "scores-and-labels-of-a-batch",
            '{"labels": ["a", "b", "c"], "probabilities": [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]}',
            [("c", 0.7), ("a", 0.8)],
        ),
        row(
            "scores-and-labels-by-row",
            '{"classes": [["b", "a"], ["a", "b"]], "scores": [[0.9, 0.1], [0.7, 0.3]]}',
            [("b", 0.9), ("a", 0.7)],
        ),
        row("classes-of-an-estimator", '{"class_ids": [1], "probabilities": [0.1, 0.9]}', [(1, 0.9)]),
        row(
            "predicted-label-with-its-scores",
            '{"probabilities": [0.1, 0.9], "labels": ["cat", "dog"], "predicted_label": "dog"}',
            [("dog", 0.9)],
        ),
        row(
            "linear-learner",
            '{"predictions": [{"score": [0.1, 0.2, 0.7], "predicted_label": 2}]}',
            [(2, 0.7)],
        ),
        row(
            "predicted-class-with-named-scores",
            '{"predicted_class": "a", "probabilities": {"a": 0.9, "b": 0.1}}',
            [("a", 0.9)],
        ),
        row(
            "ranking-by-probability",
            '[{"label": "a", "probability": 0.9}, {"label": "b", "probability": 0.1}]',
            [("a", 0.9)],
        ),
        row("logits-and-labels", '{"labels": ["a", "b"], "logits": [4.5, 2.0]}', [("a", None)]),
        row("class-with-prob", '{"class": 14, "prob": 0.9}', [(14, 0.9)]),
        row("label-with-logits", '{"label": 1, "logits": [-2.0, 5.5]}', [(1, None)]),
        row(
            "ranking-with-more-members",
            '[{"label": "a", "score": 0.98, "index": 1}, {"label": "b", "score": 0.02, "index": 0}]',
            [("a", 0.98)],
        ),
        # JSON that a container has encoded twice
        row("json-in-json", json.dumps('{"class": 14, "probability": 0.9}'), [(14, 0.9)]),
        row("scores-in-json-in-json", json.dumps("[0.1, 0.9]"), [(1, 0.9)]),
        row("json-in-json-by-path", json.dumps('{"id": 14}'), [(14, None)], class_path="id"),
        # the typed tensors of the open inference protocol (Triton, KServe)
        row("tensor-of-scores", tensor("FP32", [1, 3], [0.1, 0.7, 0.2]), [(1, 0.7)]),
        row("tensor-of-one-hot-scores", tensor("FP32", [1, 2], [0, 1]), [(1, 1.0)]),
        row("tensor-of-a-batch", tensor("FP32", [2, 2], [0.1, 0.9, 0.8, 0.2]), [(1, 0.9), (0, 0.8)]),
        row("tensor-of-a-class", tensor("INT64", [1], [14]), [(14, None)]),
        row("tensor-of-classes", tensor("INT64", [2, 1], [14, 3]), [(14, None), (3, None)]),
        row("columns-of-tensorflow", '{"outputs": [[0.1, 0.9]]}', [(1, 0.9)]),
        row("named-columns-of-tensorflow", '{"outputs": {"probabilities": [[0.1, 0.9]]}}', [(1, 0.9)]),
        # paths that select one of several readings
        row(
            "path-names-the-best-five",
            '{"tabby": 0.4, "lynx": 0.2}',
            [("tabby", 0.4)],
            class_path="{scores: @}",
        ),
        row("path-past-a-header", "0,1,2\n0.1,0.7,0.2", [(1, 0.7)], "CSV", class_path="[1:].{scores: @}"),
        row("path-past-a-named-header", "prediction\n14", [(14, None)], "CSV", class_path="[1:][0]"),
        row(
            "path-to-a-list-of-classes",
            "[[0, 1.0], [1, 0.9]]",
            [(0, 1.0), (1, 0.9)],
            class_path="[*][0]",
            confidence_path="[*][1]",
        ),
        row("path-names-classes", "[0, 1]", [(0, None), (1, None)], class_path="[].[@]"),
        row("path-names-scores", "[0, 1]", [(1, 1.0)], class_path="{scores: @}"),
        row("path-names-rows-of-scores", "[[14.0, 0.93]]", [(0, None)], class_path="[*].{scores: @}"),
        row(
            "path-names-the-ranking",
            '[{"label": "a", "score": 0.2}, {"label": "b", "score": 0.3}]',
            [("b", 0.3)],
            class_path="max_by(@, &score)",
        ),
    ],
)
def test_parser_reads_the_responses_of_real_containers(text, encoding, content_type, paths, expected):
    assert read(text, encoding, content_type, **paths) == expected


@pytest.mark.parametrize(
    ("text", "encoding", "reason"),
    [
        # scores, classes, or a class and its confidence: the reason names the paths that settle it
        pytest.param("[0, 1]", "JSON", "ClassPath", id="two-classes-or-one-hot"),
        pytest.param("[1, 0]", "JSON", "ClassPath", id="two-classes-or-one-hot-reversed"),
        pytest.param("[0, 1.0]", "JSON", "ClassPath", id="class-0-at-1-or-class-1"),
        pytest.param("[0, 0.9999]", "JSON", "ClassPath", id="class-0-at-0.9999-or-class-1"),
        pytest.param("0,1", "CSV", "ClassPath", id="csv-two-classes-or-one-hot"),
        pytest.param("14,1", "CSV", "ClassPath", id="csv-two-classes-or-class-at-1"),
        pytest.param("[[0, 1.0], [0, 0.9999]]", "JSON", "ClassPath", id="a-batch-of-those"),
        pytest.param(
            "[14.0, 0.93]", "JSON", r"ClassPath to '\[0\]'", id="a-class-as-a-float-with-confidence"
        ),
        pytest.param("[[14.0, 0.93], [0.0, 0.8]]", "JSON", "ClassPath", id="a-batch-of-those-with-class-0"),
        pytest.param(
            "[[1.0, 0.9], [0.0, 0.8]]", "JSON", "ClassPath", id="classes-0-and-1-as-floats-with-confidence"
        ),
        pytest.param("[0.93, 14]", "JSON", r"ClassPath to '\[1\]'", id="confidence-first"),
        pytest.param("14,0.02,0.9,0.08", "CSV", "ClassPath", id="class-before-its-probabilities"),
        pytest.param("1,0.1,0.9", "CSV", "ClassPath", id="class-1-before-its-probabilities"),
        pytest.param("0,0.8,0.2", "CSV", "ClassPath", id="class-0-before-its-probabilities"),
        pytest.param(
            "1,0.1,0.9\n0,0.8,0.2", "CSV", "ClassPath", id="a-batch-of-classes-before-probabilities"
        ),
        pytest.param(
            "0,0.1,0.7,0.2\n1,0.6,0.3,0.1", "CSV", "ClassPath", id="row-numbers-before-probabilities"
        ),
        pytest.param(
            "[[1.0, 0.1, 0.9]]", "JSON", "ClassPath", id="class-1-before-its-probabilities-as-a-float"
        ),
        pytest.param("0.1,0.9,1", "CSV", "ClassPath", id="class-1-after-its-probabilities"),
        pytest.param("0,1,2\n0.1,0.7,0.2", "CSV", "header", id="csv-with-numbers-for-a-header"),
        pytest.param("prediction\n14", "CSV", "header", id="csv-of-classes-with-a-header"),
        pytest.param('["{\\"class\\": 14}"]', "JSON", "expected a class", id="json-in-a-list-of-texts"),
        pytest.param(
            '{"labels": ["a", "b"], "probabilities": [[0.1, 0.9], [0.8, 0.2]]}',
            "JSON",
            "ClassPath to 'labels'",
            id="labels-of-the-rows-or-of-the-columns",
        ),
        pytest.param(
            '{"labels": ["a"], "scores": [0.02]}', "JSON", "got one score", id="one-named-output-unit"
        ),
        pytest.param(
            '{"tabby": 0.4, "lynx": 0.2}',
            "JSON",
            r"ClassPath to '\{scores: @\}'",
            id="the-best-of-many-scores",
        ),
        pytest.param(
            tensor("UINT8", [1, 3], [3, 250, 2]), "JSON", "ClassPath", id="tensor-of-quantised-scores"
        ),
        pytest.param(tensor("FP32", [2, 2], [0.1, 0.9]), "JSON", "shape", id="tensor-that-is-cut-off"),
        pytest.param(tensor("BYTES", [1, 1], ["0.93:14:Stop"]), "JSON", "ClassPath", id="tensor-of-texts"),
        pytest.param(
            '[[0.1, 0.9], "application/json"]',
            "JSON",
            r"ClassPath to '\[0\]'",
            id="a-body-beside-its-content-type",
        ),
        pytest.param('[{"class": 14}, 200]', "JSON", r"ClassPath to '\[0\]'", id="a-body-beside-its-status"),
        pytest.param('["Stop", 1]', "JSON", r"ClassPath to '\[0\]'", id="name-with-a-whole-confidence"),
        pytest.param(
            '{"boxes": [[1], [2]], "labels": [1, 1], "scores": [0.5, 0.5]}',
            "JSON",
            "ClassPath to 'labels' and ConfidencePath to 'scores'",
            id="labels-that-repeat",
        ),
        pytest.param(
            '{"labels": ["a", "b"], "scores": [0.9, 0.8]}',
            "JSON",
            "ClassPath to 'labels' and ConfidencePath to 'scores'",
            id="labelled-scores-that-sum-to-more",
        ),
        pytest.param("Stop,0.93", "CSV", "ClassPath", id="csv-name-with-confidence"),
        pytest.param('[["Stop", 0.93]]', "JSON", "ClassPath", id="name-with-confidence"),
        pytest.param(
            '[{"label": "a", "score": 0.2}, {"label": "b", "score": 0.3}]',
            "JSON",
            "ClassPath",
            id="part-of-a-ranking-or-two-inputs",
        ),
        # no class at all
        pytest.param('{"predictions": [{"score": 0.93}]}', "JSON", "ClassPath", id="a-score-alone"),
        pytest.param('{"probability": 0.93}', "JSON", "ClassPath", id="a-probability-alone"),
        pytest.param('{"prob": 0.8, "threshold": 0.5}', "JSON", "ClassPath", id="known-keys"),
        pytest.param('{"prob": 0.5, "threshold": 0.5}', "JSON", "ClassPath", id="known-keys-that-sum-to-1"),
        pytest.param('{"Stop": 0.7}', "JSON", "ClassPath", id="one-name-alone"),
        pytest.param('{"Stop": 0.9, "Yield": 0.9}', "JSON", "ClassPath", id="named-scores-that-sum-to-more"),
        pytest.param("[[0.93], [0.2]]", "JSON", "ClassPath", id="one-output-unit"),
        pytest.param('{"probabilities": [0.93]}', "JSON", "got one score", id="one-output-unit-named"),
        pytest.param("[[0.1, 0.9], [14]]", "JSON", "one length", id="rows-of-several-lengths"),
        pytest.param('["0.1", "0.9"]', "JSON", "expected a class", id="scores-as-texts"),
        pytest.param('{"error": "worker died"}', "JSON", "worker died", id="an-error"),
        pytest.param('{"errorMessage": "timed out"}', "JSON", "timed out", id="an-error-of-a-proxy"),
        pytest.param('{"Accuracy": 0.5, "Loss": 0.5}', "JSON", "ClassPath", id="known-keys-in-capitals"),
        pytest.param('{"class": 14}\n{"class": 3', "JSON", "not JSON", id="json-lines-cut-off"),
        pytest.param(
            '{"class": 14}\n{"error": "worker died"}', "JSON", "worker died", id="json-lines-with-an-error"
        ),
        pytest.param('"Stop\\u001b[31m"', "JSON", "expected a class", id="a-name-with-a-control-character"),
        pytest.param("label,score\nStop,0.97", "CSV", "ClassPath", id="csv-with-a-header"),
        pytest.param('"14', "CSV", "not a CSV of numbers", id="csv-with-an-open-quote"),
    ],
)
def test_parser_names_the_setting_for_an_ambiguous_response(text, encoding, reason):
    with pytest.raises(UnreadableError, match=reason):
        read(text, encoding)


@pytest.mark.parametrize(
    "wrap",
    ["{}", '{{"predictions": {}}}', "[[{}]]", "{0}\n{0}"],
    ids=["alone", "predictions", "deep", "lines"],
)
@pytest.mark.parametrize(
    ("text", "readings"),
    [
        pytest.param("[14.0, 0.93]", [[14], None, [0]], id="float-pair"),
        pytest.param("[0.93, 14]", [[14], None, [1]], id="confidence-first"),
        pytest.param("[14, 0.02, 0.98]", [[14], None, [0]], id="class-before-probabilities"),
    ],
)
def test_suggested_paths_give_the_suggested_readings(text, readings, wrap):
    with pytest.raises(UnreadableError) as error:
        read(wrap.format(text))
    paths = re.findall(r"'([^']+)'", str(error.value))
    times = 2 if "\n" in wrap else 1
    assert len(paths) == len(readings)
    for path, labels in zip(paths, readings, strict=True):
        if labels is not None:  # a fraction is not a class
            assert [label for label, _ in read(wrap.format(text), class_path=path)] == labels * times


@pytest.mark.parametrize("wrap", ["{}", '{{"predictions": {}}}'], ids=["alone", "predictions"])
@pytest.mark.parametrize(
    ("text", "readings"),
    [
        pytest.param("[0, 1]", [[0], [0, 1], [1]], id="two-integers"),
        pytest.param("[[0, 1.0], [0, 0.9999]]", [[0, 0], None, [1, 1]], id="rows"),
        pytest.param("[[14, 1], [3, 1]]", [[14, 3], [14, 1, 3, 1], [0, 0]], id="rows-of-integers"),
        pytest.param(
            '[{"label": "a", "score": 0.2}, {"label": "b", "score": 0.3}]', [["a", "b"], ["b"]], id="labels"
        ),
    ],
)
def test_suggested_paths_for_integers_and_labels_give_their_readings(text, readings, wrap):
    test_suggested_paths_give_the_suggested_readings(text, readings, wrap)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(
    "dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "i1", "u1", "<i2", ">u4", "<i8", ">u8"]
)
def test_npy_read_equals_numpy_for_every_dtype_and_order(dtype, order):
    array = np.asarray(np.arange(12).reshape(4, 3) % 7, dtype=dtype, order=order)
    body = base64.b64decode(npy_of(array))
    assert npy.read(body, rows=4) == np.load(io.BytesIO(body)).tolist()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(base64.b64decode(npy_of(np.array([{}]), allow_pickle=True)), "pickled", id="objects"),
        pytest.param(base64.b64decode(npy_of(np.array(["Stop"]))), "dtype", id="texts"),
        pytest.param(base64.b64decode(npy_of(np.array([(1, 0.5)], "i4,f4"))), "dtype", id="records"),
        pytest.param(base64.b64decode(npy_of(np.zeros((2, 3, 4)))), "axes", id="three-axes"),
        pytest.param(base64.b64decode(npy_of(np.zeros((3, 4))))[:-1], "bytes", id="cut-off"),
        pytest.param(
            base64.b64decode(npy_of(np.zeros((PREDICTIONS + 1, 2), "u1"))), "rows", id="too-many-rows"
        ),
        pytest.param(npy.MAGIC + b"\x01\x00", "format", id="nothing-else"),
        pytest.param(npy.MAGIC + b"\x02\x00" + b"\xff" * 8, "header", id="header-of-4-GB"),
        pytest.param(
            npy.MAGIC
            + b"\x01\x00\x60\x00"
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 999999999), }".ljust(96),
            "bytes",
            id="a-shape-beyond-memory",
        ),
    ],
)
def test_npy_read_refuses_other_arrays(body, reason):
    with pytest.raises(UnreadableError, match=reason):
        read(base64_of(body), "BASE64", NPY)


@given(st.binary(max_size=200), st.booleans())
def test_npy_read_returns_numbers_or_a_reason_for_any_bytes(body, real):
    header = b"\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }" if real else b""
    try:
        assert isinstance(npy.read(npy.MAGIC + header + body, rows=10), list | int | float)
    except ValueError as error:
        assert str(error)


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        pytest.param("1\n" * (3 << 20), "CSV", id="csv-rows"),
        pytest.param("1," * (3 << 20), "CSV", id="csv-cells"),
        pytest.param("0.1,0.9\n" * (6 << 17), "CSV", id="csv-scores"),
        pytest.param("[" + "1," * (3 << 20) + "1]", "JSON", id="json-classes"),
        pytest.param("[" + "[1]," * (3 << 19) + "[[1]]]", "JSON", id="json-rows"),
        pytest.param("[" + "[1]," * (3 << 19) + "1]", "JSON", id="json-rows-and-a-number"),
        pytest.param("1\n" * (3 << 20), "JSON", id="json-lines"),
        pytest.param(
            '{"predictions":[' + '{"class":1,"probability":1},' * 200_000 + "{}]}", "JSON", id="ours"
        ),
    ],
)
def test_parser_refuses_millions_of_predictions_in_bounded_memory(data, encoding):
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"at most 10000|got an object|several kinds"):
        read(data, encoding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


def test_parser_reads_the_largest_number_of_predictions():
    assert len(read("[" + ",".join(["1"] * PREDICTIONS) + "]")) == PREDICTIONS
    with pytest.raises(UnreadableError, match="smaller batches"):
        read("[" + ",".join(["1"] * (PREDICTIONS + 1)) + "]")


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path",
    [
        "sort_by(@, &a)",
        "max_by(@, &a)",
        "join(a, @)",
        "sum(@)",
        "to_number(@)[0]",
        "@[0].a.b[?c > `1`]",
        "sort(@)",
    ],
)
@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": "b"}, {"a": null}, {}]', '[1, "a"]', '{"a": []}', "null"])
def test_parser_raises_unreadable_error_only(path, text):
    try:
        read(text, class_path=path)
    except UnreadableError as error:
        assert str(error)


@pytest.mark.parametrize(
    "path", ["[" * 2000, "[" * 900, "a." * 400 + "a.", "(" * 900, "!" * 900, "a[?" * 300]
)
def test_path_too_deep_or_too_long_raises_settings_error(path):
    with pytest.raises(SettingsError, match="CLASS_PATH"):
        ResponseParser(path)


def test_reasons_contain_no_control_characters():
    for text in (
        '{"message": "a\\nb\\u001b[2J\\u202e"}',
        '{"\\n\\u001b": 1}',
        '["\\u0000\\u0085"]',
        '"a\\u2028b"',
    ):
        with pytest.raises(UnreadableError) as error:
            read(text)
        assert str(error.value).isprintable()


number = st.integers(-2, 20) | st.floats(-1, 2) | st.sampled_from([0, 1, 0.0, 1.0, 1e308, 10**309])


@given(st.lists(st.lists(number, max_size=4), max_size=4))
def test_rows_give_one_prediction_each_or_one_per_number(rows):
    try:
        found = predictions(rows)
    except UnreadableError:
        return
    assert len(found) in (len(rows), sum(map(len, rows)))


@given(st.text(max_size=60), st.sampled_from(["JSON", "CSV", "BASE64", "X"]), st.none() | st.just("text/csv"))
def test_parser_returns_predictions_or_a_reason_for_any_text(text, encoding, content_type):
    for paths in ({}, {"class_path": "[*][0]", "confidence_path": "[*][1]"}):
        try:
            assert read(text, encoding, content_type, **paths)
        except UnreadableError as error:
            assert str(error)


@given(
    st.recursive(
        st.none() | st.booleans() | number | st.text(max_size=3),
        lambda x: st.lists(x, max_size=3),
        max_leaves=9,
    )
)
def test_json_lines_equal_their_single_lines(value):
    """A line twice gives the classes of the line twice, or both fail."""
    text = json.dumps(value)

    def labels(text):
        try:
            return [label for label, _ in read(text)]
        except UnreadableError:
            return None

    once, twice = labels(text + "\n"), labels(f"{text}\n{text}")
    assert twice is None or once is None or twice == once * 2
