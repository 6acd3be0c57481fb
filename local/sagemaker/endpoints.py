"""Endpoints: creation, blue/green updates, deletion and their events."""

from __future__ import annotations

import copy
import re
import threading
import time
from collections import Counter
from typing import Any

from local.sagemaker.errors import SageMakerError, StartFailedError, invalid
from local.sagemaker.hosting import Fleet, Hosting, Variant
from local.sagemaker.platform import Platform
from local.sagemaker.quotas import Quotas
from local.sagemaker.records import Record, Records

FAILURE_REASON_LENGTH = 1024

# The properties of a live variant, and the config members that give their initial values.
_LIVE_PROPERTIES = {"DesiredInstanceCount": "InitialInstanceCount", "DesiredWeight": "InitialVariantWeight"}


class Endpoints:
    """The live fleet of each endpoint, and its updates from one endpoint config to another.

    Args:
        update_seconds: the shortest time in which an endpoint is created or updated.
    """

    def __init__(
        self,
        platform: Platform,
        records: Records,
        hosting: Hosting,
        quotas: Quotas,
        update_seconds: float = 0.0,
    ) -> None:
        self._platform = platform
        self._records = records
        self._hosting = hosting
        self._quotas = quotas
        self._update_seconds = update_seconds
        self._changed = threading.Condition(records.lock)
        self._live: dict[str, Fleet] = {}
        self._starting: dict[
            str, Counter[str]
        ] = {}  # instances of fleets that are not live yet, by endpoint and type
        self._closed = threading.Event()

    # -- operations

    def create(self, request: Record) -> Record:
        """Handle CreateEndpoint."""
        with self._records.lock:
            self._records.get("endpoint-config", request["EndpointConfigName"])
            record = self._records.add(
                "endpoint", request, EndpointStatus="Creating", LastModifiedTime=time.time()
            )
            try:
                self._reserve(request, {})
            except SageMakerError:
                self._records.delete("endpoint", request)
                raise
        self._roll_out(record, request["EndpointConfigName"])
        return {"EndpointArn": record["EndpointArn"]}

    def update(self, request: Record) -> Record:
        """Handle UpdateEndpoint, with the config's counts and weights or the retained live ones."""
        with self._records.lock:
            excluded = {p["VariantPropertyType"] for p in request.get("ExcludeRetainedVariantProperties", ())}
            retained = _LIVE_PROPERTIES.keys() - excluded if request.get("RetainAllVariantProperties") else ()
            fleet = self._live.get(request["EndpointName"])
            kept = {
                v.name: {_LIVE_PROPERTIES[p]: _summary(v)[p] for p in retained}
                for v in (fleet.production if fleet else ())
            }
            record = self._begin_update(request, request["EndpointConfigName"], kept)
        self._roll_out(record, request["EndpointConfigName"], kept)
        return {"EndpointArn": record["EndpointArn"]}

    def scale(self, request: Record) -> Record:
        """Handle UpdateEndpointWeightsAndCapacities, which autoscaling calls."""
        with self._records.lock:
            record = self._records.get("endpoint", request["EndpointName"])
            config = record["EndpointConfigName"]
            record = self._begin_update(request, config, None)
        wanted = {
            v["VariantName"]: {_LIVE_PROPERTIES[p]: v[p] for p in _LIVE_PROPERTIES if p in v}
            for v in request["DesiredWeightsAndCapacities"]
        }
        self._roll_out(record, config, wanted)
        return {"EndpointArn": record["EndpointArn"]}

    def _begin_update(self, request: Record, config: str, kept: dict[str, dict[str, Any]] | None) -> Record:
        """Set the status to Updating; `kept` is `_roll_out`'s, or None if AWS starts no second fleet."""
        record = self._records.get("endpoint", request["EndpointName"])
        self._records.get("endpoint-config", config)
        if record["EndpointStatus"] != "InService":
            raise _in_progress(record)
        if kept is not None:
            self._reserve(request, kept)
        record.pop("FailureReason", None)
        now = time.time()
        pending = {"EndpointConfigName": config, "StartTime": now}
        record.update(EndpointStatus="Updating", LastModifiedTime=now, PendingDeploymentSummary=pending)
        return record

    def describe(self, request: Record) -> Record:
        """Handle DescribeEndpoint, which adds the live fleet's variants to the record."""
        with self._records.lock:
            described = self._records.describe("endpoint", request)
            fleet = self._live.get(request["EndpointName"])
        if fleet is None:
            return described
        described["ProductionVariants"] = [_summary(v) for v in fleet.production]
        if fleet.shadow:
            described["ShadowProductionVariants"] = [_summary(v) for v in fleet.shadow]
        if capture := fleet.config.get("DataCaptureConfig"):
            enabled = capture.get("EnableCapture", False)
            described["DataCaptureConfig"] = {
                "EnableCapture": enabled,
                "CaptureStatus": "Started" if enabled else "Stopped",
                "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
                "DestinationS3Uri": capture["DestinationS3Uri"],
                "KmsKeyId": capture.get("KmsKeyId", ""),
            }
        return described

    def delete(self, request: Record) -> Record:
        """Handle DeleteEndpoint, after which the servers finish their requests and stop."""
        with self._records.lock:
            record = self._records.get("endpoint", request["EndpointName"])
            if record["EndpointStatus"] in ("Creating", "Updating"):
                raise _in_progress(record)
            record.update(EndpointStatus="Deleting", LastModifiedTime=time.time())
            fleet = self._live.pop(record["EndpointName"], None)
            self._records.delete("endpoint", request)
        self._announce(record)
        if fleet:
            threading.Thread(target=self._hosting.retire, args=(fleet,), daemon=True).start()
        return {}

    # -- for invocations and CloudFormation

    def live(self, name: str) -> Fleet | None:
        """Return the fleet that serves the endpoint now."""
        with self._records.lock:
            return self._live.get(name)

    def await_settled(self, name: str, seconds: float = 300.0) -> Record:
        """Wait until the endpoint is neither Creating nor Updating and return its description."""

        def settled() -> bool:
            return self._records.get("endpoint", name)["EndpointStatus"] not in ("Creating", "Updating")

        with self._changed:
            self._changed.wait_for(settled, seconds)
        return self.describe({"EndpointName": name})

    def close(self) -> None:
        """Abandon the updates in progress."""
        self._closed.set()

    # -- roll-out

    def _reserve(self, request: Record, kept: dict[str, dict[str, Any]]) -> None:
        """Raise ResourceLimitExceeded if another fleet would exceed a quota; the caller holds the lock."""
        config = self._records.get("endpoint-config", request["EndpointConfigName"])
        wanted = Counter[str]()
        for variant in (*config["ProductionVariants"], *config.get("ShadowProductionVariants", ())):
            count = (variant | kept.get(variant["VariantName"], {})).get("InitialInstanceCount", 1)
            wanted[variant.get("InstanceType", "")] += count
        used = sum(self._starting.values(), Counter[str]())
        for fleet in self._live.values():
            for live in fleet.variants:
                used[live.specification.get("InstanceType", "")] += len(live.instances)
        self._quotas.require(used, wanted)
        self._starting[request["EndpointName"]] = wanted

    def _roll_out(
        self, record: Record, config_name: str, overridden: dict[str, dict[str, Any]] | None = None
    ) -> None:
        """Start the update in a thread; `overridden` are members of the config's variants, by variant name."""
        with self._records.lock:
            config = self._records.describe("endpoint-config", {"EndpointConfigName": config_name})
            for variant in config["ProductionVariants"]:
                variant.update((overridden or {}).get(variant["VariantName"], {}))
            variants = config["ProductionVariants"] + config.get("ShadowProductionVariants", [])
            models = {v["ModelName"]: self._records.describe("model", v) for v in variants}
        self._announce(record)
        threading.Thread(
            target=self._blue_green, args=(record, config, models), name="roll-out", daemon=True
        ).start()

    def _blue_green(self, record: Record, config: Record, models: dict[str, Record]) -> None:
        """Start the new fleet, switch to it and drain the old one; keep the old one on a failure."""
        name, began = record["EndpointName"], time.monotonic()
        try:
            fleet = self._hosting.start(name, config, models)
        except StartFailedError as error:
            self._settle(record, failure=str(error))
            return
        if self._closed.wait(max(0.0, self._update_seconds - (time.monotonic() - began))):
            return
        with self._records.lock:
            old, self._live[name] = self._live.get(name), fleet
            record["EndpointConfigName"] = config["EndpointConfigName"]
        self._settle(record)
        if old:
            self._hosting.retire(old)

    def _settle(self, record: Record, failure: str | None = None) -> None:
        with self._changed:
            self._starting.pop(record["EndpointName"], None)
            serving = record["EndpointName"] in self._live
            record.pop("PendingDeploymentSummary", None)
            record.update(EndpointStatus="InService" if serving else "Failed", LastModifiedTime=time.time())
            if failure:
                record["FailureReason"] = failure[:FAILURE_REASON_LENGTH]
            self._changed.notify_all()
        self._announce(record)

    def _announce(self, record: Record) -> None:
        """Emit `SageMaker Endpoint State Change`, whose status is UPPER_SNAKE, unlike the API's."""
        with self._records.lock:
            record = copy.deepcopy(record)
            try:
                config = self._records.get("endpoint-config", record["EndpointConfigName"])
            except SageMakerError:  # AWS allows to delete the config of a running endpoint
                config = {"ProductionVariants": []}
            variants = [
                {
                    "DesiredWeight": float(v.get("InitialVariantWeight", 1)),
                    "DesiredInstanceCount": float(v.get("InitialInstanceCount", 1)),
                }
                for v in config["ProductionVariants"]
            ]
        detail: dict[str, Any] = {
            "EndpointName": record["EndpointName"],
            "EndpointArn": record["EndpointArn"],
            "EndpointConfigName": record["EndpointConfigName"],
            "ProductionVariants": variants,
            "EndpointStatus": re.sub(r"(?<=[a-z])(?=[A-Z])", "_", record["EndpointStatus"]).upper(),
            "CreationTime": float(int(record["CreationTime"] * 1000)),
            "LastModifiedTime": float(int(record["LastModifiedTime"] * 1000)),
            "Tags": {},
        }
        if "FailureReason" in record:
            detail["FailureReason"] = record["FailureReason"]
        self._platform.emit("SageMaker Endpoint State Change", detail, [record["EndpointArn"]])


def _in_progress(record: Record) -> SageMakerError:
    return invalid(f'Cannot update in-progress endpoint "{record["EndpointArn"]}".')


def _summary(variant: Variant) -> Record:
    count = len(variant.instances)
    return {
        "VariantName": variant.name,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        "CurrentInstanceCount": count,
        "DesiredInstanceCount": count,
    }
