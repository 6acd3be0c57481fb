"""Model servers as local processes: one per instance of a variant, behind one switch per endpoint."""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import random
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.errors import StartFailedError
from local.sagemaker.platform import Platform, split_s3_uri

logger = logging.getLogger("glassbox.hosting")

INVOCATION_SECONDS = 60.0  # SageMaker gives a container 60 s to answer
STOP_SECONDS = 30.0  # and 30 s from SIGTERM to SIGKILL
CLOSE_SECONDS = 8.0  # less when everything stops


@dataclass(frozen=True)
class Answer:
    """A container's HTTP answer."""

    status: int
    body: bytes
    content_type: str | None
    custom_attributes: str | None


class ModelServer:
    """One instance: the image's command with the hosting contract's directories, environment and port."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str], log: Path) -> None:
        self._log = log
        self.port = free_port()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=container_environment(directory, environment)
                | {"SAGEMAKER_BIND_TO_PORT": str(self.port), "BIND_HOST": "127.0.0.1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._directory = directory

    @property
    def exited(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def healthy(self) -> bool:
        """GET /ping answers 200 within 2 s."""
        try:
            return self._request("GET", "/ping", None, {}, timeout=2).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def invoke(self, body: bytes, headers: dict[str, str]) -> Answer:
        """POST /invocations; raises OSError or HTTPException when no answer comes."""
        return self._request("POST", "/invocations", body, headers, timeout=INVOCATION_SECONDS)

    def _request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> Answer:
        # A connection per request: a kept one may be closed by the server in the moment of its use.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {**headers, "Connection": "close"})
            response = connection.getresponse()
            return Answer(
                response.status,
                response.read(),
                response.getheader("Content-Type"),
                response.getheader("X-Amzn-SageMaker-Custom-Attributes"),
            )
        finally:
            connection.close()

    def log_tail(self, size: int = 600) -> str:
        """The last words of the server's log."""
        try:
            return self._log.read_bytes()[-size:].decode(errors="replace").strip()
        except OSError:
            return ""

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL after `seconds`; the instance's directory goes too."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


def container_environment(directory: Path, environment: dict[str, str]) -> dict[str, str]:
    """A container's environment: nothing of ours but the path, a home of its own, OPT_ML and what is given."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "OPT_ML": str(directory / "opt" / "ml"),
        **environment,
    }


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Variant:
    """A production or shadow variant and its instances."""

    name: str
    weight: float
    role_arn: str
    instances: list[ModelServer]
    specification: dict[str, Any]
    model: dict[str, Any]


class Fleet:
    """All instances of one endpoint config; counts the requests it is answering."""

    def __init__(
        self, endpoint: str, config: dict[str, Any], production: list[Variant], shadow: list[Variant]
    ) -> None:
        self.endpoint = endpoint
        self.config = config
        self.ready = False
        self.production = production
        self.shadow = shadow
        self._lock = threading.Condition()
        self._in_flight = 0

    @property
    def variants(self) -> list[Variant]:
        """Production variants, then shadows."""
        return [*self.production, *self.shadow]

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Held while a request is answered, so that nobody stops the fleet under it."""
        with self._lock:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

    def choose(self, target: str | None = None) -> Variant | None:
        """The named variant, or one drawn by weight; None when there is none of that name."""
        if target is not None:
            return next((v for v in self.production if v.name == target), None)
        weights = [v.weight for v in self.production]
        return random.choices(self.production, weights if any(weights) else None)[0]

    def instance(self, variant: Variant) -> ModelServer:
        """One of the variant's instances that is alive, if any is."""
        alive = [instance for instance in variant.instances if not instance.exited]
        return random.choice(alive or variant.instances)

    def drain(self, seconds: float = INVOCATION_SECONDS) -> None:
        """Wait until nobody is being answered any more."""
        with self._lock:
            self._lock.wait_for(lambda: not self._in_flight, seconds)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop every instance, all at once."""
        instances = [instance for variant in self.variants for instance in variant.instances]
        threads = [threading.Thread(target=instance.stop, args=(seconds,)) for instance in instances]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Hosting:
    """Starts fleets and takes care that no process outlives the double."""

    def __init__(self, platform: Platform, startup_seconds: float = 120.0) -> None:
        self._platform = platform
        self._startup_seconds = startup_seconds
        self._lock = threading.Lock()
        self._fleets: set[Fleet] = set()
        self._started = 0
        self._closed = False

    def start(self, endpoint: str, config: dict[str, Any], models: dict[str, dict[str, Any]]) -> Fleet:
        """Start every instance of the config and wait until all answer /ping.

        Raises StartFailedError with the reason SageMaker would give, and the end of the server's log.
        """
        production = [self._variant(v, models) for v in config["ProductionVariants"]]
        shadow = [self._variant(v, models) for v in config.get("ShadowProductionVariants", [])]
        fleet = Fleet(endpoint, config, production, shadow)
        with self._lock:
            self._fleets.add(fleet)
        try:
            for variant in fleet.variants:
                for _ in range(variant.specification.get("InitialInstanceCount", 1)):
                    variant.instances.append(self._instance(endpoint, variant))
            deadline = time.monotonic() + self._startup_seconds
            for variant in fleet.variants:
                for instance in variant.instances:
                    self._await_health(variant, instance, deadline)
        except StartFailedError:
            self.retire(fleet)
            raise
        fleet.ready = True
        return fleet

    def retire(self, fleet: Fleet) -> None:
        """Let the fleet finish its requests, then stop it."""
        fleet.ready = False
        fleet.drain()
        fleet.stop()
        with self._lock:
            self._fleets.discard(fleet)

    def revive(self) -> None:
        """Start again what has died, as SageMaker replaces a container that no longer answers."""
        with self._lock:
            fleets = list(self._fleets)
        for fleet in fleets:
            for variant in fleet.variants:
                for i, instance in enumerate(variant.instances):
                    if fleet.ready and instance.exited and not self._closed:
                        logger.error("a server of %s died: %s", fleet.endpoint, instance.log_tail())
                        self._replace(fleet, variant, i)

    def _replace(self, fleet: Fleet, variant: Variant, index: int) -> None:
        try:
            successor = self._instance(fleet.endpoint, variant)
        except StartFailedError as error:
            logger.error("a server of %s stays down: %s", fleet.endpoint, error)
            return
        try:
            self._await_health(variant, successor, time.monotonic() + self._startup_seconds)
        except StartFailedError as error:
            logger.error("a server of %s stays down: %s", fleet.endpoint, error)
            successor.stop()
        else:
            dead, variant.instances[index] = variant.instances[index], successor
            dead.stop()

    def close(self) -> None:
        """Stop all fleets now, whatever they are doing."""
        with self._lock:
            self._closed = True
            fleets = list(self._fleets)
        threads = [threading.Thread(target=fleet.stop, args=(CLOSE_SECONDS,)) for fleet in fleets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _variant(self, specification: dict[str, Any], models: dict[str, dict[str, Any]]) -> Variant:
        model = models[specification["ModelName"]]
        return Variant(
            name=specification["VariantName"],
            weight=specification.get("InitialVariantWeight", 1.0),
            role_arn=model["ExecutionRoleArn"],
            instances=[],
            specification=specification,
            model=model,
        )

    def _instance(self, endpoint: str, variant: Variant) -> ModelServer:
        containers = variant.model.get("Containers") or [variant.model["PrimaryContainer"]]
        if len(containers) > 1:
            raise StartFailedError("The SageMaker double runs one container per model.")
        [container] = containers
        image = container.get("Image", "")
        command = self._platform.command(image)
        if command is None:
            raise StartFailedError(
                f"Please make sure all images included in the model for the production variant {variant.name} "
                "exist, and that the execution role used to create the model has permissions to access them. "
                f"(No local command stands for {image or container['ModelPackageName']}.)"
            )
        with self._lock:
            if self._closed:
                raise StartFailedError("The embedded AWS is shutting down.")
            self._started += 1
            number = self._started
        directory = self._platform.directory / "instances" / f"{endpoint}-{variant.name}-{number}"
        model_directory = directory / "opt" / "ml" / "model"
        model_directory.mkdir(parents=True)
        if url := container.get("ModelDataUrl"):
            fetch_model(self._platform.s3(variant.role_arn), url, model_directory)
        environment = container.get("Environment", {}) | self._platform.environment(variant.role_arn)
        log = self._platform.directory / "logs" / "endpoints" / endpoint / f"{variant.name}-{number}.log"
        try:
            return ModelServer(command, directory, environment, log)
        except OSError as error:
            raise StartFailedError(f"{image} could not be run: {error}") from error

    def _await_health(self, variant: Variant, instance: ModelServer, deadline: float) -> None:
        while not instance.healthy():
            if instance.exited or time.monotonic() > deadline or self._closed:
                raise StartFailedError(
                    f"The primary container for production variant {variant.name} did not pass the ping health "
                    f"check. Please check CloudWatch logs for this endpoint. Log: {instance.log_tail()}"
                )
            time.sleep(0.05)


def fetch_model(s3: Any, url: str, directory: Path) -> None:
    """Unpack s3://…/model.tar.gz below `directory`; nothing in it may point outside.

    Raises StartFailedError when it is missing, forbidden or no such archive.
    """
    bucket, key = split_s3_uri(url)
    try:
        archive = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (ClientError, BotoCoreError) as error:
        raise StartFailedError(f"Failed to download model data from {url}: {error}") from error
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            tar.extractall(directory, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise StartFailedError(f"Failed to extract model data archive from {url}: {error}") from error
