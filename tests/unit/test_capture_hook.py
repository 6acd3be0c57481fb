"""The hook of an endpoint that does not contain our code: PYTHONPATH is all that changes."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

import package
import replays
from glassbox.explanation.fullgrad import explain
from glassbox.explanation.trace_format import OTHER_ANSWER, REPLAY_EVENT_ID, RESPONSE
from hook_files import OWNED, traces_in, write_sdk
from repack import repack

OWNERS = Path(__file__).parents[1] / "owners.py"


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hook") / "glassbox"
    package.write_hook(folder)
    return folder


@pytest.fixture(scope="module")
def sdk(tmp_path_factory):
    """A folder with a boto3 that writes files."""
    folder = tmp_path_factory.mktemp("sdk")
    write_sdk(folder)
    return folder


def python(script, *path, arguments=(), **environment):
    """Run a script, or a file, in a process of its own, and return its completed process."""
    given = {name: value for name, value in os.environ.items() if name.lower() != "tensors_output"}
    given |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "OPENBLAS_NUM_THREADS": "1"}
    program = [str(script), *arguments] if isinstance(script, Path) else ["-c", script]
    return subprocess.run(
        [sys.executable, *program], env=given | environment, capture_output=True, text=True, timeout=600
    )


class TestFolder:
    def test_holds_one_module_on_the_path(self, hook):
        assert sorted(entry.name for entry in hook.iterdir()) == ["glassbox_hook", "sitecustomize.py"]
        assert (hook / "glassbox_hook" / "glassbox" / "replay_marker.py").is_file()
        assert (hook / "glassbox_hook" / "served_requests.py").is_file()

    def test_is_written_again_over_an_older_one(self, hook, tmp_path):
        package.write_hook(tmp_path)
        (tmp_path / "sitecustomize.py").write_text("older")
        package.write_hook(tmp_path)
        assert (tmp_path / "sitecustomize.py").read_bytes() == (hook / "sitecustomize.py").read_bytes()


class TestNextSitecustomize:
    def test_runs_in_its_own_name(self, hook, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("print('owner', __name__, __file__)\nOWN = 1\n")
        ran = python("import sitecustomize; print(sitecustomize.OWN)", hook, tmp_path)
        assert ran.stdout == f"owner sitecustomize {tmp_path / 'sitecustomize.py'}\n1\n"
        assert ran.stderr == ""

    def test_its_error_is_reported_as_without_the_hook(self, hook, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("raise ValueError('of the owner')\n")
        plain, hooked = python("print(1)", tmp_path), python("print(1)", hook, tmp_path)
        assert "of the owner" in plain.stderr
        assert (hooked.stdout, hooked.stderr) == (plain.stdout, plain.stderr)

    def test_none_is_needed(self, hook):
        assert python("print(1)", hook).stderr == ""


# Prints what a process can see of the hook, before and after it imports torch.
TRACES_OF_THE_HOOK = """
import sys

def finders():  # but for that of six, which the inference toolkit imports
    return len([finder for finder in sys.meta_path if type(finder).__module__ != "six"])

print("torch" in sys.modules, finders())
import torch, decode
print(decode.OWN, finders(), torch.nn.Module.__call__.__qualname__, "exec_module" in vars(torch.__loader__))
print([name for name in ("capture", "recorder", "gradients", "glassbox") if name in sys.modules])
print(any("glassbox_hook" in entry for entry in sys.path))
"""


class TestLoading:
    @pytest.mark.parametrize("variable", ["TENSORS_OUTPUT", "tensors_output"])
    def test_leaves_the_owners_names_finders_and_path(self, hook, sdk, tmp_path, variable):
        (tmp_path / "decode.py").write_text("OWN = 1\n")
        path, given = (hook, tmp_path, sdk), {variable: "s3://bucket/tensors"}
        plain, hooked = python(TRACES_OF_THE_HOOK, *path[1:]), python(TRACES_OF_THE_HOOK, *path, **given)
        assert hooked.stderr == ""
        before, after, *rest = hooked.stdout.splitlines()
        finders = int(plain.stdout.split()[1])
        assert before == f"False {finders + 1}"
        # One waits for the modules of servers.
        assert re.fullmatch(rf"1 {finders + 1} Module\._wrapped_call_impl False", after)
        assert rest == ["[]", "False"]

    def test_imports_no_compiler(self, hook, sdk, tmp_path):
        """It takes 2 s, and fails in one of two threads that import it at once."""
        given = {"TENSORS_OUTPUT": "s3://bucket/tensors", "OBJECTS": str(tmp_path)}
        script = (
            "import atexit, sys\natexit.register(lambda: print('torch._dynamo' in sys.modules))\n"
            "import torch, threading\nfrom torch import nn\n"
            "net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()\n"
            "with torch.no_grad(): net(torch.ones(1, 3, 8, 8))\n"
            "for t in threading.enumerate():\n    if t.name == 'trace-connect': t.join()\n"
            "with torch.no_grad(): net(torch.ones(1, 3, 8, 8))\n"
        )
        ran = python(script, hook, sdk, **given)
        assert ran.stdout == "False\n", ran.stderr
        (trace,) = traces_in(tmp_path)
        assert explain(trace)[0].complete

    def test_does_nothing_without_a_destination(self, hook):
        loaded = (
            "import sys, torch; print(len(sys.meta_path), hasattr(torch.nn.Module.__call__, '__wrapped__'))"
        )
        assert python(loaded, hook).stdout == python(loaded).stdout

    @pytest.mark.parametrize(
        ("name", "value"), [("TENSORS_OUTPUT", "bucket/x"), ("TRACES_PER_MINUTE", "many")]
    )
    def test_an_invalid_setting_fails_no_process(self, hook, sdk, name, value):
        given = {"TENSORS_OUTPUT": "s3://bucket/x", name: value}
        script = (
            "import torch, threading, time\nprint(torch.nn.ReLU()(torch.ones(1, 3, 4, 4)).sum().item())\n"
            "while any(t.name == 'trace-connect' for t in threading.enumerate()): time.sleep(0.01)"
        )
        ran = python(script, hook, sdk, **given)
        assert ran.stdout == "48.0\n"

    def test_a_broken_hook_is_reported_and_fails_no_process(self, hook, tmp_path):
        package.write_hook(tmp_path)
        (tmp_path / "glassbox_hook" / "capture.py").write_text("import absent_module")
        ran = python("import torch; print(1)", tmp_path, TENSORS_OUTPUT="s3://bucket/x")
        assert ran.stdout == "1\n"
        assert ran.stderr == "glassbox: not hooked: ModuleNotFoundError: No module named 'absent_module'\n"


CASES = re.findall(r"^def (\w+)\(x\):", OWNERS.read_text(), re.MULTILINE)
HALVES = (CASES[::2], CASES[1::2])  # together they would overflow the queue of the traces


@pytest.fixture(scope="module")
def owners(hook, sdk, tmp_path_factory):
    """The results of every owner's script without and with the hook, the traces, and the hook's log."""
    objects = tmp_path_factory.mktemp("objects")
    given = {
        "TENSORS_OUTPUT": "s3://bucket/tensors",
        "TRACES_PER_MINUTE": "1000",
        "OBJECTS": str(objects),
    }
    plain = [python(OWNERS, sdk, arguments=half) for half in HALVES]
    hooked = [python(OWNERS, hook, sdk, arguments=half, **given) for half in HALVES]
    log = "".join(ran.stderr for ran in hooked)
    assert [ran.returncode for ran in (*plain, *hooked)] == [0, 0, 0, 0], log
    without, with_hook = (
        {k: v for ran in runs for k, v in json.loads(ran.stdout).items()} for runs in (plain, hooked)
    )
    return without, with_hook, traces_in(objects), log


REFUSED = {
    "forgot_eval": "bn: expected eval mode, got train mode",
    "layer_by_layer": r"Conv2d: expected class scores \(1, K\) as output, got torch.float32 \(1, 6, 6, 6\)",
    "quantized": r"the network is quantized: integer operations have no gradient \(linear_dynamic\)",
    "two_images": "two_images: expected one image tensor as argument, got 2",
    "numpy_only": "",  # nothing calls a network
}
ROUNDED = {"half", "autocast"}
NAME = {
    "prepared_in_forward": "prepared_in_forward_inner",
    "parallel": "DataParallel",
}


class TestOwners:
    @pytest.mark.parametrize("case", CASES)
    def test_nothing_of_the_owner_changes(self, owners, case):
        """The answers are equal byte for byte, and so are the random numbers and the networks after all traces."""
        plain, hooked, _, _ = owners
        assert hooked[case] == plain[case]

    @pytest.mark.parametrize("case", [case for case in CASES if case not in REFUSED])
    def test_the_trace_is_complete(self, owners, case):
        _, _, traces, log = owners
        found = [trace for trace in traces if trace.meta.model == NAME.get(case, case)]
        assert found, log
        for trace in found:
            explained = explain(trace)
            assert len(explained) == (64 if case == "batch_of_64" else 1)
            for e in explained:
                assert abs(e.total - e.logit) <= max(1e-5 * abs(e.logit), 1e-7 * e.sum_abs)
            named = [part for part in trace.meta.unaccounted if part.endswith(OTHER_ANSWER)]
            assert trace.meta.unaccounted == tuple(named)
            assert bool(named) == (case in ROUNDED)
            assert trace.meta.request["inference_id"] is None

    @pytest.mark.parametrize("case", REFUSED)
    def test_a_refusal_has_its_reason_in_the_log(self, owners, case):
        _, _, traces, log = owners
        assert not [trace for trace in traces if trace.meta.model == case]
        assert re.search(REFUSED[case], log)


# A server that forks while the thread of the hook computes or uploads a trace. The child exits first.
FORKS = """
import boto3, os, sys, threading, torch
from torch import nn

started, may_end, place = threading.Event(), threading.Event(), os.environ["PLACE"]

def stop_at(here):
    if here == place and os.getpid() == parent and threading.current_thread().name == "trace-upload":
        started.set()
        may_end.wait()

put_object = boto3.Client.put_object

def put_later(client, **given):
    stop_at("upload")
    put_object(client, **given)

boto3.Client.put_object = put_later

class Forking(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        stop_at("network")
        return self.fc(self.conv(x).relu().mean((2, 3)))

torch.manual_seed(0)
torch.set_num_threads(1)
parent, net = os.getpid(), Forking().eval()
predict = torch.no_grad()(lambda: net(torch.ones(1, 3, 8, 8)))

def answer():
    predict()
    for thread in threading.enumerate():
        if thread.name == "trace-connect":
            thread.join()
    predict()

answer()
started.wait()
child = os.fork()
if child == 0:
    answer()
    sys.exit()
print(os.waitpid(child, 0)[1])
may_end.set()
"""


# A server that a signal ends while the thread of the hook traces.
ENDS = """
import os, signal, sys, threading, torch
from torch import nn

started = threading.Event()

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        if threading.current_thread().name == "trace-upload":
            started.set()
            main_has_ended.wait()
        return self.fc(x.square().mean((2, 3)))

main_has_ended, net = threading.Event(), Slow().eval()
if os.environ["HANDLER"] == "exits":
    def end(*_):
        main_has_ended.set()
        sys.exit(3)
    signal.signal(signal.SIGTERM, end)
predict = torch.no_grad()(lambda: net(torch.ones(1, 3, 8, 8)))
predict()
for thread in threading.enumerate():
    if thread.name == "trace-connect":
        thread.join()
predict()
started.wait()
print("answered", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


class TestSigterm:
    """As SageMaker stops a container."""

    def test_ends_a_process_without_a_handler_at_once(self, hook, sdk, tmp_path):
        given = {"TENSORS_OUTPUT": "s3://bucket/tensors", "OBJECTS": str(tmp_path), "HANDLER": "none"}
        ran = python(ENDS, hook, sdk, **given)
        assert (ran.stdout, ran.returncode) == ("answered\n", -15)
        assert traces_in(tmp_path) == []

    def test_a_handler_that_exits_uploads_the_trace_first(self, hook, sdk, tmp_path):
        given = {"TENSORS_OUTPUT": "s3://bucket/tensors", "OBJECTS": str(tmp_path), "HANDLER": "exits"}
        ran = python(ENDS, hook, sdk, **given)
        assert (ran.stdout, ran.returncode) == ("answered\n", 3), ran.stderr
        (trace,) = traces_in(tmp_path)
        assert explain(trace)[0].complete


class TestFork:
    @pytest.mark.parametrize("place", ["network", "upload"])
    def test_parent_and_child_trace_after_a_fork_during_a_trace(self, hook, sdk, tmp_path, place):
        given = {"TENSORS_OUTPUT": "s3://bucket/tensors", "OBJECTS": str(tmp_path), "PLACE": place}
        ran = python(FORKS, hook, sdk, **given)
        assert ran.stdout == "0\n", ran.stderr
        traces = traces_in(tmp_path)
        assert len({trace.key.partition("/events/")[0] for trace in traces}) == 2, ran.stderr
        assert all(e.complete for trace in traces for e in explain(trace))


# The owner's inference.py: the body is 4 × 4 pixels of 3 channels; "two" in it makes an answer of two networks.
INFERENCE = (
    OWNED
    + """
def model_fn(model_dir):
    torch.manual_seed(0)
    return Owned().eval()

def input_fn(body, content_type):
    pixels = torch.from_numpy(np.frombuffer(bytes(body)[:48], np.uint8).copy())
    return pixels.reshape(1, 3, 4, 4) / 255, b"two" in body

@torch.no_grad()
def predict_fn(data, model):
    image, twice = data
    return (model(image) + model(image.flip(3))) / 2 if twice else model(image)

def output_fn(prediction, accept):
    return prediction.numpy().tobytes().hex()
"""
)

# Sends requests as TorchServe does: a body and headers on stdin, the answers on stdout.
SERVER = """
import json, sys
from sagemaker_pytorch_serving_container.handler_service import HandlerService

class Context:
    system_properties = {"model_dir": sys.argv[1], "gpu_id": None}
    def __init__(self, headers):
        self.request_processor, self.headers = [self], headers
    def get_request_properties(self):
        return self.headers
    def set_response_content_type(self, *_): pass
    def set_response_status(self, **status):
        print(status, file=sys.stderr)

service = HandlerService()
service.initialize(Context({}))
for body, headers in json.loads(sys.stdin.read()):
    sent = [{"body": bytearray(bytes.fromhex(body))}]
    print(service.handle(sent, Context({"Content-Type": "application/x-image", **headers}))[0])
"""

ATTRIBUTES, INFERENCE_ID = "X-Amzn-SageMaker-Custom-Attributes", "X-Amzn-SageMaker-Inference-Id"


@pytest.fixture(scope="module", params=["mounted", "repacked"])
def served(request, hook, sdk, tmp_path_factory):
    """The answers without and with the hook, by PYTHONPATH or in the archive, the traces, and a body.

    The traces are by event id or inference id.
    """
    folder = tmp_path_factory.mktemp("model")
    (folder / "code").mkdir()
    (folder / "code" / "inference.py").write_text(INFERENCE)
    (folder / "server.py").write_text(SERVER)
    incident = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-operator"
    body, two = bytes(range(0, 240, 5)), bytes(range(48)) + b"two"

    def replay(body, event_id, signed=None):
        return {ATTRIBUTES: replays.marker(signed or body, incident, event_id)}

    requests = [
        (body, replay(body, "replayed")),
        (two, replay(two, "two-networks")),
        (body, replay(body, "of-another-body", signed=two)),
        (body, {ATTRIBUTES.lower(): "trace=9", INFERENCE_ID.lower(): "live-1"}),
    ]
    sent = json.dumps([(given.hex(), headers) for given, headers in requests])

    def serve(*path, **given):
        environment = {name: value for name, value in os.environ.items() if name.lower() != "tensors_output"}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, str(folder / "server.py"), str(folder)],
            input=sent,
            env=environment | {"SAGEMAKER_PROGRAM": "inference.py"} | given,
            capture_output=True,
            text=True,
            timeout=300,
        )

    code, objects = folder / "code", folder / "objects"
    plain = serve(sdk, code)
    given = {
        "TENSORS_OUTPUT": "s3://bucket/tensors",
        "REPLAY_KEY": replays.KEY.text,
        "OBJECTS": str(objects),
    }
    if request.param == "repacked":
        with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
            archive.add(code, "code")
        repack(folder / "model.tar.gz", folder / "hooked.tar.gz")
        with tarfile.open(folder / "hooked.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        hooked = serve(sdk, code, **given, SAGEMAKER_PROGRAM="glassbox_program.py")
    else:
        hooked = serve(hook, sdk, code, **given)
    assert (plain.returncode, hooked.returncode) == (0, 0), plain.stderr + hooked.stderr
    traces = {
        trace.meta.request.get(REPLAY_EVENT_ID) or trace.meta.request["inference_id"]: trace
        for trace in traces_in(objects)
    }
    return plain.stdout, hooked.stdout, traces, body


@pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_pytorch_serving_container") is None,
    reason="sagemaker-pytorch-inference is not installed",
)
class TestToolkit:
    """Requests through the handler of the SageMaker PyTorch inference toolkit."""

    def test_answers_are_the_same(self, served):
        plain, hooked, _, _ = served
        assert len(plain.split()) == 4
        assert hooked == plain

    def test_a_verified_replay_is_traced_by_its_event_id(self, served):
        _, _, traces, body = served
        (e,) = explain(traces["replayed"])
        assert e.complete
        assert traces["replayed"].meta.request["sha256"] == hashlib.sha256(body).hexdigest()

    def test_the_trace_holds_the_response(self, served):
        plain, _, traces, _ = served
        assert traces["replayed"].tensors[RESPONSE].tobytes().decode() == plain.split()[0]

    def test_a_live_request_keeps_its_attributes(self, served):
        request = served[2]["live-1"].meta.request
        assert request["custom_attributes"] == "trace=9"
        assert REPLAY_EVENT_ID not in request

    def test_a_marker_of_another_body_is_live_traffic(self, served):
        assert "of-another-body" not in served[2]
        assert REPLAY_EVENT_ID not in served[2][None].meta.request

    def test_a_replay_that_two_calls_answer_is_refused(self, served):
        refused = served[2]["two-networks"].meta.refused
        assert refused == "request: expected one network that returns class scores, got several: Owned, Owned"
