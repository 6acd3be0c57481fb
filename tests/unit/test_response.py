import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glassbox.errors import SettingsError
from glassbox.monitoring.response import (
    RESPONSE_BYTES,
    Prediction,
    ResponseParser,
    UnreadableError,
    predictions,
)


def read(data, encoding="JSON", content_type="application/json", **paths):
    return [
        (p.predicted_class, p.confidence) for p in ResponseParser(**paths).read(data, encoding, content_type)
    ]


OURS = '{"predictions": [{"class": 14, "label": "Stop", "probability": 0.93, "top3": [{"class": 1}]}]}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the project's own model, one sample and a batch; a whole-number probability; none at all
        (OURS, [(14, 0.93)]),
        (OURS.replace(" ", ""), [(14, 0.93)]),
        (OURS.replace(" ", "\n"), [(14, 0.93)]),
        ('{"predictions":[{"class":14,"probability":1},{"class":3}]}', [(14, 1.0), (3, None)]),
        # the article's, as TorchServe prints it
        ("[\n  [\n    14\n  ]\n]", [(14, None)]),
        ("14", [(14, None)]),
        ("14.0", [(14, None)]),
        ('"14"', [(14, None)]),
        ('"Stop"', [("Stop", None)]),
        # batches of classes
        ("[14, 3, 14]", [(14, None), (3, None), (14, None)]),
        ("[14.0, 3.0]", [(14, None), (3, None)]),
        ("[[14], [3]]", [(14, None), (3, None)]),
        ("[0, 1, 0]", [(0, None), (1, None), (0, None)]),
        ('["Stop", "Yield"]', [("Stop", None), ("Yield", None)]),
        # scores of every class
        ("[0.1, 0.7, 0.2]", [(1, 0.7)]),
        ("[[0.1, 0.7, 0.2], [0.9, 0.05, 0.05]]", [(1, 0.7), (0, 0.9)]),
        ("[0.0, 1.0, 0.0]", [(1, 1.0)]),
        ("[0.9, 0.8]", [(0, 0.9)]),  # sigmoids
        ("[-3.5, 9.25, 2.0]", [(1, None)]),  # logits are not probabilities
        ("[3.5, 9.25, 2.0]", [(1, None)]),
        ("[-0.5, 0.25]", [(1, None)]),
        ('{"predictions": [[0.1, 0.9]]}', [(1, 0.9)]),
        ('{"predictions": [14, 3]}', [(14, None), (3, None)]),
        ('{"probabilities": [0.1, 0.9], "labels": ["a", "b"]}', [("b", 0.9)]),
        # named classes
        ('{"class": 14, "probability": 0.5}', [(14, 0.5)]),
        ('{"predicted_label": "Stop", "probabilities": [0.1, 0.9]}', [("Stop", None)]),
        ('{"Stop": 0.7, "Yield": 0.3}', [("Stop", 0.7)]),
        ('{"14": 0.7, "3": 0.3}', [(14, 0.7)]),
        ('[{"label": "Yield", "score": 0.3}, {"label": "Stop", "score": 0.7}]', [("Stop", 0.7)]),
        ('[{"class": 14, "confidence": 0.7}, {"class": 3, "score": 0.2}]', [(14, 0.7), (3, 0.2)]),
        # a class whose probability is none is a class all the same
        ('{"predictions": [{"class": 14, "probability": 93}]}', [(14, None)]),
        ('{"class": 14, "probability": "high"}', [(14, None)]),
    ],
)
def test_parser_reads_the_usual_forms(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ('{"predictions": [{"cl', "not JSON"),
        ('{"predictions":[{"class":1,"top3":' + "[" * 100_000, "not JSON"),
        ("NaN", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[" * 500 + "14" + "]" * 500, "at most 4 nested lists"),
        ("[]", "no prediction"),
        ('{"predictions": []}', "no prediction"),
        ("{}", "expected a class"),
        ("null", "expected a class"),
        ("true", "expected a class"),
        ("[true]", "expected a class"),
        ("0.039", "expected a class"),
        ('""', "expected a class"),
        (json.dumps("x" * 65), "expected a class"),
        ('{"predictions": [{"class": 14}, {"class": null}]}', "expected a class, got an object of class"),
        ('{"predictions": [{"class": 1.5}]}', "1.5"),
        ('{"code": 500, "type": "InternalServerException", "message": "Worker died."}', "Worker died"),
        ('{"generated_text": "a sign"}', "expected a class, got an object of generated_text"),
        ("[1e999, 0.5]", "JSON|finite"),
        ('[{"label": "a", "score": "b"}, {"label": [], "score": 1}]', "expected a class"),
    ],
)
def test_parser_names_the_reason_for_a_response_without_a_class(text, reason):
    with pytest.raises(UnreadableError, match=reason):
        read(text)


def test_parser_reads_csv_as_one_sample_per_row():
    assert read("14", "CSV", "text/csv") == [(14, None)]
    assert read("14\n3\r\n", "CSV", "text/csv; charset=utf-8") == [(14, None), (3, None)]
    assert read("0.1,0.7,0.2\n0.9,0.1,0\n", "CSV", "text/csv") == [(1, 0.7), (0, 0.9)]
    with pytest.raises(UnreadableError, match="not a CSV of numbers"):
        read("a,b", "CSV", "text/csv")
    with pytest.raises(UnreadableError, match="no prediction"):
        read("", "CSV", "text/csv")
    with pytest.raises(UnreadableError, match="finite"):
        read("nan,0.5", "CSV", "text/csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stop", ["Stop"]),
        (" Stop\r\n", ["Stop"]),
        ("Stop\n14\nno-entry_2\n", ["Stop", 14, "no-entry_2"]),
        ("Überholverbot", ["Überholverbot"]),
        ("n" * 64, ["n" * 64]),
    ],
)
def test_parser_reads_a_class_name_from_a_csv_row(text, expected):
    assert read(text, "CSV", "text/csv") == [(label, None) for label in expected]
    body = base64.b64encode(text.encode()).decode()
    assert read(body, "BASE64", "text/csv; charset=utf-8") == [(label, None) for label in expected]


@pytest.mark.parametrize(
    "text",
    [
        "<html>",
        "<html>\n<body>\nStop\n</body>\n</html>",
        "Internal server error",
        "Worker died.\nStop",
        "Stop,0.9",
        "Stop,Yield",
        '{"code": 400}',
        "error:500",
        "_",
        "---",
        "nan",
        "n" * 65,
    ],
)
def test_parser_refuses_invalid_class_names_in_csv(text):
    with pytest.raises(UnreadableError, match=r"not a CSV of numbers|expected a class"):
        read(text, "CSV", "text/csv")


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (OURS, "application/json", [(14, 0.93)]),
        ("[[14]]", "application/json; charset=utf-8", [(14, None)]),
        ("[[14]]", "application/vnd.sagemaker+json", [(14, None)]),
        ("[[14]]", None, [(14, None)]),
        ("[[14]]", "application/octet-stream", [(14, None)]),
        ("0.1,0.9", None, [(1, 0.9)]),
        ("0.1,0.9", "text/csv", [(1, 0.9)]),
    ],
)
def test_parser_decodes_base64_by_content_type(body, content_type, expected):
    assert read(base64.b64encode(body.encode()).decode(), "BASE64", content_type) == expected


@pytest.mark.parametrize(
    ("data", "content_type", "reason"),
    [
        ("W1sxNF1d*", "application/json", "not base64"),
        ("W1sxNF1", "application/json", "not base64"),
        ("é", "application/json", "not base64"),
        (base64.b64encode(b"<html>").decode(), "text/html; charset=utf-8", "content type text/html"),
        (base64.b64encode(b"\xff\xfe").decode(), "text/csv", "not UTF-8"),
        (base64.b64encode(b"\xff\xfe").decode(), None, "not UTF-8"),
        (base64.b64encode(b"oops").decode(), "application/json", "not JSON"),
        (base64.b64encode(b"oops").decode(), None, "not a CSV of numbers"),
    ],
)
def test_parser_names_the_reason_for_unreadable_base64(data, content_type, reason):
    with pytest.raises(UnreadableError, match=reason):
        read(data, "BASE64", content_type)


def test_parser_refuses_an_unknown_encoding():
    with pytest.raises(UnreadableError, match="expected JSON, CSV or BASE64, got 'GZIP'"):
        read("14", "GZIP")


HUGE = 10**309


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (f"[1.5, {HUGE}]", "JSON"),
        (f"[[0.1, {-HUGE}]]", "JSON"),
        (f'{{"probabilities": [0.5, {HUGE}]}}', "JSON"),
        (f"1.5,{HUGE}", "CSV"),
    ],
)
def test_parser_refuses_scores_beyond_floats(text, encoding):
    with pytest.raises(UnreadableError, match="expected finite floats"):
        read(text, encoding)


def test_parser_reads_a_class_number_beyond_floats():
    assert read(f"[1.0, {HUGE}]") == [(1, None), (HUGE, None)]
    assert read(f'{{"predictions":[{{"class":14,"probability":{HUGE}}}]}}') == [(14, None)]


UNUSUAL = json.dumps(
    {
        "results": [{"id": 7, "p": 0.8}, {"id": 9, "p": 0.6}],
        "vector": [0.2, 0.8],
        "best": "14",
        "beyond": [HUGE],
    }
)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ({"class_path": "results[].id"}, [(7, None), (9, None)]),
        ({"class_path": "results[].id", "confidence_path": "results[].p"}, [(7, 0.8), (9, 0.6)]),
        ({"class_path": "results[0].id", "confidence_path": "results[0].p"}, [(7, 0.8)]),
        ({"class_path": "vector"}, [(1, 0.8)]),
        ({"class_path": "best", "confidence_path": "max(vector)"}, [(14, 0.8)]),
    ],
)
def test_paths_reach_any_response(paths, expected):
    assert read(UNUSUAL, **paths) == expected
    assert read(base64.b64encode(UNUSUAL.encode()).decode(), "BASE64", None, **paths) == expected


def test_confidence_path_alone_uses_the_usual_forms_for_the_class():
    text = '{"class": 14, "certainty": 0.4}'
    assert read(text, confidence_path="certainty") == [(14, 0.4)]


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ({"class_path": "nothing"}, "CLASS_PATH finds nothing"),
        (
            {"class_path": "results[].id", "confidence_path": "results[0].p"},
            "finds 1 values for 2 predictions",
        ),
        ({"class_path": "max(best)"}, "invalid argument"),
        ({"class_path": "avg(beyond)"}, "invalid argument"),
    ],
)
def test_parser_names_the_reason_when_a_path_finds_nothing(paths, reason):
    with pytest.raises(UnreadableError, match=reason):
        read(UNUSUAL, **paths)


def test_invalid_jmespath_raises_settings_error():
    with pytest.raises(SettingsError, match=r"CONFIDENCE_PATH='a\.': invalid JMESPath"):
        ResponseParser("a", "a.")


def test_parser_refuses_a_response_beyond_the_bound():
    with pytest.raises(UnreadableError, match="got 8388609"):
        read("1" * (RESPONSE_BYTES + 1))


def test_reasons_are_short_for_any_response():
    for text in (json.dumps({"message": "x" * 10_000}), json.dumps({"k" * 10_000: "v"}), "[" + "x" * 10_000):
        with pytest.raises(UnreadableError) as error:
            read(text)
        assert len(str(error.value)) <= 300


# JSON bounds no number: an int of 310 digits is beyond every float
numbers = st.integers() | st.floats() | st.sampled_from([HUGE, -HUGE])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8) | st.lists(numbers, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["class", "label", "score", "predictions", "probabilities", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_parser_returns_predictions_or_a_reason_for_any_json(value):
    try:
        found = predictions(value)
    except UnreadableError as error:
        assert str(error)
        return
    assert found
    for prediction in found:
        assert isinstance(prediction, Prediction)
        assert type(prediction.predicted_class) in (int, str)
        assert prediction.confidence is None or 0 <= prediction.confidence <= 1


entries = st.fixed_dictionaries(
    {},
    optional={
        "class": st.integers() | json_values,
        "probability": st.floats(0, 1) | st.integers(-1, 2) | json_values,
        "label": st.none() | st.text(max_size=4),
        "score": st.floats(0, 1),
    },
)


@example([{"class": 0, "probability": 0.7, "label": "a"}, {"class": 1, "probability": 0.3, "label": "b"}])
@given(st.lists(entries, max_size=4))
def test_fast_path_of_own_responses_equals_the_general_path(entries):
    """The decoder of the project's own responses and the general one agree."""
    text = json.dumps({"predictions": entries})

    def outcome(text):
        try:
            return read(text)
        except UnreadableError:
            return None

    assert outcome(text) == outcome(" " + text)  # only the first has the prefix of the fast path
