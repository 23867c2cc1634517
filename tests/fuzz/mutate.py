"""Bytes of a sound file, damaged as faults and attackers damage them; and a loop that feeds them to a reader."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

INPUTS = int(os.environ.get("CAPSCORE_FUZZ", 500))  # for each format; `make fuzz` sets it higher
EDGE = 256  # bytes at either end, where most formats keep what they declare
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
TEXTS = [b"", b"-1", b"0", b"99999999999", b"NaN", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b]0;x\x07", b"[" * 64, b'"']


def mutations(seed: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield `seed` without end, each time with one to four faults of its own."""
    while True:
        content = bytearray(seed)
        for _ in range(rng.choice((1, 1, 2, 4))):
            rng.choice(FAULTS)(content, _place(len(content), rng), rng)
        yield bytes(content)


def survives(
    read: Callable[[bytes], Any],
    seeds: Sequence[bytes],
    allowed: type[Exception] | tuple[type[Exception], ...],
    inputs: int = INPUTS,
) -> int:
    """Feed `inputs` mutations of the seeds to `read`; return how many it refused, with one of the `allowed` errors.

    Any other exception becomes an AssertionError that says which input of which seed it was; the same number of
    inputs makes the same ones again.
    """
    rng, refused = random.Random(0), 0
    streams = [mutations(seed, rng) for seed in seeds]
    for i in range(inputs):
        content = next(streams[i % len(streams)])
        try:
            read(content)
        except allowed:
            refused += 1
        except Exception as error:
            raise AssertionError(f"input {i}: {error!r} from {content!r:.4000}") from error
    return refused


def _place(length: int, rng: random.Random) -> int:
    """A position in `length` bytes, two times in three near the beginning or the end."""
    edge = min(EDGE, length)
    return rng.choice((rng.randint(0, edge), length - rng.randint(0, edge), rng.randint(0, length)))


def _flip(content: bytearray, at: int, rng: random.Random) -> None:
    if at < len(content):
        content[at] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, at: int, rng: random.Random) -> None:
    patch = rng.randbytes(rng.randint(1, 4))
    content[at : at + len(patch)] = patch


def _number(content: bytearray, at: int, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) + rng.choice((0, 0, 0, -1, 1))
    content[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def _insert(content: bytearray, at: int, rng: random.Random) -> None:
    content[at:at] = rng.choice((rng.randbytes(rng.randint(1, 16)), rng.choice(TEXTS), bytes(rng.randint(1, 64))))


def _delete(content: bytearray, at: int, rng: random.Random) -> None:
    del content[at : at + rng.choice((1, 2, 4, 8, 16, 64))]


def _truncate(content: bytearray, at: int, rng: random.Random) -> None:
    del content[at:]


def _repeat(content: bytearray, at: int, rng: random.Random) -> None:
    content[at:at] = content[at : at + rng.randint(1, 64)] * rng.choice((1, 1, 8))


def _move(content: bytearray, at: int, rng: random.Random) -> None:
    block = content[at : at + rng.randint(1, 64)]
    del content[at : at + len(block)]
    there = _place(len(content), rng)
    content[there:there] = block


FAULTS = (_flip, _flip, _overwrite, _number, _number, _insert, _delete, _truncate, _repeat, _move)
