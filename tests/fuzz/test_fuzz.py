"""Every reader reads or refuses random input, in bounded time and memory."""

import random

import pytest

from fuzz.mutations import mutated
from fuzz.readers import Reader, readers
from fuzz.run import FoundError, corpus, fuzz

NAMES = tuple(readers())


@pytest.mark.parametrize("name", NAMES)
def test_valid_input_is_read(name):
    reader = readers()[name]
    for data in reader.seeds:
        assert reader.parses(data)
        reader.read(data)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_and_random_input_is_read_or_refused(name):
    result = fuzz(readers()[name], name, count=len(corpus(name)) + 1500, seed=7)
    assert result.parsed_share >= 0.3
    assert result.read > 0


def test_another_exception_is_found_with_its_input():
    def read(data):
        if b"\xff" in data:
            raise KeyError("x")

    with pytest.raises(FoundError, match="KeyError") as caught:
        fuzz(Reader([b"{}" * 20], read, lambda data: True, ()), "none", count=10_000)
    assert b"\xff" in caught.value.data


def test_input_that_takes_too_much_memory_is_found():
    reader = Reader([b"x"], lambda data: bytes(80 << 20), lambda data: True, ())
    with pytest.raises(FoundError, match="took 80 MiB"):
        fuzz(reader, "none", count=1)


def test_changes_depend_on_the_seed_alone():
    def changed(seed):
        chance = random.Random(seed)
        return [mutated(b'{"a": [1, "b"]}', [b"{}"], chance) for _ in range(50)]

    assert changed(1) == changed(1) != changed(2)
    assert len(set(changed(1))) > 30
