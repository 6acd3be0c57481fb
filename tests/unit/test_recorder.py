"""The recorder traces the right requests, smdebug reads its files, and failures never lose an answer."""

import gc
import hashlib
import inspect
import itertools
import json
import platform
import re
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradients
import recorder as recorder_module
import replays
import trace_upload
import trace_writer
import zoo
from blur_test import blurred_probabilities
from complete_gradients import complete_gradients
from glassbox.aws.objects import Objects
from glassbox.errors import BadInputError, SettingsError
from glassbox.explanation import trace_format as names
from glassbox.explanation.fullgrad import explain
from glassbox.explanation.trace_reader import read_index, read_tensors, read_trace
from glassbox.incidents.hook_hello import Hello
from recorder import RateLimit, Settings, TensorRecorder, connected
from resnet import ResNet18

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:smdebug"),
]

NOW = datetime(2026, 11, 23, 10, 0, 1, 123456, tzinfo=UTC)
OPEN = f"{NOW - timedelta(minutes=9):%Y%m%dt%H%M%S}-class-share"  # an incident
REQUEST = {"inference_id": "id-1", "custom_attributes": "trace=9", "sha256": "ab" * 32}


def same(found, expected):
    """Whether two passes gave the same logits: with gradients, other kernels may run, and they round differently."""
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


REPLAYED = {names.REPLAY_EVENT_ID: "event-1", names.REPLAY_INCIDENT: replays.INCIDENT}


class Bucket(dict):
    """An S3 client that keeps objects in the order of their upload, or fails while ``away``."""

    away = False

    def put_object(self, Bucket, Key, Body):
        if self.away:
            raise ConnectionError("no route to S3")
        assert Bucket == "bucket"
        self[Key] = Body

    @property
    def indexes(self):
        return [key for key in self if "/index/" in key]

    def trace(self, key):
        index = read_index(key, self[key])
        return read_trace(index, self[index.events_key])


class Stuck:
    """An S3 client whose calls hang until :meth:`release`."""

    def __init__(self):
        self.entered, self._released, self.left = (threading.Event() for _ in range(3))
        self.release = self._released.set

    def put_object(self, **_):
        self.entered.set()
        self._released.wait(600)
        self.left.set()


@pytest.fixture
def trace_to():
    """Return a factory of recorders, and close them at the end."""
    made = []

    def make(
        client,
        model=None,
        *,
        per_minute=1000,
        trace_form=names.REDUCED,
        clock=lambda: 0.0,
        replay_key=replays.KEY,
        blur_test=True,
        trace_memory=None,
    ):
        model = ResNet18(num_classes=5, width=4).eval() if model is None else model
        made.append(
            TensorRecorder(
                model,
                "s3://bucket/tensors/signs",
                client=client,
                traces_per_minute=per_minute,
                trace_form=trace_form,
                clock=clock,
                utcnow=lambda: NOW,
                replay_key=replay_key,
                blur_test=blur_test,
                trace_memory=trace_memory,
            )
        )
        return made[-1]

    yield make
    for recorder in made:
        recorder.close()


def images(n=1, seed=0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def input_images(n=1):
    return np.zeros((n, 32, 32, 3), np.uint8)


def predict(recorder, image, **request):
    return recorder.predict(image, input_images(len(image)), REQUEST | request, None)


def hooks_of(model):
    return [
        h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)
    ]


def computed(model, x):
    """The tensors of a batch, without the request."""
    network = gradients.Gradients(model, names.REDUCED)
    return gradients.merged([network.compute(image[None]) for image in x])[1]


class TestRateLimit:
    @given(
        gaps=st.lists(st.floats(0, 30), min_size=1, max_size=80),
        limit=st.integers(0, 12),
    )
    def test_allows_the_limit_in_any_60_seconds(self, gaps, limit):
        now = 0.0
        rate = RateLimit(limit, lambda: now)
        taken = []
        for gap in gaps:
            now += gap
            before = [t for t in taken if now - t < 60]
            # Refused only if one more would exceed the limit.
            assert rate.take() is (len(before) < limit)
            if len(before) < limit:
                taken.append(now)

    def test_limits_fifty_requests_per_second(self):
        ticks = itertools.count()
        rate = RateLimit(10, lambda: next(ticks) / 50)
        taken = [rate.take() for _ in range(50 * 180)]
        assert sum(taken) == 30
        assert all(sum(taken[i : i + 3000]) <= 10 for i in range(len(taken) - 3000))

    def test_threads_share_the_limit(self):
        rate, taken = RateLimit(10, lambda: 0.0), []
        threads = [
            threading.Thread(target=lambda: taken.extend(rate.take() for _ in range(200))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1600
        assert sum(taken) == 10


class TestTraceFiles:
    @pytest.mark.parametrize("step", [0, 7, 999, 1000, 123_456_789])
    def test_keys_are_smdebugs(self, tmp_path, step):
        from smdebug.core.locations import IndexFileLocationUtils, TensorFileLocation

        events, index = trace_writer.write_step(tmp_path, step, {"a": np.ones(3)})
        assert str(events) == TensorFileLocation(step, trace_writer.WORKER).get_file_location(str(tmp_path))
        assert str(index) == IndexFileLocationUtils.get_index_key_for_step(
            str(tmp_path), step, trace_writer.WORKER
        )

    @pytest.mark.parametrize("name", ["ResNet18 (BasicBlock)", "a block used twice"])
    def test_create_trial_reads_the_full_form(self, tmp_path, trace_to, name):
        """As in the article: by smdebug's names, with what FullGrad is computed from."""
        from smdebug.core.modes import ModeKeys
        from smdebug.trials import create_trial

        bucket = Bucket()
        model, image = zoo.build(name)
        recorder = trace_to(bucket, model, trace_form=names.FULL)
        logits = recorder.predict(image, input_images(2), REQUEST, None)
        recorder.predict(image.flip(0), input_images(2), REQUEST, None)
        recorder.close()
        for key, body in bucket.items():
            path = tmp_path / key.split("/", 3)[3]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

        trial = create_trial(str(tmp_path))
        assert trial.steps(mode=ModeKeys.PREDICT) == [0, 1]
        terms, kind = zoo.autograd_terms(model, image), type(model).__name__

        def read(name, step=0):
            return torch.tensor(trial.tensor(name).value(step, mode=ModeKeys.PREDICT))

        assert torch.equal(read(f"{kind}_input_0"), image)
        assert torch.equal(read(f"{kind}_input_0", 1), image.flip(0))
        torch.testing.assert_close(
            read("gradient/image").double(), terms.image_gradient, rtol=1e-4, atol=1e-6
        )
        head = "fc" if name.startswith("ResNet") else "head.2"
        assert same(read(f"{head}_output_0"), logits)
        for key, (bias, gradient) in terms.modules.items():
            module = key.partition("#")[0]
            torch.testing.assert_close(
                read(f"gradient/{key}_output").double(), gradient, rtol=1e-4, atol=1e-6
            )
            found = read(f"{kind}_{module}.bias").double()
            if isinstance(model.get_submodule(module), nn.BatchNorm2d):
                mean, var = (read(f"{module}.running_{s}_output_0").double() for s in ("mean", "var"))
                found -= mean * read(f"{kind}_{module}.weight").double() / torch.sqrt(var + 1e-5)
            torch.testing.assert_close(found, bias, rtol=1e-5, atol=1e-6)

    def test_create_trial_reads_the_reduced_form(self, tmp_path):
        from smdebug.core.modes import ModeKeys
        from smdebug.trials import create_trial

        tensors = computed(*zoo.build("1×1 maps, one channel"))
        trace_writer.write_step(tmp_path, 3, tensors)
        trace_writer.write_collections(tmp_path, tensors)
        trial = create_trial(str(tmp_path))
        assert set(trial.tensor_names()) == set(tensors)
        for name, tensor in tensors.items():
            assert trial.tensor(name).value(3, mode=ModeKeys.PREDICT).tobytes() == tensor.tobytes()


class Resizing(nn.Module):
    """A network that looks at half of the pixels of bright images."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.conv(x[..., ::2, ::2] if x.mean() > 0 else x).mean((2, 3)))


class InPlace(nn.Module):
    def __init__(self, fails=False):
        super().__init__()
        self.net, self.fails = ResNet18(num_classes=5, width=4), fails

    def forward(self, x):
        with torch.no_grad():
            x.sub_(0.5).div_(0.25)
        if self.fails and torch.is_grad_enabled():
            raise RuntimeError("no gradient for this one")
        return self.net(x)


class TestTensorRecorder:
    def test_parameters_are_frozen(self, trace_to):
        model = ResNet18(num_classes=5, width=4)
        predict(trace_to(Bucket(), model), images())
        assert not model.training
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())

    def test_trace_holds_request_and_answer(self, trace_to):
        bucket, labels = Bucket(), ["a", "b", "c", "d", "e"]
        model = ResNet18(num_classes=5, width=4).eval()
        recorder = trace_to(bucket, model)
        image, input_image = images(3), np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
        logits = recorder.predict(image, input_image, REQUEST, labels)
        recorder.close()
        with torch.inference_mode():
            assert torch.equal(logits, model(image))

        (key,) = bucket.indexes
        index = read_index(key, bucket[key])
        tensors = read_tensors(index, bucket[index.events_key])
        assert same(torch.tensor(tensors[names.LOGITS]), logits)
        np.testing.assert_array_equal(tensors[names.INPUT_IMAGE], input_image)
        assert tensors[names.TARGET].tolist() == logits.argmax(1).tolist()
        meta = json.loads(tensors[names.META].tobytes())
        assert meta["class_names"] == [labels[i] for i in logits.argmax(1)]
        assert meta["request"] == REQUEST | {"time": "2026-11-23T10:00:01.123Z", "samples": "3"}
        assert (meta["version"], meta["trace_form"], meta["model"]) == (5, "reduced", "ResNet18")
        assert (meta["unaccounted"], meta["held"]) == ([], {})
        first, *_, last = meta["terms"]
        assert first == {"name": "bn1", "type": "BatchNorm2d", "rule": "batch norm", "eps": 1e-5, "map": True}
        assert last == {"name": "fc", "type": "Linear", "rule": "bias", "eps": None, "map": False}
        assert len(meta["terms"]) == 21

    @pytest.mark.parametrize(
        ("sent", "held"),
        [
            (b"[14]", b"[14]"),
            (b"", b""),
            (b"x" * names.RESPONSE_BYTES, b"x" * names.RESPONSE_BYTES),
            (b"x" * (names.RESPONSE_BYTES + 1), b""),
        ],
    )
    def test_trace_holds_the_response_of_anothers_code(self, trace_to, sent, held):
        bucket, model = Bucket(), ResNet18(num_classes=5, width=4).eval()
        recorder = trace_to(bucket, model)
        x = images()
        recorder.record(
            recorder.gradients_of(model), x, input_images(), model(x).detach(), REQUEST, response=sent
        )
        recorder.close()
        (index,) = bucket.indexes
        assert bucket.trace(index).tensors[names.RESPONSE].tobytes() == held

    def test_trace_of_our_code_holds_no_response(self, trace_to):
        bucket = Bucket()
        recorder = trace_to(bucket)
        predict(recorder, images())
        recorder.close()
        assert names.RESPONSE not in bucket.trace(bucket.indexes[0]).tensors

    def test_trace_holds_the_probabilities_after_blurring(self, trace_to):
        bucket, model, image = Bucket(), ResNet18(num_classes=5, width=4).eval(), images(2)
        recorder = trace_to(bucket, model)
        targets = predict(recorder, image).argmax(1).tolist()
        recorder.close()
        found = bucket.trace(bucket.indexes[0]).meta.blurred
        for one, target, numbers in zip(image, targets, found, strict=True):
            (terms,) = complete_gradients(model, one[None])
            expected = blurred_probabilities(model, one[None], target, gradients.heat_map(terms))
            assert (numbers.best, numbers.random) == pytest.approx(expected, rel=1e-5)

    def test_failing_blur_test_costs_no_trace(self, trace_to, caplog):
        passes = []

        class Third(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(3, 5)

            def forward(self, x):
                passes.append(1)
                if len(passes) > 2:
                    raise RuntimeError("no third\npass")
                return self.fc(x.square().mean((2, 3)))

        bucket = Bucket()
        recorder = trace_to(bucket, Third())
        predict(recorder, images())
        recorder.close()
        trace = bucket.trace(bucket.indexes[0])
        assert trace.meta.blurred == (None,)
        assert explain(trace)[0].blurred is None
        assert recorder.dropped == 0
        assert "Third: blurred image: RuntimeError: no third pass" in caplog.text

    def test_no_passes_where_it_is_switched_off(self, trace_to):
        bucket, passes = Bucket(), []
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
        recorder = trace_to(bucket, model, blur_test=False)
        hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
        predict(recorder, images())
        recorder.close()
        hook.remove()
        assert len(passes) == 2
        assert bucket.trace(bucket.indexes[0]).meta.blurred == (None,)

    def test_class_names_with_half_a_surrogate_pair_stay_readable(self, trace_to):
        bucket, labels = Bucket(), [*"abcd", "Stop\ud800"]
        recorder = trace_to(bucket)
        logits = recorder.predict(images(8), input_images(8), REQUEST, labels)
        recorder.predict(images(8), input_images(8), REQUEST, [labels[4]] * 5)
        recorder.close()
        first, second = (bucket.trace(key).meta.class_names for key in bucket.indexes)
        assert first == tuple(labels[i].replace("\ud800", r"\ud800") for i in logits.argmax(1))
        assert second == (r"Stop\ud800",) * 8

    def test_large_batch_is_one_step(self, trace_to):
        bucket = Bucket()
        recorder = trace_to(bucket)
        image = images(19)
        together = predict(recorder, image)
        for one in image:
            predict(recorder, one[None])
        recorder.close()
        batch, *singles = (bucket.trace(key).tensors for key in bucket.indexes)
        assert len(singles) == len(together) == len(image)
        for name in (names.LOGITS, names.TARGET, names.STATS_TENSOR, names.abs_map("layer2.0.bn1")):
            assert batch[name].shape[0] == len(image)
            one_by_one = np.concatenate([single[name] for single in singles])
            np.testing.assert_allclose(batch[name], one_by_one, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize(
        ("trace_form", "width", "size", "samples", "traced"),
        [
            ("reduced", 4, 512, 17, 16),  # by its pixels
            ("reduced", 4, 299, 48, 46),
            ("full", 64, 128, 20, 17),  # by its bytes
            ("full", 64, 256, 5, 4),
        ],
    )
    def test_large_step_holds_the_first_samples(self, trace_to, trace_form, width, size, samples, traced):
        torch.manual_seed(0)
        bucket, model = Bucket(), ResNet18(num_classes=5, width=width).eval()
        image, input_image = torch.randn(samples, 3, size, size), np.zeros((samples, size, size, 3), np.uint8)
        input_image += np.arange(samples, dtype=np.uint8)[:, None, None, None]
        recorder = trace_to(bucket, model, trace_form=trace_form)
        logits = recorder.predict(image, input_image, REQUEST, None)
        recorder.close()
        with torch.inference_mode():
            torch.testing.assert_close(logits, model(image), rtol=1e-4, atol=1e-4)
        (key,) = bucket.indexes
        trace = bucket.trace(key)
        explanations = explain(trace)
        assert len(explanations) == traced
        assert [e.input_image[0, 0, 0] for e in explanations] == list(range(traced))
        assert [e.target for e in explanations] == logits.argmax(1)[:traced].tolist()
        assert trace.meta.request["samples"] == str(samples)
        limit = inspect.signature(Objects.get).parameters["at_most"].default
        assert max(map(len, bucket.values())) <= limit

    def test_large_input_image_is_answered_without_a_trace(self, trace_to, caplog):
        model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
        recorder = trace_to(Bucket(), model.eval(), trace_form=names.FULL)
        image = torch.randn(1, 3, 512, 512)
        logits = recorder.predict(image, np.zeros((1, 512, 512, 3), np.uint8), REQUEST, None)
        with torch.inference_mode():
            assert torch.equal(logits, model(image))
        recorder.close()
        assert recorder.dropped == 1
        assert "input image (3, 512, 512): larger than a step may hold" in caplog.text

    def test_frees_the_gradients_of_a_sample_before_the_next(self, trace_to):
        alive = []

        class Counts(nn.Module):
            def forward(self, x):
                if torch.is_grad_enabled():
                    gc.collect()
                    alive.append(
                        sum(type(o) is torch.Tensor and o.shape[1:] == (13, 32, 32) for o in gc.get_objects())
                    )
                return x

        conv = nn.Conv2d(3, 13, 1)
        model = nn.Sequential(Counts(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(13, 5))
        recorder = trace_to(Bucket(), model.eval())
        predict(recorder, images(3))
        recorder.close()
        assert recorder.dropped == 0
        assert alive == [0, 0, 0]

    def test_uploads_collections_then_events_then_index(self, trace_to):
        bucket = Bucket()
        recorder = trace_to(bucket)
        for _ in range(2):
            predict(recorder, images())
        recorder.close()
        run = next(iter(bucket)).split("/")[2]
        assert re.fullmatch(r"20261123T100001Z-[A-Za-z0-9.-]+-\d+-[0-9a-f]{8}", run)
        assert [key.split("/", 3)[3] for key in bucket] == [
            "collections/000000000/worker_0_collections.json",
            "events/000000000000/000000000000_worker_0.tfevents",
            "index/000000000/000000000000_worker_0.json",
            "events/000000000001/000000000001_worker_0.tfevents",
            "index/000000000/000000000001_worker_0.json",
        ]
        assert all(re.fullmatch(r"tensors/signs/[A-Za-z0-9/._=-]+", key) for key in bucket)

    def test_explains_a_network_that_normalises_its_input_in_place(self, trace_to):
        bucket, image, model = Bucket(), images(2), InPlace().eval()
        with torch.inference_mode():
            expected = model(image.clone())
        recorder = trace_to(bucket, model)
        for _ in range(2):
            assert torch.equal(predict(recorder, image.clone()), expected)
        recorder.close()
        first, second = (explain(bucket.trace(key)) for key in bucket.indexes)
        assert all(explanation.complete for explanation in (*first, *second))

    def test_restart_overwrites_nothing(self, trace_to):
        bucket = Bucket()
        for _ in range(2):
            recorder = trace_to(bucket)
            predict(recorder, images())
            recorder.close()
        assert len(bucket) == 6

    def test_answers_before_the_trace_is_computed(self, trace_to):
        inside, go_on = threading.Event(), threading.Event()

        class Waits(nn.Module):
            def forward(self, x):
                if torch.is_grad_enabled():
                    inside.set()
                    assert go_on.wait(30)
                return x

        model = ResNet18(num_classes=5, width=4).eval()
        model.avgpool = nn.Sequential(Waits(), model.avgpool)
        bucket, image = Bucket(), images()
        recorder = trace_to(bucket, model)
        with torch.inference_mode():
            assert torch.equal(predict(recorder, image), model(image))
        assert inside.wait(30)
        # Other requests do not wait for the trace, and their forward passes do not enter it.
        assert recorder.wants(replays.BODY, replays.marker(incident=OPEN))
        assert recorder.wants(b"")
        with torch.inference_mode():
            model(images(seed=1))
        go_on.set()
        recorder.close()
        (key,) = bucket.indexes
        assert len(bucket.trace(key).meta.terms) == 21
        assert not hooks_of(model)

    def test_names_a_pass_that_returns_other_logits_than_the_answer(self, trace_to):
        class DependsOnTheBatch(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = ResNet18(num_classes=5, width=4)

            def forward(self, x):
                return self.net(x) + x.mean()

        bucket = Bucket()
        recorder = trace_to(bucket, DependsOnTheBatch())
        predict(recorder, torch.cat([images(), 5 + images(seed=1)]))
        predict(recorder, images())
        recorder.close()
        together, alone = (bucket.trace(key) for key in bucket.indexes)
        assert list(together.meta.unaccounted) == [f"DependsOnTheBatch: {names.OTHER_ANSWER}"]
        assert not any(explanation.complete for explanation in explain(together))
        assert not alone.meta.unaccounted

    def test_concurrent_traces_stay_separate(self, trace_to):
        bucket, model = Bucket(), zoo.build("ResNet18 (BasicBlock)")[0]
        recorder, answers = trace_to(bucket, model), {}

        def client(number):
            for i in range(3):
                image = images(1 + i, seed=10 * number + i)
                input_image = np.full((1 + i, 32, 32, 3), 10 * number + i, np.uint8)
                sha256 = hashlib.sha256(input_image.tobytes()).hexdigest()
                logits = recorder.predict(image, input_image, REQUEST | {"sha256": sha256}, None)
                answers[sha256] = (image, input_image, logits)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorder.close()
        assert recorder.dropped == 0
        assert len(bucket.indexes) == len(answers) == 6
        for key in bucket.indexes:
            trace = bucket.trace(key)
            image, input_image, logits = answers.pop(trace.meta.request["sha256"])
            np.testing.assert_array_equal(trace.tensors[names.INPUT_IMAGE], input_image)
            assert same(torch.tensor(trace.tensors[names.LOGITS]), logits)
            for name, tensor in computed(model, image).items():
                np.testing.assert_allclose(
                    trace.tensors[name], tensor, rtol=1e-3, atol=1e-5 * np.abs(tensor).max()
                )

    def test_traces_all_replays_and_live_requests_within_the_limit(self, trace_to):
        now = 0.0
        recorder = trace_to(Bucket(), per_minute=2, clock=lambda: now)
        replay = f"user=7, {replays.marker(incident=OPEN)}"
        assert all(recorder.wants(replays.BODY, replay) for _ in range(5))
        others = [None, "", "user=7", "glassboxes=1", f"x={replays.marker(incident=OPEN)}", "glassbox"]
        assert [bool(recorder.wants(replays.BODY, other)) for other in others] == [True, True, *[False] * 4]
        assert recorder.wants(replays.BODY, replay)
        now = 60.0
        assert [bool(recorder.wants(b"")) for _ in range(3)] == [True, True, False]

    def test_request_holds_the_verified_markers_ids(self, trace_to):
        recorder = trace_to(Bucket())
        attributes = f"user=7,{replays.marker(incident=OPEN)}"
        assert recorder.wants(replays.BODY, attributes, "id-9") == {
            "inference_id": "id-9",
            "custom_attributes": attributes,
            "sha256": hashlib.sha256(replays.BODY).hexdigest(),
            "replay_incident": OPEN,
            "replay_event_id": replays.EVENT_ID,
        }

    @pytest.mark.parametrize(
        "attributes",
        [
            replays.marker(b"another body", incident=OPEN),
            replays.marker(incident=f"{NOW - timedelta(hours=25):%Y%m%dt%H%M%S}-operator"),
            f"{replays.marker(incident=OPEN)},{replays.marker(incident=OPEN)}",
            replays.marker(incident=OPEN)[:-1],
            replays.marker(incident=OPEN).replace(".trace.", ".repair."),
            f"glassbox-replay=1,glassbox-incident={OPEN}",
        ],
    )
    def test_unverified_marker_is_live_traffic(self, trace_to, attributes):
        recorder = trace_to(Bucket(), per_minute=1, clock=lambda: 0.0)
        assert recorder.wants(replays.BODY, attributes).keys() == {
            "inference_id",
            "custom_attributes",
            "sha256",
        }
        assert recorder.wants(replays.BODY, attributes) is None

    def test_repaired_inputs_are_not_traced_or_counted(self, trace_to):
        recorder = trace_to(Bucket(), per_minute=1, clock=lambda: 0.0)
        repaired = replays.marker(incident=OPEN, purpose="repair")
        assert [recorder.wants(replays.BODY, repaired) for _ in range(3)] == [None] * 3
        assert recorder.wants(replays.BODY, repaired.replace(".repair.", ".trace."))
        assert recorder.wants(replays.BODY) is None

    def test_every_request_is_live_traffic_without_a_key(self, trace_to):
        recorder = trace_to(Bucket(), per_minute=1, clock=lambda: 0.0, replay_key=None)
        marker = replays.marker(incident=OPEN)
        assert [bool(recorder.wants(replays.BODY, marker)) for _ in range(2)] == [True, False]

    @pytest.mark.parametrize(
        ("trace_form", "destination", "reason"),
        [
            ("Reduced", "s3://bucket/tensors", "TRACE_FORM: expected reduced or full, got 'Reduced'"),
            ("reduced", "/opt/tensors", "tensors_output: expected s3://bucket/prefix, got '/opt/tensors'"),
            ("full", "s3://bucket", "expected s3://bucket/prefix, got"),
            ("full", "s3://bucket/", "expected s3://bucket/prefix, got"),
        ],
    )
    def test_refuses_invalid_settings(self, trace_form, destination, reason):
        with pytest.raises(SettingsError, match=re.escape(reason)):
            TensorRecorder(
                ResNet18(num_classes=5, width=4),
                destination,
                client=Bucket(),
                traces_per_minute=1,
                trace_form=trace_form,
                clock=lambda: 0.0,
                utcnow=lambda: NOW,
            )


class TestFailures:
    """After every failure the request is answered, the loss is counted, and the next trace is uploaded."""

    def test_recovers_after_s3_was_unreachable(self, trace_to, caplog):
        bucket, model = Bucket(), ResNet18(num_classes=5, width=4).eval()
        recorder = trace_to(bucket, model)
        bucket.away = True
        with torch.inference_mode():
            expected = model(images())
        for lost in (1, 2):
            assert same(predict(recorder, images()), expected)
            wait_until(lambda lost=lost: recorder.dropped == lost)
        assert not bucket
        bucket.away = False
        assert same(predict(recorder, images()), expected)
        recorder.close()
        assert recorder.dropped == 2
        # A step may be missing, but not the collections, which the first step uploads.
        assert [key.split("/")[3] for key in bucket] == ["collections", "events", "index"]
        assert bucket.indexes[0].endswith("/000000000002_worker_0.json")
        assert [r.getMessage() for r in caplog.records] == [
            f"trace dropped, {i} so far: ConnectionError: no route to S3" for i in (1, 2)
        ]

    def test_index_is_uploaded_only_after_its_events(self, trace_to):
        class Flaky(Bucket):
            def put_object(self, Key, **rest):
                if "/events/000000000001/" in Key or "/index/000000000/000000000002" in Key:
                    raise ConnectionError("reset")
                super().put_object(Key=Key, **rest)

        bucket = Flaky()
        recorder = trace_to(bucket)
        for _ in range(4):
            predict(recorder, images())
        recorder.close()
        assert recorder.dropped == 2
        assert [key.rpartition("/")[2] for key in bucket.indexes] == [
            "000000000000_worker_0.json",
            "000000000003_worker_0.json",
        ]
        for key in bucket.indexes:
            assert bucket.trace(key).meta.trace_form == names.REDUCED

    def test_drops_traces_while_s3_hangs(self, trace_to):
        stuck = Stuck()
        recorder = trace_to(stuck)
        predict(recorder, images())
        assert stuck.entered.wait(120)
        for _ in range(trace_upload.QUEUE + 3):
            predict(recorder, images())
        assert recorder.dropped == 3
        recorder.close(0.2)
        assert not stuck.left.is_set(), "close() waited for S3"
        stuck.release()

    def test_bounds_the_waiting_bytes_while_s3_hangs(self, trace_to, monkeypatch):
        monkeypatch.setattr(trace_upload, "QUEUE_BYTES", 1 << 20)
        stuck = Stuck()
        recorder = trace_to(stuck, trace_form=names.FULL)
        predict(recorder, images())
        assert stuck.entered.wait(120)
        accepted = 0
        while not recorder.dropped:
            predict(recorder, images(4))
            accepted += 1
        assert 2 < accepted < trace_upload.QUEUE
        assert recorder.dropped == 1
        stuck.release()

        def accepts():
            before = recorder.dropped
            predict(recorder, images(4))
            return recorder.dropped == before

        wait_until(accepts)

    def test_recovers_after_the_disk_was_missing(self, trace_to, tmp_path, monkeypatch):
        bucket = Bucket()
        recorder = trace_to(bucket)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        assert predict(recorder, images()).shape == (1, 5)
        wait_until(lambda: recorder.dropped == 1)
        (tmp_path / "gone").mkdir()
        predict(recorder, images())
        recorder.close()
        assert (recorder.dropped, len(bucket.indexes)) == (1, 1)
        assert not list((tmp_path / "gone").iterdir())

    def test_answers_when_only_the_trace_fails(self, trace_to, caplog):
        class Refuses(nn.Module):
            def forward(self, x):
                if torch.is_grad_enabled():
                    raise RuntimeError("no gradient for this one")
                return x

        bucket, model = Bucket(), ResNet18(num_classes=5, width=4).eval()
        model.maxpool = Refuses()
        recorder = trace_to(bucket, model)
        with torch.inference_mode():
            assert same(predict(recorder, images()), model(images()))
        recorder.close()
        assert (recorder.dropped, len(bucket)) == (1, 0)
        assert "no gradient for this one" in caplog.text
        assert not hooks_of(model)

    def test_uploads_the_reason_when_a_replays_trace_fails(self, trace_to):
        """A replay ends in a heat map or in a refusal."""

        class Refuses(nn.Module):
            def forward(self, x):
                if torch.is_grad_enabled():
                    raise RuntimeError("no gradient for this one" + 1000 * "!")
                return x

        bucket, model = Bucket(), ResNet18(num_classes=5, width=4).eval()
        model.maxpool = Refuses()
        recorder = trace_to(bucket, model)
        with torch.inference_mode():
            assert same(predict(recorder, images(), **REPLAYED), model(images()))
        wait_until(lambda: recorder.dropped == 1)
        model.maxpool = nn.Identity()
        predict(recorder, images())
        recorder.close()
        index, _ = bucket.indexes
        *_, collections = sorted(key for key in bucket if "/collections/" in key)
        assert names.INPUT_IMAGE.encode() in bucket[collections]
        trace = bucket.trace(index)
        assert list(trace.tensors) == [names.META]
        assert trace.meta.refused.startswith("RuntimeError: no gradient for this one")
        assert len(trace.meta.refused) == names.REASON_CHARACTERS
        assert REPLAYED.items() <= trace.meta.request.items()
        assert recorder.dropped == 1

    def test_uploads_the_reason_when_the_queue_is_full(self, trace_to, monkeypatch):
        monkeypatch.setattr(trace_upload, "QUEUE", 0)
        monkeypatch.setattr(recorder_module, "REPLAY_SECONDS", 0.01)
        bucket = Bucket()
        monkeypatch.setattr(trace_upload, "REFUSALS", 1000)
        recorder = trace_to(bucket)
        predict(recorder, images())
        predict(recorder, images(), **REPLAYED)
        recorder.close()
        (index,) = bucket.indexes
        assert "too many traces" in bucket.trace(index).meta.refused
        assert recorder.dropped == 2

    def test_replay_waits_for_a_place_in_the_queue(self, trace_to, monkeypatch):
        monkeypatch.setattr(trace_upload, "QUEUE", 1)
        stuck = Stuck()
        recorder = trace_to(stuck)
        predict(recorder, images())
        assert stuck.entered.wait(120)
        predict(recorder, images())  # fills the queue
        replay = threading.Thread(target=predict, args=(recorder, images()), kwargs=REPLAYED)
        replay.start()
        stuck.release()
        replay.join()
        recorder.close()
        assert recorder.dropped == 0

    def test_uploads_the_reason_when_maps_of_a_replay_differ_in_size(self, trace_to):
        bucket, image = Bucket(), images(2).abs()
        image[1:] *= -1
        recorder = trace_to(bucket, Resizing())
        predict(recorder, image, **REPLAYED)
        recorder.close()
        (index,) = bucket.indexes
        assert "different paths" in bucket.trace(index).meta.refused

    def test_uploads_nothing_when_the_model_refuses_the_input(self, trace_to):
        bucket = Bucket()
        recorder = trace_to(bucket)
        with pytest.raises(RuntimeError, match="channels"):
            recorder.predict(torch.zeros(1, 7, 32, 32), input_images(), REQUEST | REPLAYED, None)
        recorder.close()
        assert not bucket

    def test_answers_as_the_plain_model_when_the_trace_fails(self, trace_to):
        model, image = InPlace(fails=True).eval(), images()
        with torch.inference_mode():
            expected = model(image.clone())
        recorder = trace_to(Bucket(), model)
        assert torch.equal(predict(recorder, image), expected)
        recorder.close()
        assert recorder.dropped == 1

    def test_drops_a_batch_whose_maps_differ_in_size(self, trace_to, caplog):
        bucket, image = Bucket(), images(2).abs()
        recorder = trace_to(bucket, Resizing())
        assert predict(recorder, image).shape == (2, 5)
        image[1:] *= -1
        assert predict(recorder, image).shape == (2, 5)
        recorder.close()
        assert (recorder.dropped, len(bucket.indexes)) == (1, 1)
        assert "The samples took different paths" in caplog.text

    def test_traces_a_batch_whose_samples_take_different_paths(self, trace_to):
        class Routed(nn.Module):
            def __init__(self):
                super().__init__()
                self.dark, self.light, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

            def forward(self, x):
                convolved = [(self.light if image.mean() > 0 else self.dark)(image) for image in x]
                return self.fc(torch.stack(convolved).mean((2, 3)))

        bucket, image = Bucket(), images(2).abs()
        image[1:] *= -1
        recorder = trace_to(bucket, Routed())
        predict(recorder, image)
        recorder.close()
        (index,) = bucket.indexes
        assert all(explanation.complete for explanation in explain(bucket.trace(index)))

    def test_answers_with_the_probabilities_of_a_network_that_ends_with_softmax(self, trace_to):
        bucket, model = Bucket(), nn.Sequential(ResNet18(num_classes=5, width=4), nn.Softmax(1))
        recorder = trace_to(bucket, model)
        answer = predict(recorder, images(2))
        recorder.close()
        with torch.inference_mode():
            assert same(answer, model(images(2)))
        (index,) = bucket.indexes
        first, second = explain(bucket.trace(index))
        assert first.complete
        assert [first.probability, second.probability] == pytest.approx(answer.amax(1).tolist(), rel=1e-4)

    def test_drops_a_trace_whose_logits_do_not_depend_on_the_input(self, trace_to):
        class Blind(nn.Module):
            def forward(self, x):
                return x.detach().mean((2, 3))

        recorder = trace_to(Bucket(), Blind())
        assert torch.equal(predict(recorder, images()), images().mean((2, 3)))
        recorder.close()
        assert recorder.dropped == 1

    def test_raises_the_models_error(self, trace_to):
        recorder = trace_to(Bucket())
        with pytest.raises(RuntimeError, match="channels"):
            recorder.predict(torch.zeros(1, 7, 32, 32), input_images(), REQUEST, None)

    def test_removes_its_files(self, trace_to, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        recorder = trace_to(Bucket())
        predict(recorder, images())
        recorder.close()
        assert not list(tmp_path.iterdir())


def wait_until(happened, seconds=120):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Full(nn.Module):
    """Raises in the calls that ``when`` selects, as torch does on a device whose memory is full."""

    def __init__(self, when, error):
        super().__init__()
        self.when, self.error = when, error

    def forward(self, x):
        if self.when():
            raise self.error
        return x


def in_thread_of_the_traces():
    return threading.current_thread().name == "trace-upload"


class TestMemory:
    def test_a_replay_that_needs_more_than_the_limit_is_refused(self, trace_to):
        bucket = Bucket()
        recorder = trace_to(bucket, trace_memory=1 << 15)
        predict(recorder, images(), **REPLAYED)
        recorder.close()
        (index,) = bucket.indexes
        assert re.match(
            r"UnexplainableError: memory: expected at most 0\.0 MiB for an explanation, got 0\.\d MiB for the first "
            r"\d+ operators\. Set TRACE_MEMORY_MIB",
            bucket.trace(index).meta.refused,
        )

    def test_a_refusal_for_memory_switches_nothing_off(self, trace_to):
        bucket = Bucket()
        recorder = trace_to(bucket, ResNet18(num_classes=5, width=4).eval(), trace_memory=1 << 17)
        predict(recorder, images().repeat(1, 1, 4, 4), **REPLAYED)
        predict(recorder, images(), **REPLAYED)
        recorder.close()
        refused = [bool(bucket.trace(index).meta.refused) for index in bucket.indexes]
        assert refused == [True, False]

    @pytest.mark.parametrize(
        "error",
        [
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            MemoryError("of the host"),
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
        ],
    )
    @pytest.mark.parametrize("of_the_blur_test", [False, True])
    def test_a_trace_that_runs_out_of_memory_switches_explaining_off(
        self, trace_to, caplog, error, of_the_blur_test
    ):
        bucket, model = Bucket(), ResNet18(num_classes=5, width=4).eval()
        model.maxpool = Full(
            lambda: in_thread_of_the_traces() and torch.is_grad_enabled() != of_the_blur_test, error
        )
        recorder = trace_to(bucket, model)
        with torch.inference_mode():
            expected = model(images())
        assert torch.equal(predict(recorder, images(), **REPLAYED), expected)
        wait_until(lambda: len(bucket.indexes) == 1)
        model.maxpool = nn.Identity()
        assert recorder.wants(b"live") is None
        replay = recorder.wants(b"x", replays.marker(b"x", OPEN, "event-2"))
        assert replay is not None
        predict(recorder, images(), **replay)
        recorder.close()
        first, second = (bucket.trace(index).meta.refused for index in bucket.indexes)
        assert first.startswith(f"{type(error).__name__}: {error}")
        assert second.startswith("RuntimeError: explaining is off since a trace ran out of memory (")
        assert str(error) in second
        assert caplog.text.count("Restart the endpoint with more memory.") == 1

    def test_a_live_call_that_runs_out_of_memory_during_a_trace_switches_explaining_off(self, trace_to):
        bucket, model = Bucket(), ResNet18(num_classes=5, width=4).eval()
        tracing, may_end = threading.Event(), threading.Event()

        def when():
            if in_thread_of_the_traces():
                tracing.set()
                may_end.wait()
                return False
            return tracing.is_set()

        model.maxpool = Full(when, torch.cuda.OutOfMemoryError("CUDA out of memory"))
        recorder = trace_to(bucket, model)
        predict(recorder, images(), **REPLAYED)
        tracing.wait()
        with pytest.raises(torch.cuda.OutOfMemoryError):
            predict(recorder, images())
        assert recorder.wants(b"live") is None
        may_end.set()

    def test_a_live_call_that_runs_out_of_memory_alone_switches_nothing_off(self, trace_to):
        model = ResNet18(num_classes=5, width=4).eval()
        model.maxpool = Full(lambda: True, torch.cuda.OutOfMemoryError("CUDA out of memory"))
        recorder = trace_to(Bucket(), model)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            predict(recorder, images())
        assert recorder.wants(b"live") is not None

    def test_another_error_of_a_trace_switches_nothing_off(self, trace_to):
        model = ResNet18(num_classes=5, width=4).eval()
        model.maxpool = Full(
            in_thread_of_the_traces, RuntimeError("CUDA error: device-side assert triggered")
        )
        recorder = trace_to(Bucket(), model)
        predict(recorder, images())
        wait_until(lambda: recorder.dropped == 1)
        assert recorder.wants(b"live") is not None


def test_every_trace_has_its_own_time(trace_to):
    bucket = Bucket()
    times = iter([NOW, NOW + timedelta(seconds=1), NOW + timedelta(seconds=61)])
    recorder = TensorRecorder(
        ResNet18(num_classes=5, width=4),
        "s3://bucket/tensors/signs/",
        client=bucket,
        traces_per_minute=1,
        trace_form=names.REDUCED,
        clock=lambda: 0.0,
        utcnow=lambda: next(times),
    )
    for _ in range(2):
        predict(recorder, images())
    recorder.close()
    asked = [bucket.trace(key).meta.request["time"] for key in bucket.indexes]
    assert asked == ["2026-11-23T10:00:02.123Z", "2026-11-23T10:01:02.123Z"]


def test_the_hello_object_is_readable_by_the_report(trace_to):
    bucket = Bucket()
    recorder = trace_to(bucket)
    recorder.hello("inference.py")
    ((key, content),) = bucket.items()
    assert re.fullmatch(r"tensors/signs/hello/[A-Za-z0-9.-]+\.json", key)
    expected = Hello(torch.__version__, platform.python_version(), "passed", "inference.py")
    assert msgspec.json.decode(content, type=Hello) == expected


def test_a_refused_hello_object_is_logged_and_traces_go_on(trace_to, caplog):
    bucket = Bucket()
    bucket.away = True
    recorder = trace_to(bucket)
    recorder.hello("inference.py")
    assert "no hello object: ConnectionError: no route to S3" in caplog.text
    assert recorder.dropped == 0


class TestUnreadableKey:
    """A key of the replays that is neither base64 nor in KMS."""

    @pytest.fixture(params=["replay_key", "replay_key_arn"])
    def settings(self, request, monkeypatch):
        def client(service, **_):
            if service == "kms":
                raise ConnectionError("no route to KMS")
            return self.bucket

        self.bucket = Bucket()
        monkeypatch.setattr("boto3.client", client)
        return Settings(**{request.param: "arn:aws:kms:us-east-1:123456789012:key/1"})

    def test_fails_our_own_endpoint(self, settings):
        with pytest.raises((BadInputError, ConnectionError)):
            connected(settings, "s3://bucket/tensors/signs", ResNet18(num_classes=5, width=4))
        assert not self.bucket

    def test_is_in_the_hello_object_of_anothers_endpoint(self, settings):
        recorder = connected(settings, "s3://bucket/tensors/signs", adapter="ts.service")
        (content,) = self.bucket.values()
        assert re.match(
            r"(BadInputError|ConnectionError): \S", msgspec.json.decode(content, type=Hello).replays
        )
        assert names.REPLAY_EVENT_ID not in recorder.wants(b"body", replays.marker(b"body"))
        recorder.close()
