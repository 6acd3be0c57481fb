"""Change valid input: as bytes, and as the JSON value that it holds."""

import json
import random

NUMBERS = (0, -1, 1, 2**31, -(2**31), 2**63, 2**64, 10**400, 1e308, 1e-320, float("inf"), float("nan"), 0.5)
TEXTS = (
    "",
    "\0",
    "\u202e",
    "\ud800",
    "a" * 5000,
    "9" * 5000,
    "1e999",
    "-0",
    "٣",
    "../../etc/passwd",
    "2026-11-23T10:00:00Z",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00+14:00",
    "s3://bucket/key",
)
BYTES = (0, 1, 0x7F, 0x80, 0xFF, ord('"'), ord("{"), ord("["), ord("\\"), ord(","), ord("\n"))


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Return changed input: half of it stays JSON where it was JSON."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if chance.random() < 0.5 and data[:1] in b"{[" and (changed := _as_json(data, chance)) is not None:
            data = changed
        else:
            data = _as_bytes(data, others, chance)
    return data


def _as_json(data: bytes, chance: random.Random) -> bytes | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    places = list(_places(value))
    if not places:
        return None
    for _ in range(chance.choice((1, 1, 2))):
        parent, key = chance.choice(places)
        try:
            _change(parent, key, chance)
        except (KeyError, IndexError):
            continue  # another change removed the place
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=chance.random() < 0.5).encode()
    except (ValueError, RecursionError):
        return None


def _places(value):
    """Yield (container, key) of every place in a JSON value."""
    queue = [value]
    while queue:
        one = queue.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, inner in items:
            yield one, key
            queue.append(inner)


def _change(parent, key, chance):  # noqa: C901
    """Change one place of a JSON value."""
    match chance.randrange(8):
        case 0:
            parent[key] = chance.choice(NUMBERS)
        case 1:
            parent[key] = chance.choice(TEXTS)
        case 2:
            parent[key] = chance.choice((None, True, False, [], {}))
        case 3:
            parent[key] = [parent[key]] * chance.choice((1, 2, 50))
        case 4:
            del parent[key]
        case 5:
            deep = parent[key]
            for _ in range(chance.choice((1, 5, 200))):
                deep = [deep]
            parent[key] = deep
        case 6 if isinstance(parent[key], str):
            text = parent[key]
            at = chance.randrange(len(text) + 1)
            parent[key] = text[:at] + chance.choice(TEXTS) + text[at + chance.choice((0, 1, 9)) :]
        case _ if type(parent[key]) in (int, float) and abs(parent[key]) < 1e300:
            parent[key] = parent[key] + chance.choice((-1, 1, 0.5, 1e9))
        case _ if isinstance(parent, dict):
            parent[chance.choice(TEXTS)] = parent[key]


def _as_bytes(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 4, 16, 256))
    match chance.randrange(7):
        case 0:
            return data[:at] + bytes([chance.choice(BYTES)]) + data[at + 1 :]
        case 1:
            return data[:at] + chance.randbytes(length) + data[at + length :]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + data[at : at + length] * chance.choice((2, 3, 20)) + data[at + length :]
        case 4 if data:
            flipped = bytearray(data)
            for _ in range(chance.choice((1, 1, 3))):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            return bytes(flipped)
        case 5:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            return data[:at] + other[start : start + length * 4] + data[at:]
        case _:
            return data[:at] if chance.random() < 0.3 else data
