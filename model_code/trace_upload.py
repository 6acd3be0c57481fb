"""Compute the steps of a run, write them and upload them to S3 from a bounded queue.

A thread of its own does all three: a full disk or an unreachable S3 loses a trace and never delays an answer.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glassbox.errors import SettingsError
from glassbox.explanation import trace_format as names
from trace_writer import Tensors, write_collections, write_step

logger = logging.getLogger(__name__)

# Steps and their bytes that may wait before further ones are dropped: the replays of an incident and a minute of live
# traces fit.
QUEUE = 32
REFUSALS = 8 * QUEUE  # the limit for a refusal, which holds a few bytes
QUEUE_BYTES = 256 << 20


class TraceUploader:
    """Writes and uploads the steps of one run in a thread of its own.

    Drops steps when S3 is too slow.

    Args:
        client: a boto3 ``s3`` client.
        destination: ``s3://bucket/prefix``.
        started: the beginning of the run's name. The rest makes the name unique, since every process counts its steps
            from 0.

    Raises:
        SettingsError: the destination is not an S3 URI.
    """

    def __init__(self, client: Any, destination: str, started: str) -> None:
        match = re.fullmatch(r"s3://([^/]+)/(.*[^/])/*", destination)
        if match is None:
            raise SettingsError(f"tensors_output: expected s3://bucket/prefix, got {destination!r}")
        host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
        self._client, (self._bucket, prefix) = client, match.groups()
        run = f"{started}-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._prefix, self._hello = f"{prefix}/{run}", f"{prefix}/hello/{run}.json"
        self._queue: queue.Queue[tuple[Callable[[], Tensors], int] | None] = queue.Queue()
        self._bytes = 0  # of the waiting steps and of the one in progress
        self._changed = threading.Condition()
        self._has_collections = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="trace-upload", daemon=True)
        self._thread.start()

    def put(self, step: Callable[[], Tensors], size: int, *, wait: float = 0, refusal: bool = False) -> bool:
        """Queue a step, and return whether it fits.

        Args:
            step: computes the tensors of the step, in the uploader's thread.
            size: bytes that ``step`` keeps in memory until then.
            wait: seconds to wait for a place in the queue.
            refusal: whether the higher limit for refusals applies.
        """
        limit = REFUSALS if refusal else QUEUE
        with self._changed:
            fits = self._changed.wait_for(
                lambda: self._queue.qsize() < limit and self._bytes + size <= QUEUE_BYTES, wait
            )
            if fits:
                self._bytes += size
                self._queue.put((step, size))
        if not fits:
            self.drop("the upload queue is full")
        return fits

    def hello(self, content: Mapping[str, str]) -> None:
        """Upload the object that proves that this process runs the hook, or log why S3 refuses it."""
        try:
            body = json.dumps(content).encode()
            self._client.put_object(Bucket=self._bucket, Key=self._hello, Body=body)
        except (
            Exception
        ) as error:  # of S3, the network or the credentials: the process has to answer requests
            logger.warning("no hello object: %s: %s", type(error).__name__, error)

    def is_own_thread(self) -> bool:
        """Return whether this is the thread that computes the steps."""
        return threading.current_thread() is self._thread

    def drop(self, reason: str) -> None:
        """Count a lost trace and log the reason."""
        with self._changed:
            self.dropped += 1
        logger.warning("trace dropped, %d so far: %s", self.dropped, " ".join(reason.split()))

    def close(self, seconds: float) -> None:
        """Upload the queued steps for ``seconds`` at most."""
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("%d traces were not uploaded in time", self._queue.qsize())

    def _work(self) -> None:
        # A dropped step keeps its number: S3 may hold a part of it.
        for number, (step, size) in enumerate(iter(self._queue.get, None)):
            try:
                with _temporary_folder() as folder:
                    self._upload(folder, number, step())
            except Exception as error:
                # An error of the disk, S3 or the network must not end the thread: the next step may succeed.
                self.drop(f"{type(error).__name__}: {error}")
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()

    def _upload(self, folder: Path, number: int, tensors: Tensors) -> None:
        files = write_step(folder, number, tensors)
        if not self._has_collections:
            self._put(folder, write_collections(folder, tensors))
            self._has_collections = names.INPUT_IMAGE in tensors  # a refusal holds none of a trace's names
        for file in files:
            self._put(folder, file)

    def _put(self, folder: Path, file: Path) -> None:
        key = f"{self._prefix}/{file.relative_to(folder).as_posix()}"
        self._client.put_object(Bucket=self._bucket, Key=key, Body=file.read_bytes())


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    # A TemporaryDirectory is also removed when a forked child exits, and the parent may still write into it.
    folder = tempfile.mkdtemp(prefix="glassbox-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
