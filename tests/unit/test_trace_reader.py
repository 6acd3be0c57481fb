"""Files of smdebug are read bit for bit; all others are refused with key and reason."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smdebug.core.tfevent.proto.event_pb2 import Event
from smdebug.core.tfevent.proto.summary_pb2 import Summary
from smdebug.core.tfevent.proto.tensor_pb2 import TensorProto
from smdebug.core.tfevent.proto.tensor_shape_pb2 import TensorShapeProto

import trace_writer
import traces
import zoo
from glassbox.errors import BadInputError
from glassbox.explanation import fullgrad, heatmap, trace_format
from glassbox.explanation.facts import read_facts, to_json
from glassbox.explanation.trace_reader import MAX_TENSORS, read_index, read_tensors, read_trace

KEY = "tensors/signs/run-1/index/000000000/000000000007_worker_0.json"
EVENTS = "events/000000000007/000000000007_worker_0.tfevents"
FLOAT = 1
TWO_FLOATS = struct.pack("<2f", 1, 2)


def frame(name="a", step=7, dtype=FLOAT, shape=(2,), content=TWO_FLOATS, tensor=None):
    """One TFRecord frame, made with protobuf."""
    dims = [TensorShapeProto.Dim(size=size) for size in shape]
    tensor = tensor or TensorProto(
        dtype=dtype, tensor_shape=TensorShapeProto(dim=dims), tensor_content=content
    )
    value = Summary.Value(tag=name, tensor=tensor)
    event = Event(step=step, summary=Summary(value=[value])).SerializeToString()
    return struct.pack("<QI", len(event), 0) + event + struct.pack("<I", 0)


def index_of(*ranges, events=EVENTS):
    payload = [{"tensorname": name, "start_idx": start, "length": length} for name, start, length in ranges]
    meta = {"mode": "PREDICT", "mode_step": 7, "event_file_name": events}
    return json.dumps({"meta": meta, "tensor_payload": payload, "shape_payload": []}).encode()


def read(*frames, names=None):
    """The tensors of an events file of these frames."""
    starts = np.cumsum([0, *map(len, frames)])
    names = names or ["a", "b", "c"]
    ranges = [(name, int(start), len(f)) for name, start, f in zip(names, starts, frames, strict=False)]
    return read_tensors(read_index(KEY, index_of(*ranges)), b"".join(frames))


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """A small traced step: its folder and the path of its index."""
    folder = tmp_path_factory.mktemp("step") / "run"
    model, image = zoo.build("1×1 maps, one channel")
    terms = zoo.autograd_terms(model, image)
    return folder, traces.write_step(
        folder, traces.reduced(terms, model, class_names=["Stop", "Yield"]), step=7
    )


class TestReading:
    def test_equals_create_trial_bit_for_bit(self, tmp_path):
        from smdebug.core.modes import ModeKeys
        from smdebug.trials import create_trial

        model, image = zoo.build("a block used twice")
        tensors = traces.full(zoo.autograd_terms(model, image), model) | {
            "scalar": np.array([3.5], np.float32),
            "half": np.linspace(-1, 1, 5, dtype=np.float16),
            "double": np.array([[np.pi, -0.0], [np.nan, np.inf]]),
            "integers": np.array([-(2**31), 2**31 - 1], np.int32),
            "longs": np.array([-(2**63), 2**63 - 1]),
            "flags": np.array([[True], [False]]),
        }
        path = traces.write_step(tmp_path / "run", tensors, step=1234)
        assert path == "index/000000001/000000001234_worker_0.json"
        index = read_index(path, (tmp_path / "run" / path).read_bytes())
        ours = read_tensors(index, (tmp_path / "run" / index.events_key).read_bytes())

        trial = create_trial(str(tmp_path / "run"))
        assert set(trial.tensor_names()) == set(ours) == set(tensors)
        for name, value in ours.items():
            theirs = trial.tensor(name).value(1234, mode=ModeKeys.PREDICT)
            assert (value.dtype, value.shape) == (theirs.dtype, theirs.shape), name
            assert value.tobytes() == theirs.tobytes() == tensors[name].tobytes(), name

    def test_tensors_are_read_only_views(self, step):
        folder, path = step
        index = read_index(path, (folder / path).read_bytes())
        events = (folder / index.events_key).read_bytes()
        for tensor in read_tensors(index, events).values():
            assert np.shares_memory(tensor, np.frombuffer(events, np.uint8))
            assert not tensor.flags.writeable

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 8])
    def test_reads_empty_and_scalar_tensors(self, shape):
        count = int(np.prod(shape))
        found = read(frame(shape=shape, content=struct.pack(f"<{count}f", *range(count))))["a"]
        assert found.shape == shape

    def test_trace_holds_the_recorders_meta(self, step):
        trace = traces.read_step(*step)
        assert trace.step == 7
        assert trace.meta.trace_form == trace_format.REDUCED
        assert trace.meta.model == "Sequential"
        described = [(m.name, m.type, m.has_map, m.eps) for m in trace.meta.terms]
        assert described[:3] == [
            ("0", "Conv2d", True, None),
            ("1", "BatchNorm2d", True, 1e-3),
            ("3", "Conv2d", True, None),
        ]
        assert described[-1] == ("11", "BatchNorm1d", False, 1e-5)
        assert trace.meta.class_names == ("Stop", "Yield")
        assert trace.meta.request["inference_id"] == "request-1"
        assert trace.tensors[trace_format.INPUT_IMAGE].shape == (2, 16, 16, 3)

    def test_events_key_has_the_indexs_run(self):
        index = read_index(KEY, index_of(("a", 0, 20)))
        assert index.events_key == f"tensors/signs/run-1/{EVENTS}"
        assert index.step == 7


class TestBrokenIndex:
    @pytest.mark.parametrize(
        "key",
        [
            "tensors/signs/run-1/events/000000000007/000000000007_worker_0.tfevents",
            "tensors/signs/run-1/index/000000000/000000000007_worker_0.json.gz",
            "tensors/signs/run-1/index/000000000/seven_worker_0.json",
            "tensors/signs/run-1/index/000000000/000000000007_../../x.json",
            "tensors/signs/run-1/collections/000000000/worker_0_collections.json",
            "",
        ],
    )
    def test_refuses_other_keys(self, key):
        with pytest.raises(BadInputError, match="expected the key of a step's index"):
            read_index(key, index_of(("a", 0, 20)))

    @pytest.mark.parametrize(
        "events",
        [
            "events/000000000008/000000000008_worker_0.tfevents",
            "../other-run/" + EVENTS,
            "/" + EVENTS,
            "s3://elsewhere/" + EVENTS,
            EVENTS + "/..",
            None,
            7,
        ],
    )
    def test_refuses_an_index_of_other_events(self, events):
        with pytest.raises(BadInputError, match=r"000000000007_worker_0\.json: .*event_file_name"):
            read_index(KEY, index_of(("a", 0, 20), events=events))

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "truncated"),
            (b"\xff\xfe\x00", "malformed"),
            (b"{", "truncated"),
            (b"[" * 100_000, "Expected `object`, got `array`"),
            (b'{"meta": ' + b"[" * 100_000, r"Expected `object`, got `array` - at `\$\.meta`"),
            (b'{"more": ' + b"[" * 100_000, "nested too deeply"),
            (b"[]", "Expected `object`, got `array`"),
            (b"null", "Expected `object`, got `null`"),
            (b"{}", "required field `meta`"),
            (b'{"meta": []}', r"Expected `object`, got `array` - at `\$\.meta`"),
            (b'{"version": 1, "violations": []}', "required field `meta`"),
            (index_of(), r"length >= 1 - at `\$\.tensor_payload`"),
            (index_of(*[(str(i), 0, 20) for i in range(MAX_TENSORS + 1)]), "length <= 4096"),
            (index_of(("a", -1, 20)), r">= 0 - at `\$\.tensor_payload\[0\]\.start_idx`"),
            (index_of(("a", 0, 0)), r">= 1 - at `\$\.tensor_payload\[0\]\.length`"),
            (index_of(("a", 0.0, 20)), "Expected `int`, got `float`"),
            (index_of(("a", True, 20)), "Expected `int`, got `bool`"),
            (index_of(("a", None, 20)), "Expected `int`, got `null`"),
            (index_of(("a", 0, float("nan"))), "malformed"),
            (index_of(("a", 0, 20), ("a", 20, 20)), "got a name twice"),
            (
                index_of((None, 0, 20)),
                r"Expected `str`, got `null` - at `\$\.tensor_payload\[0\]\.tensorname`",
            ),
            (index_of(("a", 0, 20)).replace(b'[{"tensor', b'[7, {"tensor'), "Expected `object`, got `int`"),
            (b" " * (5 << 20), "expected at most 4194304 bytes"),
        ],
    )
    def test_refuses_other_content(self, data, reason):
        with pytest.raises(BadInputError, match=reason) as error:
            read_index(KEY, data)
        assert str(error.value).startswith(KEY)


class TestBrokenEvents:
    def fails(self, reason, events, *ranges):
        with pytest.raises(BadInputError, match=reason) as error:
            read_tensors(read_index(KEY, index_of(*ranges)), events)
        assert EVENTS in str(error.value)
        assert "'a'" in str(error.value)

    def test_refuses_truncated_files(self):
        whole = frame()
        for length in range(len(whole)):
            self.fails("got a file of", whole[:length], ("a", 0, len(whole)))

    def test_refuses_ranges_that_are_not_a_record(self):
        whole = frame()
        for start, length in [(1, len(whole) - 1), (0, len(whole) - 1), (0, 16), (0, 1), (len(whole) - 4, 4)]:
            self.fails("expected a record|expected a tensor", whole, ("a", start, length))

    def test_refuses_ranges_beyond_the_file(self):
        self.fails("got a file of", frame(), ("a", 10**30, 10**30))

    def test_refuses_another_tensor(self):
        other = frame("b")
        self.fails("expected this tensor, found 'b'", other, ("a", 0, len(other)))

    def test_refuses_another_step(self):
        other = frame(step=8)
        self.fails("expected step 7, got 8", other, ("a", 0, len(other)))

    @pytest.mark.parametrize("dtype", [0, 7, 11, 14, 20, 99])
    def test_refuses_unknown_dtypes(self, dtype):
        other = frame(dtype=dtype)
        self.fails(f"dtype: expected .*, got {dtype}$", other, ("a", 0, len(other)))

    @pytest.mark.parametrize(
        "shape", [(3,), (1,), (), (0,), (2, 2), (-1,), (-2, -1), (2**62, 2**62), (2**32, 2**32), (2,) * 3]
    )
    def test_refuses_shapes_of_other_contents(self, shape):
        other = frame(shape=shape)
        self.fails("got 8 bytes", other, ("a", 0, len(other)))

    def test_refuses_too_many_dimensions(self):
        other = frame(shape=(1,) * 9 + (2,))
        self.fails("expected at most 8 dimensions, got 10", other, ("a", 0, len(other)))

    def test_refuses_tensors_of_text(self):
        other = frame(tensor=TensorProto(string_val=[b"x"]))
        self.fails("dtype: expected .*, got 0$", other, ("a", 0, len(other)))

    @pytest.mark.parametrize(
        "event",
        [
            Event(step=7),
            Event(step=7, summary=Summary()),
            Event(step=7, summary=Summary(value=[Summary.Value(tag="a")])),
            Event(step=7, summary=Summary(value=[Summary.Value(tensor=TensorProto(dtype=FLOAT))])),
        ],
    )
    def test_refuses_records_without_a_tensor(self, event):
        event = event.SerializeToString()
        other = struct.pack("<QI", len(event), 0) + event + b"\0\0\0\0"
        self.fails("expected a tensor in the record, got none", other, ("a", 0, len(other)))

    def test_refuses_truncated_content_that_fits_its_shape(self):
        """Eight bytes are there and fit the shape, but twelve are announced."""
        whole = frame(shape=(2,), content=b"\1\2\3\4\5\6\7\x7f" + b"last")
        at = whole.index(b"\1\2\3\4\5\6\7\x7f")
        assert whole[at - 1] == 12
        cut = whole[: at + 8]
        cut = struct.pack("<Q", len(cut) - 12) + cut[8:] + b"\0\0\0\0"
        self.fails("truncated record", cut, ("a", 0, len(cut)))

    def test_refuses_endless_varints(self):
        """protobuf's numbers have ten bytes at most; Python's could take hours."""
        event = b"\x10" + b"\x80" * 10 + b"\x00" + frame()[12:-4]
        other = struct.pack("<QI", len(event), 0) + event + b"\0\0\0\0"
        self.fails("truncated record", other, ("a", 0, len(other)))

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\xff" * 30,
            b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x0b",
            b"\x2a",
            b"\x09\0\0",
            b"\x80" * 9,
        ],
    )
    def test_refuses_bytes_that_are_not_protobuf(self, garbage):
        other = struct.pack("<QI", len(garbage), 0) + garbage + b"\0\0\0\0"
        self.fails("truncated record|corrupt record|expected a tensor", other, ("a", 0, len(other)))


class TestMeta:
    def trace(self, **meta):
        described = {
            "version": 5,
            "trace_form": "reduced",
            "model": "M",
            "terms": [],
            "held": {},
            "unaccounted": [],
            "class_names": None,
        }
        content = json.dumps(described | {"request": {}} | meta).encode()
        whole = frame(trace_format.META, dtype=4, shape=(len(content),), content=content)
        return read_trace(read_index(KEY, index_of((trace_format.META, 0, len(whole)))), whole)

    def test_reads_a_minimal_meta(self):
        assert self.trace().meta.terms == ()

    def test_ignores_unknown_members(self):
        assert self.trace(gpu=True).meta == self.trace().meta

    def test_class_names_are_one_short_line(self):
        class_names = self.trace(class_names=["Stop\nSubject: x\x1b[2J", "x" * 5000, None]).meta.class_names
        assert class_names[0] == r"Stop\nSubject: x\x1b[2J"
        assert len(class_names[1]) <= 200
        assert class_names[2] is None

    @pytest.mark.parametrize("version", [0, 1, 2, 3, 4, "5", None, 1.5, [2]])
    def test_refuses_another_version(self, version):
        with pytest.raises(BadInputError, match=r"glassbox/meta: version: expected 5, got "):
            self.trace(version=version)

    @pytest.mark.parametrize(
        ("meta", "reason"),
        [
            ({"trace_form": "tiny"}, r"enum value 'tiny' - at `\$\.trace_form`"),
            ({"trace_form": ["reduced"]}, r"got `array` - at `\$\.trace_form`"),
            ({"model": None}, r"Expected `str`, got `null` - at `\$\.model`"),
            ({"terms": None}, r"Expected `array`, got `null` - at `\$\.terms`"),
            ({"terms": ["bn1"]}, r"Expected `object`, got `str` - at `\$\.terms\[0\]`"),
            ({"terms": [{"name": "bn1", "map": True}]}, "required field `type`"),
            (
                {"terms": [{"name": 1, "type": "BatchNorm2d", "rule": "batch norm", "map": True}]},
                r"`\$\.terms\[0\]\.name`",
            ),
            (
                {"terms": [{"name": "bn1", "type": "BatchNorm2d", "rule": "batch norm", "eps": "small"}]},
                r"`\$\.terms\[0\]\.eps`",
            ),
            (
                {"terms": [{"name": "bn1", "type": "BatchNorm2d", "rule": "batch norm", "eps": -1}]},
                r">= 0.0 - at `\$\.terms\[0\]\.eps`",
            ),
            (
                {
                    "terms": [
                        {"name": "bn1", "type": "BatchNorm2d", "rule": "batch norm", "eps": float("nan")}
                    ]
                },
                "malformed",
            ),
            ({"terms": [{"name": "a", "type": "Linear", "rule": "bias"}]}, "required field `map`"),
            (
                {"terms": [{"name": "a", "type": "Linear", "rule": "bias", "map": 1}]},
                "Expected `bool`, got `int`",
            ),
            (
                {"terms": [{"name": "a", "type": "Linear", "rule": "bias", "map": False}] * 2},
                "got a name twice",
            ),
            ({"unaccounted": "SiLU"}, r"Expected `array`, got `str` - at `\$\.unaccounted`"),
            ({"unaccounted": [None]}, r"Expected `str`, got `null` - at `\$\.unaccounted\[0\]`"),
            ({"class_names": "Stop"}, r"got `str` - at `\$\.class_names`"),
            ({"blurred": {}}, r"got `object` - at `\$\.blurred`"),
            ({"blurred": [0.5]}, r"got `float` - at `\$\.blurred\[0\]`"),
            ({"blurred": [{"best": 0.5}]}, r"missing required field `random` - at `\$\.blurred\[0\]`"),
            ({"blurred": [{"best": 1.5, "random": 0}]}, r"<= 1\.0 - at `\$\.blurred\[0\]\.best`"),
            ({"blurred": [None, {"best": 0, "random": -1}]}, r">= 0\.0 - at `\$\.blurred\[1\]\.random`"),
            ({"blurred": [{"best": float("nan"), "random": 0}]}, "JSON is malformed"),
            ({"class_names": [14]}, r"got `int` - at `\$\.class_names\[0\]`"),
            ({"request": None}, r"Expected `object`, got `null` - at `\$\.request`"),
            ({"request": {"inference_id": 7}}, r"got `int` - at `\$\.request\[\.\.\.\]`"),
        ],
    )
    def test_refuses_invalid_members(self, meta, reason):
        with pytest.raises(BadInputError, match=f"{EVENTS}: glassbox/meta: .*{reason}"):
            self.trace(**meta)

    @pytest.mark.parametrize(
        ("dtype", "shape", "content", "reason"),
        [
            (FLOAT, (2,), b"\0" * 8, "bytes of text, got float32"),
            (4, (2, 1), b"{}", "bytes of text, got uint8"),
            (4, (2,), b"\xff\xff", "malformed"),
            (4, (2,), b"{}", "version: expected 5, got None"),
            (4, (2 << 20,), b" " * (2 << 20), "expected at most 1048576 bytes of text"),
        ],
    )
    def test_refuses_a_tensor_that_is_not_text(self, dtype, shape, content, reason):
        whole = frame(trace_format.META, dtype=dtype, shape=shape, content=content)
        with pytest.raises(BadInputError, match=reason):
            read_trace(read_index(KEY, index_of((trace_format.META, 0, len(whole)))), whole)

    def test_refuses_a_step_of_another_program(self):
        whole = frame()
        with pytest.raises(BadInputError, match="Another program wrote the step"):
            read_trace(read_index(KEY, index_of(("a", 0, len(whole)))), whole)


damage = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "delete", "zero"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data, blows):
    data = bytearray(data)
    for kind, where, content in blows:
        at = int(where * len(data))
        if kind == "flip" and data:
            data[at] ^= content[0] or 1
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = content
        elif kind == "delete":
            del data[at : at + len(content)]
        else:
            data[at : at + 8] = bytes(len(data[at : at + 8]))
    return bytes(data)


class TestCorruption:
    """Any damage to the bytes gives a heat map with finite facts or BadInputError, and no warning.

    Damage to what the recorder wrote, with a checksum, gives the undamaged heat map or BadInputError.
    """

    def render(self, path, index_bytes, events):
        """The facts and the map of each sample; None where the step is refused."""
        try:
            index = read_index(path, index_bytes)
            seen = []
            for explanation in fullgrad.explain(read_trace(index, events)):
                assert np.isfinite(explanation.saliency).all()
                facts = to_json(heatmap.facts(explanation))
                assert read_facts(facts) == heatmap.facts(explanation)
                seen.append((facts, explanation.saliency.tobytes(), explanation.input_image.tobytes()))
            heatmap.render(explanation)
        except BadInputError as error:
            assert path in str(error) or "events/" in str(error)
            return None
        return seen

    @pytest.fixture(scope="class")
    def sealed(self, step, tmp_path_factory):
        """The same step as the hook writes it: the index's key, its bytes and the events."""
        folder = tmp_path_factory.mktemp("sealed")
        events, index = trace_writer.write_step(folder, 7, traces.read_step(*step).tensors)
        return index.relative_to(folder).as_posix(), index.read_bytes(), events.read_bytes()

    @pytest.fixture(scope="class")
    def undamaged(self, sealed):
        seen = self.render(*sealed)
        assert seen is not None
        return seen

    @pytest.mark.usefixtures("undamaged")
    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.sampled_from(
            [trace_format.INPUT_IMAGE, trace_format.LOGITS, trace_format.STATS_TENSOR, "glassbox/abs/3"]
        ),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    )
    def test_flipped_byte_of_a_tensor_is_refused(self, sealed, name, where, flip):
        path, index_bytes, events = sealed
        events = bytearray(events)
        content = read_tensors(read_index(path, index_bytes), events)[name].reshape(-1).view(np.uint8)
        content[int(where * content.size)] ^= flip
        with pytest.raises(BadInputError, match=r"\.tfevents: expected the index's checksum"):
            read_trace(read_index(path, index_bytes), bytes(events))

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(blows=damage, of_index=st.booleans())
    def test_damage_with_a_checksum_changes_no_heat_map(self, sealed, undamaged, blows, of_index):
        path, index_bytes, events = sealed
        broken = (damaged(index_bytes, blows), events) if of_index else (index_bytes, damaged(events, blows))
        assert self.render(path, *broken) in (None, undamaged)

    @pytest.mark.filterwarnings("error::RuntimeWarning")
    @settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(blows=damage)
    def test_damaged_events_are_safe(self, step, blows):
        folder, path = step
        index = (folder / path).read_bytes()
        events = (folder / read_index(path, index).events_key).read_bytes()
        self.render(path, index, damaged(events, blows))

    @pytest.mark.filterwarnings("error::RuntimeWarning")
    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(blows=damage)
    def test_damaged_index_is_safe(self, step, blows):
        folder, path = step
        index = (folder / path).read_bytes()
        events = (folder / read_index(path, index).events_key).read_bytes()
        self.render(path, damaged(index, blows), events)

    @pytest.mark.filterwarnings("error::RuntimeWarning")
    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.sampled_from(
            [trace_format.STATS_TENSOR, trace_format.LOGITS, "glassbox/abs/input", trace_format.META]
        ),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -1e38, 1e308, 0.0, -1.0]),
    )
    def test_extreme_values_are_safe(self, step, name, where, value):
        folder, path = step
        index_bytes = (folder / path).read_bytes()
        index = read_index(path, index_bytes)
        events = bytearray((folder / index.events_key).read_bytes())
        tensor = read_tensors(index, events)[name].reshape(-1)
        with np.errstate(all="ignore"):
            tensor[int(where * tensor.size)] = np.array(value).astype(tensor.dtype)
        self.render(path, index_bytes, bytes(events))
