"""Counts and verdicts -> the files of Model Monitor, and CloudWatch metrics.

SageMaker developer guide, "Schema for statistics", "Schema for constraints" and "Schema for violations".
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from glassbox.monitoring.checks import CLASS_SHARE, DRIFT, LOW_CONFIDENCE_SHARE, UNREADABLE_SHARE, Verdict
from glassbox.monitoring.counts import BUCKETS, Confidences, Counts
from glassbox.monitoring.response import PredictedClass
from glassbox.timestamps import format_timestamp

CLASS_FEATURE, CONFIDENCE_FEATURE = "PredictedClass", "Confidence"

# Classes with their own CloudWatch metric; all others count as ClassOther.
SHARES = {
    CLASS_SHARE: "LargestClassShare",
    LOW_CONFIDENCE_SHARE: "LowConfidenceShare",
    DRIFT: "DriftDistance",
    UNREADABLE_SHARE: "UnreadableShare",
}

_FEATURES = {
    CLASS_SHARE: (CLASS_FEATURE, "baseline_drift_check"),
    DRIFT: (CLASS_FEATURE, "baseline_drift_check"),
    LOW_CONFIDENCE_SHARE: (CONFIDENCE_FEATURE, "baseline_drift_check"),
    UNREADABLE_SHARE: (CLASS_FEATURE, "completeness_check"),
}


def statistics(counts: Counts, confidences: Confidences) -> dict[str, Any]:
    """Return statistics.json, with unreadable records as missing classes."""
    features: list[dict[str, Any]] = [
        {
            "name": CLASS_FEATURE,
            "inferred_type": "String",
            "string_statistics": {
                "common": {"num_present": counts.sample_size, "num_missing": counts.unreadable},
                "distinct_count": len(counts.classes),
                "distribution": {
                    "categorical": {
                        "buckets": [{"value": str(c), "count": n} for c, n in by_class(counts.classes)]
                    }
                },
            },
        }
    ]
    if confidences.sample_size:
        mean = confidences.sum / confidences.sample_size
        features.append(
            {
                "name": CONFIDENCE_FEATURE,
                "inferred_type": "Fractional",
                "numerical_statistics": {
                    "common": {
                        "num_present": confidences.sample_size,
                        "num_missing": counts.sample_size - confidences.sample_size,
                    },
                    "mean": mean,
                    "sum": confidences.sum,
                    "std_dev": math.sqrt(
                        max(0.0, confidences.squares / confidences.sample_size - mean * mean)
                    ),
                    "min": confidences.minimum,
                    "max": confidences.maximum,
                    "distribution": {
                        "kll": {
                            "buckets": [
                                {"lower_bound": i / BUCKETS, "upper_bound": (i + 1) / BUCKETS, "count": n}
                                for i, n in enumerate(confidences.buckets)
                            ]
                        }
                    },
                },
            }
        )
    return {"version": 0, "dataset": {"item_count": counts.records + counts.unreadable}, "features": features}


def constraints(counts: Counts, confidences: Confidences) -> dict[str, Any]:
    """Return constraints.json, as these counts suggest it for later ones."""
    records = counts.records + counts.unreadable
    features: list[dict[str, Any]] = [
        {
            "name": CLASS_FEATURE,
            "inferred_type": "String",
            "completeness": counts.records / records if records else 1.0,
            "string_constraints": {"domains": [str(c) for c, _ in by_class(counts.classes)]},
        }
    ]
    if confidences.sample_size:
        features.append(
            {
                "name": CONFIDENCE_FEATURE,
                "inferred_type": "Fractional",
                "completeness": confidences.sample_size / counts.sample_size if counts.sample_size else 1.0,
                "num_constraints": {"is_non_negative": True},
            }
        )
    return {
        "version": 0,
        "features": features,
        "monitoring_config": {
            "evaluate_constraints": "Enabled",
            "emit_metrics": "Enabled",
            "datatype_check_threshold": 0.1,
            "domain_content_threshold": 0.1,
            "distribution_constraints": {
                "perform_comparison": "Enabled",
                "comparison_threshold": 0.1,
                "comparison_method": "Simple",
            },
        },
    }


def violations(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Return constraint_violations.json of the violated verdicts."""
    return {
        "violations": [
            {
                "feature_name": _FEATURES[verdict.check][0],
                "constraint_check_type": _FEATURES[verdict.check][1],
                "description": verdict.reason,
            }
            for verdict in verdicts
            if verdict.violated
        ]
    }


def cloudwatch(
    counts: Counts, confidences: Confidences, verdicts: Iterable[Verdict], dimensions: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Return the lines of cloudwatch_metrics.jsonl under Model Monitor's names.

    Their timestamp is the end of the verdicts' window.
    """
    verdicts = list(verdicts)
    common = {
        "Timestamp": format_timestamp(max(v.window.end for v in verdicts)),
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
    }
    numbers = {c: n for c, n in counts.classes.items() if isinstance(c, int)}
    if numbers:
        yield (
            _statistic(
                f"feature_data_{CLASS_FEATURE}",
                min(numbers),
                max(numbers),
                sum(numbers.values()),
                sum(c * n for c, n in numbers.items()),
            )
            | common
        )
    if confidences.sample_size:
        yield (
            _statistic(
                f"feature_data_{CONFIDENCE_FEATURE}",
                confidences.minimum,
                confidences.maximum,
                confidences.sample_size,
                confidences.sum,
            )
            | common
        )
    yield {"MetricName": f"feature_non_null_{CLASS_FEATURE}", "Value": counts.sample_size} | common
    yield {"MetricName": f"feature_non_null_{CONFIDENCE_FEATURE}", "Value": confidences.sample_size} | common
    drifts = [v.value for v in verdicts if v.check == DRIFT and v.value is not None]
    if drifts:
        yield {"MetricName": f"feature_baseline_drift_{CLASS_FEATURE}", "Value": max(drifts)} | common


def _statistic(name: str, minimum: float, maximum: float, sample_size: int, total: float) -> dict[str, Any]:
    values = {"Minimum": minimum, "Maximum": maximum, "SampleCount": sample_size, "Sum": total}
    return {"MetricName": name, "StatisticValues": values}


def by_class(classes: Mapping[PredictedClass, int]) -> list[tuple[PredictedClass, int]]:
    """Return the counts sorted by class number, then by class name."""
    return sorted(classes.items(), key=lambda item: (isinstance(item[0], str), item[0]))


def file_metrics(counts: Counts, classes: Collection[str] = ()) -> dict[str, int]:
    """Return the counts of a capture file as CloudWatch metrics.

    Args:
        classes: that have a metric of their own, because each custom metric costs.
    """
    metrics = {
        "Predictions": counts.sample_size,
        "UnreadableRecords": counts.unreadable,
        "ReplayedRecords": counts.replayed,
        "ForgedMarkers": counts.forged,
        "LowConfidencePredictions": counts.low_confidence,
    }
    found = {str(predicted_class): count for predicted_class, count in counts.classes.items()}
    return metrics | {f"Class{name}": found.get(name, 0) for name in classes}


def to_json(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a monitor file."""
    return json.dumps(document, indent=2).encode() + b"\n"
