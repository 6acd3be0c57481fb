"""The trace of a request: what FullGrad needs of one forward and one backward pass, in S3 as smdebug writes it.

The forward hooks of a traced request live as long as its forward pass, so a plain request meets none. Parameters are
frozen: the backward pass computes the gradients of the picture and of the biased modules' outputs, nothing else. A
thread of its own lets smdebug write what is kept, and uploads it: trouble with the disk or with S3 costs a trace and
never an answer. Names and shapes of the tensors: ``glassbox/explanation/trace_format.py``.

Of smdebug, its writers are used and not its ``Hook``: that one stays on the model for good, keeps a step back until
the next request comes, and uploads it while that request waits.
"""

import hashlib
import json
import logging
import os
import queue
import re
import socket
import tempfile
import threading
import time
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smdebug.core.collection_manager import CollectionManager
from smdebug.core.modes import MODE_PLUGIN_NAME, MODE_STEP_PLUGIN_NAME, ModeKeys
from smdebug.core.tfevent.events_writer import EventsWriter
from smdebug.core.tfevent.index_file_writer import Index
from smdebug.core.tfevent.proto.event_pb2 import Event
from smdebug.core.tfevent.proto.summary_pb2 import Summary, SummaryMetadata
from smdebug.core.tfevent.util import make_tensor_proto
from torch import Tensor, nn

from exactness import inexact
from glassbox.errors import SettingsError
from glassbox.explanation import trace_format as names
from glassbox.replay_marker import REPAIR, PublicKey, verified_marker

logger = logging.getLogger(__name__)

SAMPLES = 8  # of a larger batch, so many at a time: a backward pass keeps every activation in memory
# traces that may wait for the upload, and their bytes, before others are dropped: an incident's replays and a minute of
# live ones fit
QUEUE = 32
REFUSALS = 8 * QUEUE  # steps that may wait where the last ones are refusals
QUEUE_BYTES = 256 << 20
WORKER = "worker_0"

Step = Callable[[], Mapping[str, np.ndarray]]

BATCH_NORM = nn.modules.batchnorm._BatchNorm
LINEAR = (nn.modules.conv._ConvNd, nn.Linear)


class RateLimit:
    """At most ``limit`` in any 60 seconds.

    Args:
        clock: gives seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._taken: deque[float] = deque(maxlen=limit)
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more is within the limit; if so, it is taken."""
        with self._lock:
            now = self._clock()
            if len(self._taken) == self._limit and (not self._taken or now - self._taken[0] < 60):
                return False
            self._taken.append(now)
            return True


class TensorRecorder:
    """Predicts with a trace; says which requests are worth one.

    Args:
        model: a CNN that takes (N, C, H, W) float32 and gives (N, K) logits. Its parameters are frozen here, and their
            values must not change any more.
        destination: ``s3://bucket/prefix``; every TensorRecorder writes into a folder of its own below it.
        client: a boto3 ``s3`` client.
        traces_per_minute: the bound on live requests; replayed ones are always traced.
        replay_key: what replay markers are verified with; without it every request is live traffic.
        form: ``reduced`` or ``full``.
        clock: seconds, monotonic.
        utcnow: the time of day.

    Raises:
        SettingsError: destination or form is not understood.
    """

    def __init__(
        self,
        model: nn.Module,
        destination: str,
        *,
        client: Any,
        traces_per_minute: int,
        form: str,
        clock: Callable[[], float],
        utcnow: Callable[[], datetime],
        replay_key: PublicKey | None = None,
    ) -> None:
        if form not in (names.REDUCED, names.FULL):
            raise SettingsError(f"TRACE_FORM={form!r} is neither {names.REDUCED} nor {names.FULL}")
        self._model, self._name = model.eval().requires_grad_(False), type(model).__name__
        self._modules, self._form, self._utcnow = biased_modules(model), form, utcnow
        self._biases = {name: effective_bias(module) for name, module in self._modules.items()}
        self._parameters = {
            name: parameters(self._name, name, module) if form == names.FULL else {}
            for name, module in self._modules.items()
        }
        self._inexact: list[str] | None = None
        self._lock = threading.Lock()
        self._rate = RateLimit(traces_per_minute, clock)
        self._replay_key = replay_key
        self._uploader = Uploader(client, destination, f"{utcnow():%Y%m%dT%H%M%SZ}")

    def wants(
        self, body: bytes, custom_attributes: str | None = None, inference_id: str | None = None
    ) -> dict[str, str | None] | None:
        """Return what a trace records of the request; None where it is not to be traced.

        A replay is always traced, a repaired input never, live traffic within its bound. Only a marker that verifies
        makes a request one of the first two.
        """
        marker = verified_marker(
            custom_attributes, body=body, now=self._utcnow(), key=lambda: self._replay_key
        )
        if marker and marker.purpose == REPAIR:
            return None
        if marker is None and not self._rate.take():
            return None
        request = {
            "inference_id": inference_id,
            "custom_attributes": custom_attributes,
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if marker:
            request |= {names.REPLAY_INCIDENT: marker.incident, names.REPLAY_EVENT_ID: marker.event_id}
        return request

    def predict(
        self,
        image: Tensor,
        picture: np.ndarray,
        request: Mapping[str, str | None],
        labels: Sequence[str] | None,
    ) -> Tensor:
        """The logits (N, K) of ``image``, as without a trace.

        The first samples, as many as a step may hold, are traced, each for its predicted class.

        Args:
            image: (N, C, H, W) float32, normalised.
            picture: (N, H, W, C) uint8, the same before normalisation.
            request: what :meth:`wants` gave.
            labels: the classes' names.
        """
        try:
            with self._lock:
                if self._inexact is None:  # once: it is the same network for every request
                    self._inexact = inexact(self._model, self._modules, image[:1])
                parts = self._parts(image, picture)
            logits = [part.logits for part in parts]
            traced = sum(map(len, logits))
            if traced < len(image):
                with torch.inference_mode():
                    logits.append(self._model(image[traced:]))
            now = f"{self._utcnow():%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
            request = {**request, "time": now, "samples": str(len(image))}
            picture = picture[:traced].copy()
            size = picture.nbytes + sum(part.nbytes for part in parts)
            if not self._uploader.put(partial(self._step, parts, picture, request, labels), size):
                self._refuse(request, "the endpoint had too many traces to upload")
            return torch.cat(logits)
        except Exception as error:  # a tracing error must never fail the request
            reason = f"{type(error).__name__}: {error}"
        self._uploader.drop(reason)
        with torch.inference_mode():
            answer = self._model(image)
        self._refuse(request, reason)
        return answer

    def _refuse(self, request: Mapping[str, str | None], reason: str) -> None:
        """Upload why a replay has no trace; of live traffic nothing."""
        if names.REPLAY_EVENT_ID in request:
            self._uploader.put(partial(self._refusal, request, reason), 0, refusal=True)

    @property
    def dropped(self) -> int:
        """How many traces were lost."""
        return self._uploader.dropped

    def close(self, seconds: float = 20) -> None:
        """Upload what is waiting, but take no longer than that."""
        self._uploader.close(seconds)

    def _parts(self, image: Tensor, picture: np.ndarray) -> list["Part"]:
        """The first samples of a request, as many as a step may hold.

        Raises:
            ValueError: not even one fits.
        """
        room = names.STEP_BYTES - sum(t.nbytes for kept in self._parameters.values() for t in kept.values())
        most = min(len(image), names.STEP_PIXELS // picture[0, ..., 0].size)
        parts: list[Part] = []
        traced = 0
        while traced < most:
            part = self._part(image[traced:most][:SAMPLES])
            most = min(most, room // (part.nbytes // len(part.logits) + picture[0].nbytes))
            parts.append(part.first(max(0, most - traced)))
            traced += len(parts[-1].logits)
        if most < 1:
            raise ValueError(f"a picture of {tuple(image[0].shape)} is more than a step may hold")
        return parts

    def _part(self, image: Tensor) -> "Part":
        # in here the gradients end, before the next part's are computed
        recording = record(self._model, self._modules, image)
        form = (
            reduced(recording, self._biases) if self._form == names.REDUCED else full(recording, self._name)
        )
        form |= {names.LOGITS: _numpy(recording.logits), names.TARGET: recording.target.cpu().numpy()}
        calls = [(call, gradient.ndim == 4) for call, gradient in recording.gradients.items()]
        return Part(recording.logits, calls, form)

    def _step(
        self,
        parts: Sequence["Part"],
        picture: np.ndarray,
        request: Mapping[str, str | None],
        labels: Sequence[str] | None,
    ) -> dict[str, np.ndarray]:
        calls = parts[0].calls
        if any(part.calls != calls for part in parts):
            reason = "the samples of the batch took different ways through the network"
            if names.REPLAY_EVENT_ID not in request:
                raise ValueError(reason)
            self._uploader.drop(reason)
            return self._refusal(request, reason)
        tensors = {name: np.concatenate([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        for call, _ in calls:
            tensors |= self._parameters[call.partition("#")[0]]
        meta = {
            "modules": [self._described(*call) for call in calls],
            "inexact": self._inexact,
            # cut, so that long names of a large batch leave the meta within what the reader takes
            "class_names": [labels[t][: names.CLASS_NAME_CHARACTERS] for t in tensors[names.TARGET].tolist()]
            if labels
            else None,
        }
        return {names.META: self._meta(request, **meta), names.PICTURE: picture, **tensors}

    def _refusal(self, request: Mapping[str, str | None], reason: str) -> dict[str, np.ndarray]:
        """A step without tensors: why the request has no trace."""
        refused = reason[: names.REASON_CHARACTERS]
        return {names.META: self._meta(request, modules=[], inexact=[], class_names=None, refused=refused)}

    def _meta(self, request: Mapping[str, str | None], **about: Any) -> np.ndarray:
        meta = {
            "version": names.VERSION,
            "form": self._form,
            "model": self._name,
            **about,
            "request": request,
        }
        return np.frombuffer(json.dumps(meta).encode(), np.uint8)

    def _described(self, call: str, has_map: bool) -> dict[str, Any]:
        module = self._modules[call.partition("#")[0]]
        eps = getattr(module, "eps", None)
        return {"name": call, "type": type(module).__name__, "eps": eps, "map": has_map}


@dataclass(frozen=True)
class Part:
    """What is kept of some samples of a request.

    Attributes:
        logits: (N, K).
        calls: of the watched modules in the order of the forward pass, each with whether its output has pixels.
        tensors: by name, the first axis is N.
    """

    logits: Tensor
    calls: list[tuple[str, bool]]
    tensors: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def first(self, n: int) -> "Part":
        """The first ``n`` samples, as a copy where there are more: the others' memory is free."""
        if n >= len(self.logits):
            return self
        return Part(self.logits[:n], self.calls, {name: t[:n].copy() for name, t in self.tensors.items()})


@dataclass(frozen=True)
class Recording:
    """One forward and backward pass of N samples.

    Attributes:
        logits: (N, K).
        head: the name of the module whose output they are; None if it is not one of those that were watched.
        target: (N,) int64, the class whose logit was differentiated.
        image: (N, C, H, W), what became of it where the network writes into its input; ``image_gradient`` too.
        gradients: of every call of a watched module in the order of the forward pass, the gradient of its output with
            the channels first: (N, C, …). The key is the module's name, with ``#call`` where it was called again.
    """

    logits: Tensor
    head: str | None
    target: Tensor
    image: Tensor
    image_gradient: Tensor
    gradients: Mapping[str, Tensor]


def record(
    model: nn.Module, modules: Mapping[str, nn.Module], image: Tensor, target: Tensor | None = None
) -> Recording:
    """Forward and backward through ``model``, whose parameters should be frozen; no hook is left behind.

    Args:
        modules: those whose outputs' gradients are wanted, see :func:`biased_modules`.
        image: (N, C, H, W).
        target: (N,) int64; by default the predicted classes.

    Raises:
        RuntimeError: as torch does, for a target that is no class, or logits that do not depend on the image.
    """
    calls: list[tuple[str, torch.Size]] = []
    received: dict[int, Tensor] = {}
    output_of_last: Tensor | None = None

    def on_output(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal output_of_last
        if isinstance(output, Tensor) and output.requires_grad:
            output_of_last = output
            # On the tensor as it is now: an in-place activation behind it changes the tensor, but not this gradient.
            output.register_hook(partial(received.__setitem__, len(calls)))
            calls.append((name, output.shape))

    # of its own: a network may normalise its input in place, and the request's is not to change
    image = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        handles = [m.register_forward_hook(partial(on_output, name)) for name, m in modules.items()]
        try:
            logits = model(image)
        finally:
            for handle in handles:
                handle.remove()
        target = logits.detach().argmax(1) if target is None else target
        # Samples do not mix in eval mode: the gradient of the sum holds each sample's own.
        (image_gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), image)

    times = Counter(name for name, _ in calls)
    seen: Counter[str] = Counter()
    gradients = {}
    for call, (name, shape) in enumerate(calls):
        # A module called "input" would share its name with the input's map.
        key = f"{name}#{seen[name]}" if times[name] > 1 or name == names.INPUT else name
        seen[name] += 1
        gradient = received[call] if call in received else torch.zeros(shape)  # the output is not used
        gradients[key] = gradient.movedim(-1, 1) if isinstance(modules[name], nn.Linear) else gradient
    head = calls[-1][0] if output_of_last is logits else None
    return Recording(logits.detach(), head, target, image.detach(), image_gradient, gradients)


def biased_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``model`` that add a bias to a linear map, by name: convolutions, Linear, and BatchNorm with
    running statistics, whose affine map in eval mode has a bias even where it has no parameters.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, LINEAR) and module.bias is not None)
        or (isinstance(module, BATCH_NORM) and module.running_mean is not None)
    }


def effective_bias(module: nn.Module) -> Tensor:
    """(C,) float32, what one of :func:`biased_modules` adds; of a BatchNorm β − μ·γ/√(σ² + eps)."""
    if not isinstance(module, BATCH_NORM):
        return module.bias.detach().float()
    mean, var = module.running_mean.double(), module.running_var.double()
    weight, bias = (1.0, 0.0) if module.weight is None else (module.weight.double(), module.bias.double())
    return (bias - mean * weight / torch.sqrt(var + module.eps)).float()


def reduced(recording: Recording, biases: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The reduced form: the statistics of every term, and Σ_c|term| where it has a map."""
    terms = {names.INPUT: recording.image * recording.image_gradient}
    for call, gradient in recording.gradients.items():
        bias = biases[call.partition("#")[0]]
        terms[call] = bias.view(-1, *[1] * (gradient.ndim - 2)) * gradient
    channels = torch.tensor([term.shape[1] for term in terms.values()], device=recording.image.device)
    rows, maps = [], {}
    for name, term in terms.items():
        total = term.flatten(1).sum(1, dtype=torch.float64)
        size = term.abs_().flatten(1)
        low, high = size.aminmax(dim=1)
        rows.append((low, high, total, size.sum(1, dtype=torch.float64)))
        if term.ndim == 4:
            maps[names.abs_map(name)] = _numpy(term.sum(1))
    columns = [torch.stack(column, 1).double() for column in zip(*rows, strict=True)]
    stats = torch.stack((channels.expand_as(columns[0]), *columns), 2)
    return {names.STATS_TENSOR: stats.cpu().numpy(), **maps}


def full(recording: Recording, model: str) -> dict[str, np.ndarray]:
    """The full form, without the :func:`parameters`."""
    tensors = {names.model_input(model): recording.image, names.IMAGE_GRADIENT: recording.image_gradient}
    tensors |= {names.output_gradient(key): gradient for key, gradient in recording.gradients.items()}
    if recording.head is not None:
        tensors[names.output(recording.head)] = recording.logits
    return {name: _numpy(tensor) for name, tensor in tensors.items()}


def parameters(model: str, name: str, module: nn.Module) -> dict[str, np.ndarray]:
    """What the bias of a module is computed from, under smdebug's names."""
    tensors = {names.parameter(model, name, "bias"): module.bias}
    if isinstance(module, BATCH_NORM):
        tensors[names.parameter(model, name, "weight")] = module.weight
        tensors |= {names.running(name, s): getattr(module, s) for s in ("running_mean", "running_var")}
    return {name: _numpy(tensor) for name, tensor in tensors.items() if tensor is not None}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).numpy()


class Uploader:
    """Writes steps with smdebug and uploads them, in a thread of its own; drops them when it cannot keep up.

    Args:
        client: a boto3 ``s3`` client.
        destination: ``s3://bucket/prefix``.
        started: the run's name begins with it; the rest makes it unique, as every process counts its steps from 0.

    Raises:
        SettingsError: the destination is no S3 URI.
    """

    def __init__(self, client: Any, destination: str, started: str) -> None:
        match = re.fullmatch(r"s3://([^/]+)/(.*[^/])/*", destination)
        if match is None:
            raise SettingsError(f"tensors_output={destination!r} is not s3://bucket/prefix")
        host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
        self._client, (self._bucket, prefix) = client, match.groups()
        self._prefix = f"{prefix}/{started}-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._queue: queue.Queue[tuple[Step, int] | None] = queue.Queue()
        self._bytes = 0  # of the steps that wait, and of the one that is being uploaded
        self._lock = threading.Lock()
        self._collected = False  # whether the collections are uploaded
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="trace-upload", daemon=True)
        self._thread.start()

    def put(self, step: Step, size: int, *, refusal: bool = False) -> bool:
        """Queue a step, and return whether it fits. Never waits.

        Args:
            step: returns its tensors.
            size: bytes that it holds until then.
            refusal: a step of a few bytes, which fits where others do not.
        """
        most = REFUSALS if refusal else QUEUE
        with self._lock:
            fits = self._queue.qsize() < most and self._bytes + size <= QUEUE_BYTES
            if fits:
                self._bytes += size
                self._queue.put((step, size))
        if not fits:
            self.drop("S3 does not keep up")
        return fits

    def drop(self, reason: str) -> None:
        """Count a trace that is lost, and log why."""
        with self._lock:
            self.dropped += 1
        logger.warning("trace dropped, %d so far: %s", self.dropped, " ".join(reason.split()))

    def close(self, seconds: float) -> None:
        """Upload what is queued, but take no longer than that."""
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("%d traces were not uploaded in time", self._queue.qsize())

    def _work(self) -> None:
        # A step that was dropped leaves a gap: its number may be in S3 already, for all we know.
        for number, (step, size) in enumerate(iter(self._queue.get, None)):
            try:
                with tempfile.TemporaryDirectory(prefix="glassbox-") as folder:
                    self._upload(Path(folder), number, step())
            except Exception as error:
                # Whatever the disk, S3 or the network do, the next step is tried.
                self.drop(f"{type(error).__name__}: {error}")
            with self._lock:
                self._bytes -= size

    def _upload(self, folder: Path, number: int, tensors: Mapping[str, np.ndarray]) -> None:
        files = write_step(folder, number, tensors)
        if not self._collected:
            self._put(folder, write_collections(folder, tensors))
            self._collected = names.PICTURE in tensors  # a refusal holds none of the names
        for file in files:
            self._put(folder, file)

    def _put(self, folder: Path, file: Path) -> None:
        key = f"{self._prefix}/{file.relative_to(folder).as_posix()}"
        self._client.put_object(Bucket=self._bucket, Key=key, Body=file.read_bytes())


def write_step(folder: Path, step: int, tensors: Mapping[str, np.ndarray]) -> tuple[Path, Path]:
    """Write a step as smdebug does: its events, and its index, which is to come last and holds their checksum.

    Not with smdebug's ``FileWriter``: the thread in which that one writes dies of a full disk, and whoever waits for
    it waits for ever. Nor with its ``locations``, which import pandas.
    """
    name = f"{step:012d}_{WORKER}"
    events_path = folder / "events" / f"{step:012d}" / f"{name}.tfevents"
    index_path = folder / "index" / f"{step // 1000:09d}" / f"{name}.json"
    mode = SummaryMetadata(
        plugin_data=[
            SummaryMetadata.PluginData(plugin_name=MODE_STEP_PLUGIN_NAME, content=str(step)),
            SummaryMetadata.PluginData(plugin_name=MODE_PLUGIN_NAME, content=str(ModeKeys.PREDICT.value)),
        ]
    )
    events, places = EventsWriter(str(events_path)), []
    for tag, tensor in tensors.items():
        value = Summary.Value(tag=tag, metadata=mode, tensor=make_tensor_proto(tensor, tag))
        start, length = events.write_event(
            Event(summary=Summary(value=[value]), wall_time=time.time(), step=step)
        )
        places.append({"tensorname": tag, "start_idx": start, "length": length})
    events.close()
    meta = {
        "mode": ModeKeys.PREDICT.name,
        "mode_step": step,
        "event_file_name": events_path.relative_to(folder).as_posix(),
        "crc32": zlib.crc32(events_path.read_bytes()),
    }
    index_path.parent.mkdir(parents=True)
    index_path.write_text(Index(meta, places, []).to_json(), encoding="utf-8")
    return events_path, index_path


def write_collections(folder: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write what ``create_trial`` wants to know of a run before its steps."""
    collections = CollectionManager()
    collections.get("default").tensor_names = set(tensors)
    path = folder / "collections" / "000000000" / f"{WORKER}_collections.json"
    path.parent.mkdir(parents=True)
    collections.export(str(folder), path.name)
    return path
