"""The trace of a request: what FullGrad needs, written as smdebug writes it, to S3.

A traced request runs forward and backward once, under forward hooks that live no longer than the request. Parameters
are frozen, so the backward pass computes gradients of the image and of the biased modules' outputs only. smdebug's
writer puts the step into a private local folder; a thread of its own uploads it, so trouble with S3 costs a trace
and never an answer. What is written is fixed in ``glassbox/tensor_names.py``.
"""

import json
import logging
import os
import queue
import shutil
import socket
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glassbox import tensor_names as names
from smdebug.core.collection_manager import CollectionManager
from smdebug.core.modes import ModeKeys
from smdebug.core.writer import FileWriter
from torch import Tensor, nn

logger = logging.getLogger(__name__)

REPLAY_ATTRIBUTE = "glassbox-replay"
WORKER = "worker_0"
QUEUE = 8  # traces that may wait for S3 before further ones are dropped

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Piecewise linear in eval mode: f(x) = J·x + bias terms holds exactly through these.
_EXACT = (
    *_CONVOLUTIONS,
    *_BATCH_NORMS,
    nn.Linear,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Hardtanh,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Identity,
    nn.Flatten,
    nn.Upsample,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.PixelShuffle,
)


class TokenBucket:
    """At most ``per_minute`` traces a minute, evenly refilled; ``clock`` gives seconds."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._tokens, self._last = per_minute, clock()

    def take(self) -> bool:
        now = self._clock()
        self._tokens = min(self._per_minute, self._tokens + (now - self._last) * self._per_minute / 60)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Tracer:
    """Predicts, and traces what is worth it.

    Args:
        model: a CNN in eval mode that takes (N, C, H, W) float32 and gives (N, K) logits; its parameters are frozen.
        destination: ``s3://bucket/prefix``; the run's own folder is made below it.
        client: a boto3 ``s3`` client.
        traces_per_minute: the bound on live requests; replayed ones are always traced.
        form: ``reduced`` or ``full``.
        clock: seconds, monotonic. ``utcnow`` names the run.
    """

    def __init__(
        self,
        model: nn.Module,
        destination: str,
        *,
        client: Any,
        traces_per_minute: float,
        form: str,
        clock: Callable[[], float],
        utcnow: Callable[[], datetime],
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._form = form
        self._bucket, self._lock = TokenBucket(traces_per_minute, clock), threading.Lock()
        self._utcnow = utcnow
        self._root = Path(tempfile.mkdtemp(prefix="glassbox-"))
        run = f"{utcnow():%Y%m%dT%H%M%SZ}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._uploader = Uploader(client, f"{destination.rstrip('/')}/{run}")
        self._name = type(model).__name__
        self._biases = {name: bias for name, module in model.named_modules() if (bias := _bias(module)) is not None}
        self.inexact = inexact(model)
        self._step = 0

    def wants(self, custom_attributes: str | None) -> bool:
        """Whether this request is to be traced: a replay always, live traffic within its bound."""
        if any(a.strip().startswith(REPLAY_ATTRIBUTE + "=") for a in (custom_attributes or "").split(",")):
            return True
        with self._lock:
            return self._bucket.take()

    def predict(
        self, x: Tensor, picture: np.ndarray, request: Mapping[str, str | None], labels: Sequence[str] | None
    ) -> Tensor:
        """The logits (N, K) of normalised images ``x`` (N, C, H, W), traced for each sample's predicted class.

        Args:
            picture: (N, H, W, C) uint8, the images before normalisation.
            request: ``inference_id``, ``custom_attributes`` and ``sha256`` of the request.
            labels: the classes' names.
        """
        with self._lock, torch.enable_grad():
            image = x.detach().requires_grad_()
            with _Recording(self._model, self._biases) as recording:
                logits = self._model(image)
                target = logits.detach().argmax(1)
                (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), image)
            logits = logits.detach()
            try:
                tensors = recording.reduced(image.detach(), gradient) if self._form == names.REDUCED else None
                tensors = recording.full(self._name, image.detach(), gradient) if tensors is None else tensors
                tensors |= {
                    names.PICTURE: picture,
                    names.LOGITS: logits.numpy(),
                    names.TARGET: target.numpy(),
                    names.META: self._meta(recording, request, target.tolist(), labels),
                }
                self._write(tensors)
            except (OSError, ValueError, RuntimeError):
                logger.exception("a trace was lost before it could be written")
        return logits

    def close(self) -> None:
        """Upload what is waiting, then let go."""
        self._uploader.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def _meta(self, recording: "_Recording", request: Mapping, target: list[int], labels) -> np.ndarray:
        meta = {
            "version": names.VERSION,
            "form": self._form,
            "model": self._name,
            "modules": recording.modules(),
            "inexact": self.inexact,
            "labels": [labels[t] for t in target] if labels else None,
            "request": {**request, "time": f"{self._utcnow():%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"},
        }
        return np.frombuffer(json.dumps(meta).encode(), np.uint8)

    def _write(self, tensors: Mapping[str, np.ndarray]) -> None:
        step, self._step = self._step, self._step + 1
        with FileWriter(str(self._root), WORKER, step=step) as writer:
            for name, value in tensors.items():
                writer.write_tensor(tdata=value, tname=name, mode=ModeKeys.PREDICT, mode_step=step)
        files = []
        if step == 0:
            collections = CollectionManager(create_default=True)
            collections.set_num_workers(1)
            collections.get("default").tensor_names = set(tensors)
            folder = self._root / "collections" / "000000000"
            folder.mkdir(parents=True)
            collections.export(str(self._root), f"{WORKER}_collections.json")
        events = self._root / "events" / f"{step:012d}" / f"{step:012d}_{WORKER}.tfevents"
        index = self._root / "index" / f"{step // 1000:09d}" / f"{step:012d}_{WORKER}.json"
        for file in (events, index, *sorted((self._root / "collections").rglob("*.json"))):
            files.append((file.relative_to(self._root).as_posix(), file.read_bytes()))
            file.unlink()
        self._uploader.put(files)


class Uploader:
    """Uploads steps in a thread, in the order they are given; drops them when S3 cannot keep up."""

    def __init__(self, client: Any, destination: str) -> None:
        self._client = client
        self._bucket, _, self._prefix = destination.removeprefix("s3://").partition("/")
        self._queue: queue.Queue = queue.Queue(QUEUE)
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="trace-upload", daemon=True)
        self._thread.start()

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Queue the files of one step; never blocks."""
        try:
            self._queue.put_nowait(files)
        except queue.Full:
            self._drop("S3 does not keep up")

    def close(self, seconds: float = 20) -> None:
        """Wait for what is queued, at most so long."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (files := self._queue.get()) is not None:
            try:
                for name, content in files:
                    self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=content)
            except Exception as error:  # noqa: BLE001 (whatever S3 or the network does, the next trace is tried)
                self._drop(str(error))

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        logger.warning("trace dropped (%d so far): %s", self.dropped, reason)


class _Recording:
    """Hooks for one forward and backward pass: the biased modules called, and the gradients of their outputs."""

    def __init__(self, model: nn.Module, biases: Mapping[str, Tensor]) -> None:
        self._modules = {name: module for name, module in model.named_modules() if name in biases}
        self._biases = biases
        self._calls: list[tuple[str, dict]] = []
        self._handles: list = []

    def __enter__(self) -> "_Recording":
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._forward(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            call: dict = {"shape": output.shape}
            self._calls.append((name, call))
            # on the output as it is now: an in-place ReLU behind it changes the tensor, not this gradient
            output.register_hook(lambda gradient: call.update(gradient=gradient))

        return hook

    def called(self) -> list[tuple[str, str, Tensor]]:
        """Key (``name#call`` where called more than once), plain name and gradient, in the order of the forward pass."""
        times = Counter(name for name, _ in self._calls)
        seen: Counter = Counter()
        found = []
        for name, call in self._calls:
            key = f"{name}#{seen[name]}" if times[name] > 1 else name
            seen[name] += 1
            found.append((key, name, call.get("gradient", torch.zeros(call["shape"]))))
        return found

    def modules(self) -> list[dict]:
        return [
            {"name": key, "type": type(self._modules[name]).__name__, "eps": getattr(self._modules[name], "eps", 0.0)}
            for key, name, _ in self.called()
        ]

    def reduced(self, image: Tensor, gradient: Tensor) -> dict[str, np.ndarray]:
        maps, stats = {}, []
        for key, term in [(names.INPUT, image * gradient)] + [
            (key, _along_channels(self._biases[name], self._modules[name], g) * g) for key, name, g in self.called()
        ]:
            total = term.flatten(1).double().sum(1)
            size = term.abs_().flatten(1)
            channels = torch.full((len(term),), float(term.shape[1]), dtype=torch.float64)
            low, high = size.amin(1).double(), size.amax(1).double()
            stats.append(torch.stack((channels, low, high, total, size.double().sum(1)), 1))
            if term.ndim == 4:
                maps[names.abs_map(key)] = term.sum(1).numpy()
        return {names.STATS_TENSOR: torch.stack(stats, 1).numpy(), **maps}

    def full(self, model: str, image: Tensor, gradient: Tensor) -> dict[str, np.ndarray]:
        tensors = {names.model_input(model): image, names.IMAGE_GRADIENT: gradient}
        for key, name, g in self.called():
            module = self._modules[name]
            tensors[names.output_gradient(key)] = g
            if module.bias is not None:
                tensors[names.parameter(model, key, "bias")] = module.bias
            if isinstance(module, _BATCH_NORMS):
                tensors[names.running(key, "running_mean")] = module.running_mean
                tensors[names.running(key, "running_var")] = module.running_var
                if module.weight is not None:
                    tensors[names.parameter(model, key, "weight")] = module.weight
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _bias(module: nn.Module) -> Tensor | None:
    """(C,) what the module adds to a linear map of its input; None where it adds nothing."""
    if isinstance(module, _BATCH_NORMS):
        if module.running_mean is None:
            return None
        scale = torch.rsqrt(module.running_var + module.eps) * (1 if module.weight is None else module.weight)
        return (0 if module.bias is None else module.bias) - module.running_mean * scale
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and module.bias is not None:
        return module.bias.detach()
    return None


def _along_channels(bias: Tensor, module: nn.Module, gradient: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return bias
    return bias.view(1, -1, *[1] * (gradient.ndim - 2))


def inexact(model: nn.Module) -> list[str]:
    """The modules through which the network is not piecewise linear, with the reason; [] where FullGrad is exact."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
            found.append(f"{name}: {type(module).__name__} without running statistics depends on the batch")
        elif not list(module.children()) and type(module).__module__.startswith("torch.nn"):
            if not isinstance(module, _EXACT):
                found.append(f"{name}: {type(module).__name__} is not piecewise linear")
    return found
