"""Give a reader random input, and stop at the first one that it neither reads nor refuses."""

import random
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.mutations import mutated
from fuzz.readers import Reader

CORPUS = Path(__file__).with_name("corpus")
SECONDS = 1.0  # of CPU time that one input may take
MEMORY = 64 << 20  # bytes that one input may take beyond those before
_MEASURED = 97  # every so many inputs, the memory is measured
_KEPT = 200  # mutated inputs that are mutated further


@dataclass
class Result:
    """What a reader did with random input."""

    inputs: int = 0
    parsed: int = 0
    read: int = 0
    slowest: float = 0.0

    @property
    def parsed_share(self) -> float:
        """Share of the inputs that passed the first parse."""
        return self.parsed / max(1, self.inputs)


class FoundError(AssertionError):
    """A reader raised another exception than a refusal, or took too long or too much memory."""

    def __init__(self, data: bytes, problem: str) -> None:
        super().__init__(problem)
        self.data = data


def inputs(reader: Reader, name: str, seed: int) -> Iterator[bytes]:
    """Yield valid input, the hostile files of the corpus, and endless changed input."""
    chance = random.Random(f"{name} {seed}")
    seeds = [*reader.seeds, *corpus(name)]
    yield from seeds
    pool = list(seeds)
    while True:
        # the longer a chain of changes, the fewer pass the first parse: valid input is chosen as often as all others
        source = chance.choice(seeds if chance.random() < 0.7 else pool)
        data = mutated(source, seeds, chance)
        yield data
        if reader.parses(data) and chance.random() < 0.05:
            pool.append(data)
            if len(pool) > len(seeds) + _KEPT:
                del pool[chance.randrange(len(seeds), len(pool))]


def corpus(name: str) -> list[bytes]:
    """Return the hostile files of a reader."""
    return [file.read_bytes() for file in sorted((CORPUS / name.replace(" ", "-")).glob("*"))]


def fuzz(reader: Reader, name: str, *, count: int, seed: int = 0) -> Result:
    """Give the reader ``count`` inputs.

    Raises:
        FoundError: an input is neither read nor refused, within SECONDS and MEMORY.
    """
    result = Result()
    for data, _ in zip(inputs(reader, name, seed), range(count), strict=False):
        measured = result.inputs % _MEASURED == 0
        if measured:
            tracemalloc.start()
        started = time.process_time()
        try:
            reader.read(data)
            result.read += 1
        except reader.refusals:
            pass
        except MemoryError as error:
            raise FoundError(data, "MemoryError") from error
        except Exception as error:
            raise FoundError(data, f"{type(error).__name__}: {error}") from error
        finally:
            taken = time.process_time() - started
            peak = tracemalloc.get_traced_memory()[1] if measured else 0
            if measured:
                tracemalloc.stop()
        result.inputs += 1
        result.parsed += reader.parses(data)
        if not measured:  # which is several times slower
            result.slowest = max(result.slowest, taken)
            if taken > SECONDS:
                raise FoundError(data, f"took {taken:.1f} s of CPU time, at most {SECONDS}")
        if peak > MEMORY:
            raise FoundError(data, f"took {peak >> 20} MiB, at most {MEMORY >> 20}")
    return result
