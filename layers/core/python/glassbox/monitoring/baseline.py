"""The baseline of the drift check: the predictions per class in a statistics.json."""

from collections import Counter

import msgspec

from glassbox.errors import BadInputError, SettingsError, is_printable, printable
from glassbox.monitoring.monitor_files import CLASS_FEATURE
from glassbox.monitoring.response import CLASS_CHARACTERS, PredictedClass
from glassbox.ports import Objects

_MAX_COUNT = 1 << 53  # larger counts are not exact as floats
_URI_SCHEME = "s3://"


class _Bucket(msgspec.Struct):
    value: int | str
    count: int | float


class _Categorical(msgspec.Struct):
    buckets: list[_Bucket]


class _Distribution(msgspec.Struct):
    categorical: _Categorical


class _StringStatistics(msgspec.Struct):
    distribution: _Distribution


class _Feature(msgspec.Struct):
    name: str
    string_statistics: msgspec.Raw = msgspec.Raw()  # decoded for CLASS_FEATURE only


class _Statistics(msgspec.Struct):
    features: list[_Feature]


def fetch_baseline(uri: str | None, objects: Objects) -> dict[PredictedClass, int] | None:
    """Return the predictions per class in the statistics.json at a URI.

    Args:
        uri: ``s3://bucket/key``; None returns None.

    Raises:
        SettingsError: the URI has another form.
        BadInputError: the object does not exist, or is not a baseline.
        RetryableError: S3 does not return the object now.
    """
    if uri is None:
        return None
    bucket, _, key = uri.removeprefix(_URI_SCHEME).partition("/")
    if not uri.startswith(_URI_SCHEME) or not bucket or not key:
        raise SettingsError(f"BASELINE_STATISTICS={uri!r}: expected s3://bucket/key")
    return read_baseline(objects.get(bucket, key), uri)


def read_baseline(text: bytes, source: str) -> dict[PredictedClass, int]:
    """Return the predictions per class in a statistics.json.

    Raises:
        BadInputError: the file holds no counts of the predicted class.
    """
    counts: Counter[PredictedClass] = Counter()
    try:
        (feature,) = (
            feature
            for feature in msgspec.json.decode(text, type=_Statistics).features
            if feature.name == CLASS_FEATURE
        )
        statistics = msgspec.json.decode(feature.string_statistics, type=_StringStatistics)
        for bucket in statistics.distribution.categorical.buckets:
            counts[_class(bucket.value)] += _count(bucket.count)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{source}: no counts of {CLASS_FEATURE}: {error}") from error
    if not any(counts.values()) or min(counts.values()) < 0:
        raise BadInputError(f"{source}: the counts of {CLASS_FEATURE} are empty or negative")
    return dict(counts)


def _class(value: int | str) -> PredictedClass:
    if isinstance(value, int):
        return value
    if len(value) > CLASS_CHARACTERS or not is_printable(value):
        raise ValueError(
            f"value: expected at most {CLASS_CHARACTERS} printable characters, got {value[:100]!r}"
        )
    return int(value) if value.isascii() and value.isdecimal() else value


def _count(count: int | float) -> int:
    if not abs(count) <= _MAX_COUNT or count != int(count):
        raise ValueError(f"count: expected an integer of at most {_MAX_COUNT}, got {printable(count, 40)}")
    return int(count)
