"""Decide which requests to trace, answer them, and queue their traces."""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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

REPLAY_SECONDS = 30.0  # below the 40 s that a replay waits for its answer


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
    """Answers requests, and traces some of them after the answer.

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
        blur_test: measure with every trace what blurring the best tenth of the image does to the probability.

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
        blur_test: bool = True,
    ) -> None:
        if trace_form not in (names.REDUCED, names.FULL):
            raise SettingsError(f"TRACE_FORM: expected {names.REDUCED} or {names.FULL}, got {trace_form!r}")
        self._gradients, self._model = Gradients(model, trace_form, blur_test=blur_test), model
        self._trace_form, self._utcnow = trace_form, utcnow
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
        """Return the logits (N, K) of ``images`` from a plain forward pass, and queue the trace.

        The thread of the uploader computes the trace afterwards: of the first samples, as many as a step may hold, each
        for its predicted class. A replay waits for a place in the queue, REPLAY_SECONDS at most; live requests never
        wait.

        Args:
            images: (N, C, H, W) float32, normalised.
            input_images: (N, H, W, C) uint8, the same images before normalisation.
            request: from :meth:`wants`.
            labels: the classes' names.
        """
        limit = names.STEP_PIXELS // input_images[0, ..., 0].size
        explained = images[:limit].clone()  # the network may write into its input
        with torch.inference_mode():
            logits: Tensor = self._model(images)
        now = f"{self._utcnow():%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
        request = {**request, "time": now, "samples": str(len(images))}
        input_images = input_images[:limit].copy()
        step = partial(self._step, explained, input_images, logits[:limit].clone(), request, labels)
        size = input_images.nbytes + explained.nbytes
        wait = REPLAY_SECONDS if names.REPLAY_EVENT_ID in request else 0
        if not self._uploader.put(step, size, wait=wait):
            self._refuse(request, "the endpoint had too many traces to compute and upload")
        return logits

    @property
    def dropped(self) -> int:
        """Number of lost traces."""
        return self._uploader.dropped

    def close(self, seconds: float = 20) -> None:
        """Upload the waiting traces for ``seconds`` at most."""
        self._uploader.close(seconds)

    def _step(
        self,
        images: Tensor,
        input_images: Array,
        answered: Tensor,
        request: Request,
        labels: Sequence[str] | None,
    ) -> dict[str, Array]:
        """Return the tensors of a step; for a replay that cannot be traced, those of a refusal."""
        try:
            samples = self._samples(images, input_images, answered)
            meta, tensors = merged(samples)
        except Exception as error:  # the network's code may raise anything
            if names.REPLAY_EVENT_ID not in request:
                raise
            reason = f"{type(error).__name__}: {error}"
            self._uploader.drop(reason)
            return self._refusal(request, reason)
        input_images = input_images[: len(samples)]
        # Shortened, because long names of a large batch would make the meta larger than the reader accepts.
        class_names = labels and [
            printable(labels[t], names.CLASS_NAME_CHARACTERS) for t in tensors[names.TARGET].tolist()
        ]
        content = self._meta(request, **meta, class_names=class_names)
        return {names.META: content, names.INPUT_IMAGE: input_images, **tensors, **self._gradients.parameters}

    def _samples(self, images: Tensor, input_images: Array, answered: Tensor) -> list[SampleTerms]:
        """Return the terms of the first samples, as many as a step may hold.

        Raises:
            ValueError: not even one sample fits.
        """
        available = names.STEP_BYTES - sum(tensor.nbytes for tensor in self._gradients.parameters.values())
        samples: list[SampleTerms] = []
        # One at a time: the backward pass keeps every activation in memory.
        for image, input_image, answer in zip(images, input_images, answered, strict=True):
            sample = self._gradients.compute(image[None], int(answer.argmax()))
            if not _is_same(sample.output[0], answer):
                reason = f"{self._gradients.model_name}: {names.OTHER_ANSWER}"
                sample = replace(sample, unaccounted=[reason, *sample.unaccounted])
            available -= sample.nbytes + input_image.nbytes
            if available < 0:
                break
            samples.append(sample)
        if not samples:
            raise ValueError(f"input image {tuple(images.shape[1:])}: larger than a step may hold")
        return samples

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


def _is_same(logits: Tensor, answer: Tensor) -> bool:
    """Return whether both passes gave the same logits, which other kernels of autograd may round differently."""
    tolerance = 1e-4 * float(answer.abs().max())
    return torch.allclose(logits, answer, rtol=1e-4, atol=tolerance, equal_nan=True)
