"""The simulation's first thousand seeds (`make simulate` runs a hundred thousand): half a minute of a core.

Both processes of `make test` share them, case by case (`tests/conftest.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from tests.simulation.scenario import run_all
from tests.simulation.world import only_its_own_garbage

# Ended processes leave unfinished coroutines behind, as they do.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SEEDS, BLOCK = 1000, 100


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    with only_its_own_garbage(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_nothing_paid_for_is_lost_or_bought_twice_and_the_cap_holds(first: int) -> None:
    run_all(range(first, first + BLOCK))
