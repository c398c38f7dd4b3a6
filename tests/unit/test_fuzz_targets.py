"""The fuzz targets without a fuzzer: their seeds, a byte or a piece of them changed, and whatever hypothesis makes.

`make fuzz` goes on from here with atheris. What it found is a test beside the parser.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CHANGED = 40
"""Inputs made of each target's seeds."""
ODD = (0, 1, 7, 9, 10, 34, 44, 91, 93, 123, 125, 127, 128, 237, 255)


def changed(seeds: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes([rng.choice(ODD)])
            case 1:
                del data[at : at + rng.randint(1, 30)]
            case 2:
                other = rng.choice(seeds)
                begins = rng.randrange(len(other))
                data[at:at] = other[begins : begins + rng.randint(1, 40)]
            case _:
                data[at : at + 1] = rng.randbytes(1)
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_what_comes_of_them(name: str) -> None:
    seeds, rng = list(TARGETS[name].seeds()), random.Random(name)
    for data in (b"", *seeds, *(changed(seeds, rng) for _ in range(CHANGED))):
        try:
            TARGETS[name](data)
        except Exception as error:
            error.add_note(f"of {data!r}")
            raise


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_a_target_takes_anything(name: str, data: bytes) -> None:
    TARGETS[name](data)
