"""Decide which requests to trace, answer them, and queue their traces."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, Mapping, Optional

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from glassbox.errors import SettingsError, printable
from glassbox.explanation import trace_format as names
from glassbox.replay_marker import REPAIR, PublicKey, verified_marker
from glassbox.settings import from_env, setting
from gradients import Gradients, SampleTerms, merged, self_test_error
from trace_memory import allowed_bytes, is_out_of_memory
from trace_upload import TraceUploader

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Request = Mapping[str, "str | None"]

REPLAY_SECONDS = 30.0  # below the 40 s that a replay waits for its answer


@dataclass(frozen=True)
class Settings:
    """The container's environment."""

    tensors_output: Optional[str] = None
    traces_per_minute: int = setting(10, within=(0, None))
    trace_form: str = "reduced"
    blur_test: bool = True
    trace_memory_mib: Optional[int] = setting(None, within=(1, None))
    replay_key: Optional[str] = None
    replay_key_arn: Optional[str] = None


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings, whose names may be in lower case.

    Raises:
        SettingsError: names every problem.
    """
    return from_env(Settings, {name.upper(): value for name, value in environment.items()})


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
        model: the network of :meth:`predict`; takes (N, C, H, W) float32 and returns (N, K) logits. Its parameters are
            frozen, and their values must not change afterwards. None: every network is given to :meth:`record`.
        destination: ``s3://bucket/prefix``; every TensorRecorder writes into a folder of its own below it.
        client: a boto3 ``s3`` client.
        traces_per_minute: the limit for live requests; replays are always traced.
        trace_form: ``reduced`` or ``full``.
        clock: returns seconds, monotonic.
        utcnow: returns the current time.
        replay_key: verifies replay markers; without it every request is live traffic.
        blur_test: measure with every trace what blurring the best tenth of the image does to the probability.
        trace_memory: bytes that the explanation of an image may take; default :func:`trace_memory.allowed_bytes`.

    Raises:
        SettingsError: invalid destination or trace form.
    """

    def __init__(
        self,
        model: nn.Module | None,
        destination: str,
        *,
        client: Any,
        traces_per_minute: int,
        trace_form: str,
        clock: Callable[[], float],
        utcnow: Callable[[], datetime],
        replay_key: PublicKey | None = None,
        blur_test: bool = True,
        trace_memory: int | None = None,
    ) -> None:
        if trace_form not in (names.REDUCED, names.FULL):
            raise SettingsError(f"TRACE_FORM: expected {names.REDUCED} or {names.FULL}, got {trace_form!r}")
        self._trace_form, self._blur_test, self._utcnow = trace_form, blur_test, utcnow
        self._memory = allowed_bytes if trace_memory is None else lambda _: trace_memory
        self._is_explaining, self._off, self._switching = False, "", threading.Lock()
        self._model = None if model is None else model.eval().requires_grad_(False)
        self._gradients = None if model is None else self.gradients_of(model)
        self._rate = RateLimit(traces_per_minute, clock)
        self._replay_key = replay_key
        self._uploader = TraceUploader(client, destination, f"{utcnow():%Y%m%dT%H%M%SZ}")

    def gradients_of(self, network: nn.Module) -> Gradients:
        """Return what :meth:`record` needs of a network."""
        return Gradients(network, self._trace_form, blur_test=self._blur_test, memory=self._memory)

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
        if marker is None and (self._off or not self._rate.take()):
            return None
        request = {
            "inference_id": inference_id,
            "custom_attributes": custom_attributes,
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if marker:
            request.update({names.REPLAY_INCIDENT: marker.incident, names.REPLAY_EVENT_ID: marker.event_id})
        return request

    def predict(
        self, images: Tensor, input_images: Array, request: Request, labels: Sequence[str] | None
    ) -> Tensor:
        """Return the logits (N, K) of a plain forward pass, and :meth:`record` the request.

        Args:
            images: (N, C, H, W) float32, normalised.
            input_images: (N, H, W, C) uint8, the same images before normalisation.
            request: from :meth:`wants`.
            labels: the classes' names.
        """
        if self._model is None or self._gradients is None:
            raise TypeError("predict: expected a model, got None. Give one to the constructor.")
        explained = images[: explained_samples(images)].clone()  # the network may write into its input
        try:
            with torch.inference_mode():
                logits: Tensor = self._model(images)
        except Exception as error:
            self.failed(error)
            raise
        self.record(self._gradients, explained, input_images, logits, request, labels)
        return logits

    def record(
        self,
        gradients: Gradients,
        images: Tensor,
        input_images: Array,
        logits: Tensor,
        request: Request,
        labels: Sequence[str] | None = None,
        response: bytes | None = None,
    ) -> None:
        """Queue the trace of an answered request.

        The thread of the uploader computes it: of the first samples, as many as a step may hold, each for its predicted
        class. A replay waits for a place in the queue, REPLAY_SECONDS at most; live requests never wait.

        Args:
            gradients: of the network that gave the answer.
            images: the first :func:`explained_samples` of the network's input; must not change afterwards.
            input_images: (N, H, W, C) uint8, at least as many samples.
            logits: (N, K), the answer for all samples of the request.
            request: from :meth:`wants`.
            labels: the classes' names.
            response: the body that another's code made of the answer, empty where it is not seen; None for our code.
        """
        now = f"{self._utcnow():%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
        request = {**request, "time": now, "samples": str(len(logits))}
        input_images = input_images[: len(images)].copy()
        answered = logits[: len(images)].clone()
        if response is not None and len(response) > names.RESPONSE_BYTES:
            response = b""
        step = partial(self._step, gradients, images, input_images, answered, request, labels, response)
        size = input_images.nbytes + images.element_size() * images.nelement() + len(response or b"")
        wait = REPLAY_SECONDS if names.REPLAY_EVENT_ID in request else 0
        if not self._uploader.put(step, size, wait=wait):
            reason = "the endpoint had too many traces to compute and upload"
            self.refuse(request, reason, gradients.model_name)

    def hello(self, adapter: str, replays: str = "") -> None:
        """Upload the object that proves that the hook has loaded.

        Args:
            adapter: how the requests are read.
            replays: why no replay is recognised, otherwise empty.
        """
        error = self_test_error()
        self._uploader.hello(
            {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "self_test": "passed" if error is None else f"failed: {error}",
                "adapter": adapter,
                "replays": replays[: names.REASON_CHARACTERS],
            }
        )

    def is_own_thread(self) -> bool:
        """Return whether this is the thread that computes the traces."""
        return self._uploader.is_own_thread()

    def failed(self, error: Exception) -> None:
        """Switch explaining off if this error of a live call means that a trace took its memory."""
        if self._is_explaining and is_out_of_memory(error):
            self._switch_off("a live call during a trace", error)

    def _switch_off(self, where: str, error: Exception) -> None:
        """Explain nothing from now on in this process, because live requests need the memory."""
        with self._switching:
            if not self._off:
                self._off = (
                    f"explaining is off since {where} ran out of memory ({type(error).__name__}: {error})"
                )
                logger.error("%s. Restart the endpoint with more memory.", " ".join(self._off.split()))

    @property
    def dropped(self) -> int:
        """Number of lost traces."""
        return self._uploader.dropped

    def close(self, seconds: float = 20) -> None:
        """Upload the waiting traces for ``seconds`` at most."""
        self._uploader.close(seconds)

    def _step(
        self,
        gradients: Gradients,
        images: Tensor,
        input_images: Array,
        answered: Tensor,
        request: Request,
        labels: Sequence[str] | None,
        response: bytes | None,
    ) -> dict[str, Array]:
        """Return the tensors of a step; for a replay that cannot be traced, those of a refusal."""
        try:
            if self._off:
                raise RuntimeError(self._off)
            self._is_explaining = True
            samples = self._samples(gradients, images, input_images, answered)
            meta, tensors = merged(samples)
        except Exception as error:  # the network's code may raise anything
            if is_out_of_memory(error):
                self._switch_off("a trace", error)
            if names.REPLAY_EVENT_ID not in request:
                raise
            reason = f"{type(error).__name__}: {error}"
            self._uploader.drop(reason)
            return self._refusal(request, reason, gradients.model_name)
        finally:
            self._is_explaining = False
        input_images = input_images[: len(samples)]
        # Shortened, because long names of a large batch would make the meta larger than the reader accepts.
        class_names = labels and [
            printable(labels[t], names.CLASS_NAME_CHARACTERS) for t in tensors[names.TARGET].tolist()
        ]
        content = self._meta(request, gradients.model_name, **meta, class_names=class_names)
        if response is not None:
            tensors[names.RESPONSE] = np.frombuffer(response, np.uint8)
        return {names.META: content, names.INPUT_IMAGE: input_images, **tensors, **gradients.parameters}

    def _samples(
        self, gradients: Gradients, images: Tensor, input_images: Array, answered: Tensor
    ) -> list[SampleTerms]:
        """Return the terms of the first samples, as many as a step may hold.

        Raises:
            ValueError: not even one sample fits.
        """
        available = names.STEP_BYTES - sum(tensor.nbytes for tensor in gradients.parameters.values())
        samples: list[SampleTerms] = []
        # One at a time: the backward pass keeps every activation in memory.
        for image, input_image, answer in zip(images, input_images, answered):
            sample = gradients.compute(image[None], int(answer.argmax()))
            if not _is_same(sample.output[0], answer):
                reason = f"{gradients.model_name}: {names.OTHER_ANSWER}"
                sample = replace(sample, unaccounted=[reason, *sample.unaccounted])
            available -= sample.nbytes + input_image.nbytes
            if available < 0:
                break
            samples.append(sample)
        if not samples:
            raise ValueError(f"input image {tuple(images.shape[1:])}: larger than a step may hold")
        return samples

    def refuse(self, request: Request, reason: str, model: str) -> None:
        """Upload why a replay has no trace, and nothing for live traffic.

        Args:
            model: class of the network, or empty.
        """
        if names.REPLAY_EVENT_ID in request:
            self._uploader.put(partial(self._refusal, request, reason, model), 0, refusal=True)

    def _refusal(self, request: Request, reason: str, model: str) -> dict[str, Array]:
        """Return a step without tensors that holds the reason."""
        refused = reason[: names.REASON_CHARACTERS]
        nothing: dict[str, Any] = {"terms": [], "held": {}, "unaccounted": [], "class_names": None}
        return {names.META: self._meta(request, model, **nothing, refused=refused)}

    def _meta(self, request: Request, model: str, **entries: Any) -> Array:
        meta = {
            "version": names.VERSION,
            "trace_form": self._trace_form,
            "model": model,
            **entries,
            "request": request,
        }
        return np.frombuffer(json.dumps(meta).encode(), np.uint8)


def explained_samples(images: Tensor) -> int:
    """Return how many of these images (N, C, H, W) a step may hold."""
    return names.STEP_PIXELS // (images.shape[2] * images.shape[3])


def connected(
    settings: Settings, destination: str, model: nn.Module | None = None, *, adapter: str = "inference.py"
) -> TensorRecorder:
    """Return a recorder that uploads to S3, and upload its hello object.

    Both use the endpoint's role.

    With a model, a key of the replays that cannot be read raises: every replay would be answered without a trace.
    Without one, where the code is not ours, the hello object gives the reason, and replays count as live traffic.

    Args:
        adapter: how the requests are read, for the hello object.

    Raises:
        SettingsError: see :class:`TensorRecorder`.
        BadInputError: the replay key is invalid.
    """
    # Imported here, because the plain model needs no AWS SDK.
    import boto3
    from botocore.config import Config

    # Short timeouts: while one upload waits, further traces are dropped.
    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 2})
    try:
        replay_key, replays = _replay_key(settings), ""
    except Exception as error:  # of KMS, the network, the credentials or the key
        if model is not None:
            raise
        replay_key, replays = None, f"{type(error).__name__}: {error}"
    recorder = TensorRecorder(
        model,
        destination,
        client=boto3.client("s3", region_name=os.environ.get("AWS_REGION"), config=config),
        traces_per_minute=settings.traces_per_minute,
        trace_form=settings.trace_form,
        clock=time.monotonic,
        utcnow=lambda: datetime.now(timezone.utc),
        replay_key=replay_key,
        blur_test=settings.blur_test,
        trace_memory=settings.trace_memory_mib and settings.trace_memory_mib << 20,
    )
    recorder.hello(adapter, replays)
    return recorder


def _replay_key(settings: Settings) -> PublicKey | None:
    """Return the public key of the replays: REPLAY_KEY, or that of the KMS key REPLAY_KEY_ARN."""
    if settings.replay_key:
        return PublicKey.from_text(settings.replay_key)
    if settings.replay_key_arn:
        import boto3

        kms = boto3.client("kms", region_name=settings.replay_key_arn.split(":")[3])
        return PublicKey.from_der(kms.get_public_key(KeyId=settings.replay_key_arn)["PublicKey"])
    logger.warning(
        "REPLAY_KEY, REPLAY_KEY_ARN: expected one of them, got none. Replays count as live traffic."
    )
    return None


def _is_same(logits: Tensor, answer: Tensor) -> bool:
    """Return whether both passes gave the same logits, which other kernels of autograd may round differently."""
    tolerance = 1e-4 * float(answer.abs().max())
    return torch.allclose(logits, answer, rtol=1e-4, atol=tolerance, equal_nan=True)
