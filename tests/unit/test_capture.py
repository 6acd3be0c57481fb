import io
import json
import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

import captures
import replays
from glassbox.errors import BadInputError
from glassbox.monitoring.capture import LINE_BYTES, Record, Unreadable, chunks, lines, read, read_key
from glassbox.monitoring.response import ResponseParser


def read_all(*texts, parser=None):
    return list(read([b"\n".join(texts)], "file.jsonl", parser, replays.key))


def labels(records):
    return [p.predicted_class for r in records for p in r.predictions]


@pytest.mark.parametrize("output", ["JSON", "CSV", "BASE64"])
@pytest.mark.parametrize("input_", ["JSON", "CSV", "BASE64", None])
def test_read_decodes_input_and_output_separately(input_, output):
    types = {"JSON": "application/json", "CSV": "text/csv; charset=utf-8", "BASE64": "application/x-npy"}
    record = captures.record("14", encoding=output, content_type=types[output].replace("x-npy", "json"))
    if input_ is None:
        del record["captureData"]["endpointInput"]
    else:
        data = {
            "JSON": '{"instances": ["\\"endpointOutput\\":{"]}',
            "CSV": "1,2\n3,4",
            "BASE64": captures.NPY,
        }[input_]
        record["captureData"]["endpointInput"] = captures.side(data, input_, types[input_], "INPUT")
    assert labels(read_all(json.dumps(record).encode())) == [14]


def test_read_accepts_the_documented_record():
    """The CSV record in the developer guide's notebook, whose output is a regression value."""
    line = (
        b'{"captureData":{"endpointInput":{"observedContentType":"text/csv","mode":"INPUT","data":"92,0,176.3",'
        b'"encoding":"CSV"},"endpointOutput":{"observedContentType":"text/csv; charset=utf-8","mode":"OUTPUT",'
        b'"data":"0.0391250215470790","encoding":"CSV"}},"eventMetadata":{"eventId":"d8156fb6-7a1c-4a3b-9a65-'
        b'fd2f4a1bb5d8","inferenceTime":"2022-04-18T00:21:48Z"},"eventVersion":"0"}'
    )
    (regression,) = read_all(line)
    assert (regression.line, regression.time) == (1, "2022-04-18T00:21:48Z")
    assert "expected a class" in regression.reason
    (record,) = read_all(line.replace(b"0.0391250215470790", b"1"))
    assert labels([record]) == [1]


def test_read_ignores_unknown_members_and_null_types():
    record = captures.record("[[14]]", invocationSource="ShadowExperiment", inferenceId="x")
    record["captureData"]["endpointOutput"]["observedContentType"] = None
    record["new"] = {"deep": [1, {"x": None}]}
    assert labels(read_all(json.dumps(record, indent=None).encode())) == [14]


MARKER = replays.marker()


@pytest.mark.parametrize(
    ("attributes", "replayed", "forged"),
    [
        ([MARKER], True, False),
        (MARKER, True, False),
        (["trace=1", f" {MARKER}"], True, False),
        ([f"trace=1,{MARKER}"], True, False),
        ([f"{MARKER},{MARKER}"], False, True),
        ([MARKER, MARKER], False, True),
        ([MARKER[:-1]], False, True),
        (["glassbox=1"], False, True),
        (replays.FORGED, False, True),
        (replays.marker(b"another body"), False, True),
        (replays.marker(incident="20261122t095500-class-share"), False, True),
        (["glassbox-replay=17"], False, False),
        (["glassbox"], False, False),
        ([f"note={MARKER}"], False, False),
        ([], False, False),
    ],
)
def test_read_excludes_replays_and_counts_forged_markers_as_traffic(attributes, replayed, forged):
    (record,) = read_all(captures.line("[[14]]", customAttributes=attributes))
    assert (record.replayed, record.forged) == (replayed, forged)
    assert labels([record]) == ([] if replayed else [14])


def test_read_excludes_replays_for_a_repair():
    (record,) = read_all(captures.line("[[14]]", customAttributes=[replays.marker(purpose="repair")]))
    assert record.replayed


@pytest.mark.parametrize(
    ("side", "body"),
    [
        (captures.side('{"x": "ä\u2028"}', "JSON"), '{"x": "ä\u2028"}'.encode()),
        (captures.side("1,2\n3", "CSV"), b"1,2\n3"),
        (captures.side("", "CSV"), b""),
        (captures.side("AAH/", "BASE64"), b"\0\1\xff"),
    ],
)
def test_read_binds_a_marker_to_the_captured_input(side, body):
    for marked, replayed in ((body, True), (body + b"\n", False)):
        record = captures.record("[[14]]", customAttributes=[replays.marker(marked)])
        record["captureData"]["endpointInput"] = side
        (read,) = read_all(json.dumps(record).encode())
        assert (read.replayed, read.forged) == (replayed, not replayed)


@pytest.mark.parametrize("data", ["AAH", "AA H/", "A\u00e4H/", 7])
def test_read_verifies_no_marker_of_an_unreadable_input(data):
    record = captures.record("[[14]]", customAttributes=[MARKER])
    record["captureData"]["endpointInput"]["data"] = data
    (read,) = read_all(json.dumps(record).encode())
    assert (read.replayed, read.forged) == (False, True)


@pytest.mark.parametrize("missing", [{}, {"endpointInput": None}, {"endpointInput": {"encoding": "JSON"}}])
def test_read_checks_signature_and_age_without_a_captured_input(missing):
    for marker, replayed in ((replays.marker(b"any body"), True), (replays.FORGED, False)):
        record = captures.record("[[14]]", customAttributes=[marker])
        output = record["captureData"]["endpointOutput"]
        record["captureData"] = {"endpointOutput": output} | missing
        (read,) = read_all(json.dumps(record).encode())
        assert read.replayed is replayed


def test_read_excludes_failed_replays_and_reports_forged_ones_as_unreadable():
    (record,) = read_all(captures.line("oops", customAttributes=[MARKER]))
    assert record == Record("2026-11-23T10:00:01Z", (), True)
    (unreadable,) = read_all(captures.line("oops", customAttributes=[replays.FORGED]))
    assert (unreadable.forged, unreadable.time) == (True, "2026-11-23T10:00:01Z")


def test_read_verifies_no_marker_without_a_key():
    (record,) = read([captures.line("[[14]]", customAttributes=[MARKER])], "file.jsonl")
    assert (record.replayed, record.forged, labels([record])) == (False, True, [14])


TIME = "2026-11-23T10:00:01Z"


def spoilt(**changes):
    record = captures.record("[[14]]")
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = record
        for name in parents:
            node = node[name]
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("line", "reason", "time"),
    [
        (b"oops", "not a capture record", None),
        (b"{}", "not a capture record.*captureData", None),
        (b"[1]", "not a capture record", None),
        (captures.line("[[14]]")[:-20], "not a capture record.*truncated", None),
        (captures.line("[[14]]").replace(b"[[14]]", b"[[1\xff4]]"), "not a capture record.*utf-8", TIME),
        (b"[" * 200_000, "not a capture record", None),
        (b'{"captureData":' * 100_000, "not a capture record", None),
        (b'{"x":' + b"[" * 200_000 + captures.line("[[14]]")[1:], "not a capture record", None),
        (spoilt(eventMetadata__inferenceTime=None), "inferenceTime", None),
        (spoilt(eventMetadata__inferenceTime="soon"), "invalid ISO 8601 timestamp: 'soon'", None),
        (spoilt(eventMetadata__inferenceTime="0001-01-01T00:00:00Z"), "timestamp outside 2000 to 2199", None),
        (
            spoilt(eventMetadata__inferenceTime="9999-12-31T23:59:59-14:00"),
            "invalid ISO 8601",
            None,
        ),
        (spoilt(eventMetadata__inferenceTime="2" * 50), "not a capture record", None),
        (spoilt(captureData__endpointOutput=None), "endpointOutput: expected an object", TIME),
        (spoilt(captureData__endpointOutput__data=None), "data: expected text", TIME),
        (spoilt(captureData__endpointOutput__data=14), "Expected `str", TIME),
        (spoilt(captureData__endpointOutput__encoding=None), "encoding: expected text", TIME),
        (captures.line("[[14]]").replace(b'"[[14]]"', b"null"), "data: expected text", TIME),
        (spoilt(captureData__endpointOutput__observedContentType=[]), "observedContentType", TIME),
        (spoilt(eventMetadata__customAttributes={"a": "b"}), "customAttributes", TIME),
        (spoilt(eventMetadata__customAttributes=[1]), "customAttributes", TIME),
        (spoilt(captureData=[]), "captureData", TIME),
        (spoilt(captureData__endpointOutput__encoding={"deep": {}}), "encoding", TIME),
        (spoilt(captureData__endpointOutput__data="oops"), "not JSON", TIME),
        (spoilt(captureData__endpointOutput__encoding="BASE64"), "not base64", TIME),
        (captures.line(f"[1.5, {10**309}]"), "expected finite floats", TIME),
    ],
)
def test_read_reports_unreadable_lines_and_counts_the_others(line, reason, time):
    first, bad, last = read_all(captures.line("[[1]]"), line, captures.line("[[2]]"))
    assert labels([first, last]) == [1, 2]
    assert isinstance(bad, Unreadable)
    assert (bad.source, bad.line, bad.time) == ("file.jsonl", 2, time)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(str(bad))


def test_read_numbers_blank_lines_and_skips_them():
    records = list(read([b"\n\r\n" + captures.line("[[1]]") + b"\r\n \n" + b"oops\n\n"], "file.jsonl"))
    assert labels(records[:1]) == [1]
    assert [r.line for r in records[1:]] == [5]


def test_read_parses_with_the_given_parser():
    (record,) = read_all(captures.line({"best": 14}), parser=ResponseParser("best"))
    assert labels([record]) == [14]


@given(st.binary(max_size=200).map(lambda b: b.replace(b"\r", b"\n")), st.integers(1, 20))
def test_lines_are_independent_of_the_chunk_size(data, size):
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert list(lines(pieces)) == (data.removesuffix(b"\n").split(b"\n") if data else [])


@given(
    st.lists(
        st.sampled_from([b"oops", captures.line("[[1]]"), b"", b'{"captureData":{}}', b"\xff"]), max_size=6
    )
)
def test_lines_yields_every_line_once(texts):
    records = list(read([b"\n".join(texts)], "x"))
    assert len([r for r in records if isinstance(r, Record)]) == texts.count(captures.line("[[1]]"))
    assert len(records) == len([t for t in texts if t])


def test_lines_bounds_the_memory_of_a_100_mb_line():
    def file():
        yield captures.line("[[1]]") + b'\n{"captureData":"'
        for _ in range(1600):
            yield b"x" * (1 << 16)
        yield b'"}\n' + captures.line("[[2]]")

    tracemalloc.start()
    first, bad, last = read(file(), "file.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels([first, last]) == [1, 2]
    assert (bad.line, bad.reason) == (2, "line: expected at most 32 MiB, got more")
    assert peak < 1.25 * LINE_BYTES


def test_read_reports_a_last_line_that_is_too_long():
    *_, bad = read((b"x" * (1 << 20) for _ in range(40)), "file.jsonl")
    assert bad.reason == "line: expected at most 32 MiB, got more"


def test_read_skips_a_large_input_in_bounded_memory():
    record = captures.record("[[14]]")
    record["captureData"]["endpointInput"]["data"] = "A" * 8_000_000
    line = json.dumps(record).encode()
    tracemalloc.start()
    assert labels(read(chunks(io.BytesIO(line)), "file.jsonl")) == [14]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * len(line)  # the line and its pieces, no decoded input


@pytest.mark.parametrize("prefix", ["", "capture/", "a/b-c/d=e/2026/11/23/10/"])
def test_read_key_accepts_any_prefix(prefix):
    assert read_key(f"{prefix}traffic-signs/AllTraffic/2026/11/23/10/20-02-871-uuid.jsonl") == (
        "traffic-signs",
        "AllTraffic",
        datetime(2026, 11, 23, 10, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    "key",
    [
        "",
        "capture/traffic-signs/AllTraffic/2026/11/23/10/",
        "capture/traffic-signs/AllTraffic/2026/11/23/10/x.json",
        "capture/traffic-signs/AllTraffic/2026/11/23/x.jsonl",
        "AllTraffic/2026/11/23/10/x.jsonl",
        "capture/traffic-signs/AllTraffic/2026/13/23/10/x.jsonl",
        "capture/traffic-signs/AllTraffic/2026/11/23/24/x.jsonl",
        "capture/traffic-signs/AllTraffic/0000/11/23/10/x.jsonl",
        "capture/traffic-signs/AllTraffic/0001/01/01/00/x.jsonl",
        "capture/traffic/signs!/2026/11/23/10/x.jsonl",
    ],
)
def test_read_key_refuses_other_keys(key):
    with pytest.raises(BadInputError, match="expected a capture file"):
        read_key(key)


def test_read_excludes_a_replay_without_an_output():
    line = spoilt(captureData__endpointOutput__data=None, eventMetadata__customAttributes=[MARKER])
    (record,) = read_all(line)
    assert record.replayed


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[31mb", "a\u2028b", "a\u202eb"], ids=["newline", "escape", "separator", "bidi"]
)
def test_unreadable_is_one_printable_line(name):
    (bad,) = read([b"oops"], f"s3://bucket/{name}.jsonl")
    assert str(bad).isprintable()
    with pytest.raises(BadInputError) as error:
        read_key(f"capture/{name}.txt")
    assert str(error.value).isprintable()


FOLDER = "capture/signs"


@pytest.mark.parametrize(
    "key",
    [
        "capture/signs/x/other-endpoint/AllTraffic/2026/11/23/10/a.jsonl",
        "capture/other-endpoint/AllTraffic/2026/11/23/10/a.jsonl",
        "signs/AllTraffic/2026/11/23/10/a.jsonl",
        "capture/signs-2/AllTraffic/2026/11/23/10/a.jsonl",
        "elsewhere/capture/signs/AllTraffic/2026/11/23/10/a.jsonl",
        "capture/signs/signs/AllTraffic/2026/11/23/10/a.jsonl",
    ],
)
def test_read_key_refuses_another_endpoint(key):
    with pytest.raises(BadInputError, match="below capture/signs/"):
        read_key(key, FOLDER)


def test_read_key_accepts_the_watched_endpoint():
    assert read_key("capture/signs/AllTraffic/2026/11/23/10/a.jsonl", FOLDER).endpoint == "signs"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "encoding", "observedContentType", "endpointOutput", "inferenceTime"]), x
        )
    ),
    max_leaves=8,
)


@given(
    st.sampled_from(
        [
            "captureData",
            "captureData__endpointOutput",
            "captureData__endpointOutput__data",
            "captureData__endpointOutput__encoding",
            "captureData__endpointOutput__observedContentType",
            "eventMetadata",
            "eventMetadata__inferenceTime",
            "eventMetadata__customAttributes",
        ]
    ),
    json_values,
)
def test_read_returns_a_record_or_a_reason_for_any_member(path, value):
    (record,) = read_all(spoilt(**{path: value}))
    assert isinstance(record, Record | Unreadable)
    if not path.startswith("eventMetadata"):
        assert record.time == TIME
