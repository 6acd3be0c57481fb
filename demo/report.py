"""The facts of a demo run: what report.json contains."""

from __future__ import annotations

import msgspec

from glassbox.violation import ViolationDetail


class Step(msgspec.Struct):
    """A line that the demo printed, and when."""

    seconds: float
    text: str


class EndpointState(msgspec.Struct):
    """A status and a config of the endpoint, and when the demo first observed them."""

    seconds: float
    status: str
    config: str


class Notification(msgspec.Struct, kw_only=True):
    """A notification of the stack's topic, and when it arrived."""

    seconds: float = 0.0
    subject: str
    text: str


class Heatmap(msgspec.Struct, kw_only=True):
    """A heat map of the stack's bucket.

    Attributes:
        kind: ``clean`` or ``adversarial`` (the demo's pairs), ``flagged`` (the stack's replays) or ``live``.
        delay: seconds from the demo's request to the heat map, for the pairs.
    """

    id: str
    kind: str
    predicted_class: int
    class_name: str | None
    probability: float
    completeness_error: float | None  # None for a logit of 0
    complete: bool
    key: str
    delay: float | None = None


class AttackFacts(msgspec.Struct, kw_only=True):
    """The method of the attack and what it took."""

    method: str
    target: int
    epsilon: float
    steps: int
    tried: int
    distinct: int
    used: int


class Counted(msgspec.Struct, kw_only=True):
    """The predictions of an hour, as counted in DynamoDB."""

    captured: int
    classes: dict[int, int]
    target_share: float


class Counts(msgspec.Struct, kw_only=True):
    """The counts of the normal traffic and of the attack."""

    normal: Counted
    attack: Counted


class Timings(msgspec.Struct, kw_only=True):
    """Durations in seconds."""

    first_over_threshold_to_violation: float
    violation_to_hooked: float
    hooked_to_restored: float
    request_to_heatmap_median: float
    request_to_heatmap_max: float


class Report(msgspec.Struct, kw_only=True):
    """All facts of a run."""

    headline: str
    data: str
    accuracy: float | None
    model: str
    attack: AttackFacts
    counts: Counts
    violation: ViolationDetail
    failed_requests: int
    heatmaps: list[Heatmap]
    timings: Timings
    steps: list[Step]
    endpoint_configs: list[EndpointState]
    notifications: list[Notification]
