"""Decide which requests to trace, predict with a trace, and queue the trace for upload."""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from glassbox.errors import SettingsError, printable
from glassbox.explanation import trace_format as names
from glassbox.replay_marker import REPAIR, PublicKey, verified_marker
from gradients import Gradients, SampleTerms, merged
from trace_upload import TraceUploader

Array = npt.NDArray[Any]
Request = Mapping[str, str | None]


class RateLimit:
    """Allows at most ``limit`` requests in any 60 seconds.

    Args:
        clock: returns seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._taken: deque[float] = deque(maxlen=limit)
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Count one more request if it is within the limit, and return whether it is."""
        with self._lock:
            now = self._clock()
            if len(self._taken) == self._limit and (not self._taken or now - self._taken[0] < 60):
                return False
            self._taken.append(now)
            return True


class TensorRecorder:
    """Predicts with a trace, and decides which requests get one.

    Args:
        model: takes (N, C, H, W) float32 and returns (N, K) logits. Its parameters are frozen, and their
            values must not change afterwards.
        destination: ``s3://bucket/prefix``; every TensorRecorder writes into a folder of its own below it.
        client: a boto3 ``s3`` client.
        traces_per_minute: the limit for live requests; replays are always traced.
        trace_form: ``reduced`` or ``full``.
        clock: returns seconds, monotonic.
        utcnow: returns the current time.
        replay_key: verifies replay markers; without it every request is live traffic.

    Raises:
        SettingsError: invalid destination or trace form.
    """

    def __init__(
        self,
        model: nn.Module,
        destination: str,
        *,
        client: Any,
        traces_per_minute: int,
        trace_form: str,
        clock: Callable[[], float],
        utcnow: Callable[[], datetime],
        replay_key: PublicKey | None = None,
    ) -> None:
        if trace_form not in (names.REDUCED, names.FULL):
            raise SettingsError(f"TRACE_FORM: expected {names.REDUCED} or {names.FULL}, got {trace_form!r}")
        self._gradients, self._model = Gradients(model, trace_form), model
        self._trace_form, self._utcnow = trace_form, utcnow
        self._lock = threading.Lock()
        self._rate = RateLimit(traces_per_minute, clock)
        self._replay_key = replay_key
        self._uploader = TraceUploader(client, destination, f"{utcnow():%Y%m%dT%H%M%SZ}")

    def wants(
        self, body: bytes, custom_attributes: str | None = None, inference_id: str | None = None
    ) -> dict[str, str | None] | None:
        """Return the request's description for its trace, or None if it must not be traced.

        Replays are always traced, repaired inputs never, live traffic within its limit. Only a marker that verifies
        makes a request a replay or a repaired input.
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
        self, images: Tensor, input_images: Array, request: Request, labels: Sequence[str] | None
    ) -> Tensor:
        """Return the logits (N, K) of ``images``, the same as without a trace.

        The first samples, as many as a step may hold, are traced, each for its predicted class.

        Args:
            images: (N, C, H, W) float32, normalised.
            input_images: (N, H, W, C) uint8, the same images before normalisation.
            request: from :meth:`wants`.
            labels: the classes' names.
        """
        try:
            with self._lock:
                samples = self._samples(images, input_images)
            logits = [sample.output for sample in samples]
            traced = len(samples)
            if traced < len(images):
                with torch.inference_mode():
                    logits.append(self._model(images[traced:]))
            now = f"{self._utcnow():%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
            request = {**request, "time": now, "samples": str(len(images))}
            input_images = input_images[:traced].copy()
            size = input_images.nbytes + sum(sample.nbytes for sample in samples)
            step = partial(self._step, samples, input_images, request, labels)
            if not self._uploader.put(step, size):
                self._refuse(request, "the endpoint had too many traces to upload")
            return torch.cat(logits)
        except Exception as error:  # a tracing error must never fail the request
            reason = f"{type(error).__name__}: {error}"
        self._uploader.drop(reason)
        with torch.inference_mode():
            untraced: Tensor = self._model(images)
        self._refuse(request, reason)
        return untraced

    @property
    def dropped(self) -> int:
        """Number of lost traces."""
        return self._uploader.dropped

    def close(self, seconds: float = 20) -> None:
        """Upload the waiting traces for ``seconds`` at most."""
        self._uploader.close(seconds)

    def _samples(self, images: Tensor, input_images: Array) -> list[SampleTerms]:
        """Return the terms of the first samples, as many as a step may hold.

        Raises:
            ValueError: not even one sample fits.
        """
        available = names.STEP_BYTES - sum(tensor.nbytes for tensor in self._gradients.parameters.values())
        limit = min(len(images), names.STEP_PIXELS // input_images[0, ..., 0].size)
        samples: list[SampleTerms] = []
        # One at a time: the backward pass keeps every activation in memory.
        for image, input_image in zip(images[:limit], input_images[:limit], strict=True):
            sample = self._gradients.compute(image[None])
            available -= sample.nbytes + input_image.nbytes
            if available < 0:
                break
            samples.append(sample)
        if not samples:
            raise ValueError(f"input image {tuple(images[0].shape)}: larger than a step may hold")
        return samples

    def _step(
        self,
        samples: Sequence[SampleTerms],
        input_images: Array,
        request: Request,
        labels: Sequence[str] | None,
    ) -> dict[str, Array]:
        try:
            meta, tensors = merged(samples)
        except ValueError as error:
            if names.REPLAY_EVENT_ID not in request:
                raise
            self._uploader.drop(str(error))
            return self._refusal(request, str(error))
        # Shortened, because long names of a large batch would make the meta larger than the reader accepts.
        class_names = labels and [
            printable(labels[t], names.CLASS_NAME_CHARACTERS) for t in tensors[names.TARGET].tolist()
        ]
        content = self._meta(request, **meta, class_names=class_names)
        return {names.META: content, names.INPUT_IMAGE: input_images, **tensors, **self._gradients.parameters}

    def _refuse(self, request: Request, reason: str) -> None:
        """Upload why a replay has no trace; nothing for live traffic."""
        if names.REPLAY_EVENT_ID in request:
            self._uploader.put(partial(self._refusal, request, reason), 0, refusal=True)

    def _refusal(self, request: Request, reason: str) -> dict[str, Array]:
        """Return a step without tensors that holds the reason."""
        refused = reason[: names.REASON_CHARACTERS]
        nothing: dict[str, Any] = {"terms": [], "held": {}, "unaccounted": [], "class_names": None}
        return {names.META: self._meta(request, **nothing, refused=refused)}

    def _meta(self, request: Request, **entries: Any) -> Array:
        meta = {
            "version": names.VERSION,
            "trace_form": self._trace_form,
            "model": self._gradients.model_name,
            **entries,
            "request": request,
        }
        return np.frombuffer(json.dumps(meta).encode(), np.uint8)
