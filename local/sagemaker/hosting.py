"""Fleets of model servers: one process per instance of a variant, one live fleet per endpoint."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from local.sagemaker.container import INVOCATION_SECONDS, STOP_SECONDS, ModelServer
from local.sagemaker.errors import StartFailedError
from local.sagemaker.model_data import fetch, set_writable, sources
from local.sagemaker.platform import Platform

logger = logging.getLogger("glassbox.hosting")

CLOSE_SECONDS = 8.0  # between SIGTERM and SIGKILL when the whole embedded AWS stops


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
    """All instances of one endpoint config, with a counter of the requests in progress."""

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
        """Production variants, then shadow variants."""
        return [*self.production, *self.shadow]

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Count a request as in progress within the block, so that `drain` waits for it."""
        with self._lock:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

    def choose(self, target: str | None = None) -> Variant | None:
        """Return the named variant (None if unknown), or a random one by weight."""
        if target is not None:
            return next((v for v in self.production if v.name == target), None)
        weights = [v.weight for v in self.production]
        return random.choices(self.production, weights if any(weights) else None)[0]

    def instance(self, variant: Variant) -> ModelServer:
        """Return a random instance of the variant, a running one if possible."""
        alive = [instance for instance in variant.instances if not instance.exited]
        return random.choice(alive or variant.instances)

    def drain(self, seconds: float = INVOCATION_SECONDS) -> None:
        """Wait until no request is in progress."""
        with self._lock:
            self._lock.wait_for(lambda: not self._in_flight, seconds)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop all instances in parallel."""
        instances = [instance for variant in self.variants for instance in variant.instances]
        threads = [threading.Thread(target=instance.stop, args=(seconds,)) for instance in instances]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Hosting:
    """Starts fleets, replaces dead instances and stops every process at the end."""

    def __init__(self, platform: Platform, startup_seconds: float = 120.0) -> None:
        self._platform = platform
        self._startup_seconds = startup_seconds
        self._lock = threading.Lock()
        self._fleets: set[Fleet] = set()
        self._started = 0
        self._closed = False

    def start(self, endpoint: str, config: dict[str, Any], models: dict[str, dict[str, Any]]) -> Fleet:
        """Start every instance of the config and wait until all pass the health check.

        Raises:
            StartFailedError: SageMaker's reason, and the end of the server's log.
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
        """Wait for the fleet's requests in progress, then stop it."""
        fleet.ready = False
        fleet.drain()
        fleet.stop()
        with self._lock:
            self._fleets.discard(fleet)

    def revive(self) -> None:
        """Replace every instance whose process has ended, as SageMaker does."""
        with self._lock:
            fleets = list(self._fleets)
        for fleet in fleets:
            for variant in fleet.variants:
                for i, instance in enumerate(variant.instances):
                    if fleet.ready and instance.exited and not self._closed:
                        logger.error("%s: a model server ended: %s", fleet.endpoint, instance.log_tail())
                        self._replace(fleet, variant, i)

    def _replace(self, fleet: Fleet, variant: Variant, index: int) -> None:
        try:
            successor = self._instance(fleet.endpoint, variant)
        except StartFailedError as error:
            logger.error("%s: no replacement for a model server: %s", fleet.endpoint, error)
            return
        try:
            self._await_health(variant, successor, time.monotonic() + self._startup_seconds)
        except StartFailedError as error:
            logger.error("%s: no replacement for a model server: %s", fleet.endpoint, error)
            successor.stop()
        else:
            dead, variant.instances[index] = variant.instances[index], successor
            dead.stop()

    def close(self) -> None:
        """Stop all fleets without waiting for requests in progress."""
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
                f"(The embedded AWS has no command for {image or container['ModelPackageName']}.)"
            )
        with self._lock:
            if self._closed:
                raise StartFailedError("The embedded AWS is shutting down.")
            self._started += 1
            number = self._started
        directory = self._platform.directory / "instances" / f"{endpoint}-{variant.name}-{number}"
        opt_ml = directory / "opt" / "ml"
        for folder, source in sources(container).items():
            fetch(self._platform.s3(variant.role_arn), source, opt_ml / folder)
            if folder != "model":
                set_writable(opt_ml / folder, writable=False)
        (opt_ml / "model").mkdir(parents=True, exist_ok=True)
        environment = container.get("Environment", {}) | self._platform.environment(variant.role_arn)
        log = self._platform.directory / "logs" / "endpoints" / endpoint / f"{variant.name}-{number}.log"
        try:
            return ModelServer(command, directory, environment, log)
        except OSError as error:
            raise StartFailedError(f"{image}: cannot run: {error}") from error

    def _await_health(self, variant: Variant, instance: ModelServer, deadline: float) -> None:
        while not instance.healthy():
            if instance.exited or time.monotonic() > deadline or self._closed:
                raise StartFailedError(
                    f"The primary container for production variant {variant.name} did not pass the ping health "
                    f"check. Please check CloudWatch logs for this endpoint. Log: {instance.log_tail()}"
                )
            time.sleep(0.05)
