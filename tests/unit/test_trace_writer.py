"""The writer's bytes are those of smdebug 1.0.34's own writers."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from smdebug.core.collection_manager import CollectionManager
from smdebug.core.modes import MODE_PLUGIN_NAME, MODE_STEP_PLUGIN_NAME, ModeKeys
from smdebug.core.tfevent.events_writer import EventsWriter
from smdebug.core.tfevent.index_file_writer import Index
from smdebug.core.tfevent.proto.event_pb2 import Event
from smdebug.core.tfevent.proto.summary_pb2 import Summary, SummaryMetadata
from smdebug.core.tfevent.util import make_tensor_proto

import trace_writer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:smdebug")

WALL_TIME = 1795676401.123456
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6) | st.just(
    (200,)
)  # 200: a varint of two bytes
DTYPES = [np.dtype(name) for name in trace_writer._DTYPES]
TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(autouse=True)
def wall_time(monkeypatch):
    monkeypatch.setattr("trace_writer.time.time", lambda: WALL_TIME)


def written_by_smdebug(folder, step, tensors):
    """Return the bytes of the events and the positions of the tensors."""
    mode = SummaryMetadata(
        plugin_data=[
            SummaryMetadata.PluginData(plugin_name=MODE_STEP_PLUGIN_NAME, content=str(step)),
            SummaryMetadata.PluginData(plugin_name=MODE_PLUGIN_NAME, content=str(ModeKeys.PREDICT.value)),
        ]
    )
    path = folder / "expected.tfevents"
    writer, positions = EventsWriter(str(path)), []
    for tag, tensor in tensors.items():
        value = Summary.Value(tag=tag, metadata=mode, tensor=make_tensor_proto(tensor, tag))
        start, length = writer.write_event(
            Event(summary=Summary(value=[value]), wall_time=WALL_TIME, step=step)
        )
        positions.append({"tensorname": tag, "start_idx": start, "length": length})
    writer.close()
    return path.read_bytes(), positions


@given(tensors=TENSORS, step=st.sampled_from([0, 1, 7, 127, 128, 999, 1000, 123_456_789]))
def test_events_and_index_are_smdebugs_bytes(tmp_path_factory, tensors, step):
    folder = tmp_path_factory.mktemp("step")
    events, index = trace_writer.write_step(folder, step, tensors)
    expected, positions = written_by_smdebug(folder, step, tensors)
    assert events.read_bytes() == expected
    meta = {
        "mode": "PREDICT",
        "mode_step": step,
        "event_file_name": f"events/{step:012d}/{step:012d}_worker_0.tfevents",
        "crc32": zlib.crc32(expected),
    }
    assert index.read_text() == Index(meta, positions, []).to_json()


def test_arrays_of_any_memory_order_are_written_in_c_order(tmp_path):
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = {"fortran": np.asfortranarray(image), "view": image[:, ::-1, 1:], "swapped": image.T}
    events, _ = trace_writer.write_step(tmp_path, 3, tensors)
    assert events.read_bytes() == written_by_smdebug(tmp_path, 3, tensors)[0]


def test_big_endian_arrays_are_written_little_endian(tmp_path):
    values = np.array([1.5, -2.0])
    big, _ = trace_writer.write_step(tmp_path / "big", 3, {"a": values.astype(">f8")})
    little, _ = trace_writer.write_step(tmp_path / "little", 3, {"a": values.astype("<f8")})
    assert big.read_bytes() == little.read_bytes()


def test_a_dtype_that_protobuf_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor a: expected a dtype of float32, .*, got <U3"):
        trace_writer.write_step(tmp_path, 3, {"a": np.array(["abc"])})


def test_collections_are_smdebugs_bytes(tmp_path):
    names = {"b", "a", "glassbox/abs/ü"}
    collections = CollectionManager()
    collections.get("default").tensor_names = set(names)
    (tmp_path / "expected/collections/000000000").mkdir(parents=True)
    collections.export(str(tmp_path / "expected"), "worker_0_collections.json")
    path = trace_writer.write_collections(tmp_path / "ours", names)
    relative = path.relative_to(tmp_path / "ours")
    assert path.read_bytes() == (tmp_path / "expected" / relative).read_bytes()
    assert json.loads(path.read_bytes())["_meta"] == {"num_workers": 1}


def test_nothing_on_the_endpoint_imports_smdebug():
    program = "import sys; sys.modules['smdebug'] = None; import recorder, inference"
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))}
    )
