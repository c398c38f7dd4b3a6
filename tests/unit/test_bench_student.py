"""The student's bench: what it takes, what it asks of each way, and what it makes of the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.goals import all_ok
from bench.student import chosen, goals, parse, summary, work_of
from bench.student_way import Measured, Round, Work, length
from lion_ray.config import StudentConfig


def test_quick_is_less_of_everything_and_a_given_size_stays() -> None:
    whole, quick = parse([]), parse(["--quick"])
    for size in ("rounds", "rows", "published_rows", "max_tokens"):
        assert getattr(quick, size) < getattr(whole, size)
    assert whole.rounds >= 3
    assert (whole.tiny, quick.tiny, whole.eager, quick.eager) == (False, True, False, True)
    given = parse(["--quick", "--rounds", "5", "--model", "folder", "--dtype", "bfloat16"])
    assert (given.rounds, given.tiny, given.dtype) == (5, False, "bfloat16")
    with pytest.raises(SystemExit):
        parse(["--rows", "0"])


def test_no_text_is_there_twice_and_the_published_way_gets_the_first_of_each_round() -> None:
    given = parse(["--quick", "--rounds", "2", "--rows", "10", "--max-num-seqs", "4"])
    _, texts = chosen(given)
    assert [len(part) for part in texts] == [4, 10, 10]
    every = [text for part in texts for text in part]
    assert len(set(every)) == len(every)
    assert chosen(given)[1] == texts, "the same seed, the same texts"
    raw, pool, published = (work_of(given, Path("m"), texts, way) for way in ("raw", "pool", "published"))
    assert raw == pool
    assert published.rounds == [part[: given.published_rows] for part in texts[1:]]


def test_lengths_are_uneven_stay_within_bounds_and_follow_from_the_seed() -> None:
    drawn = [length(seed, 128) for seed in range(2000)]
    assert drawn == [length(seed, 128) for seed in range(2000)]
    assert (min(drawn) >= 1, max(drawn)) == (True, 128)
    assert 28 <= sorted(drawn)[1000] <= 36
    assert 0.04 < drawn.count(128) / 2000 < 0.09
    assert length(0, 1) == 1


def test_work_survives_its_file() -> None:
    work = Work(StudentConfig(model="m", max_tokens=16).model_dump(mode="json"), 0, 8, ["warm"], [["a", "b"]])
    assert work.config.max_tokens == 16
    assert all(1 <= tokens <= 16 for tokens in work.lengths(["a", "b"]))


def way(tokens_per_s: float, amiss: int = 0) -> dict[str, Any]:
    return {"tokens_per_s": tokens_per_s, "tokens_amiss": amiss}


@pytest.mark.parametrize(
    ("raw", "pool", "published", "amiss", "held"),
    [
        (1000, 950, 38, 0, [True, True, True]),
        (1000, 940, 37, 0, [False, True, True]),
        (1000, 950, 40, 0, [True, False, True]),
        (1000, 950, 38, 3, [True, True, False]),
    ],
)
def test_goals(raw: float, pool: float, published: float, amiss: int, held: list[bool]) -> None:
    found = goals({"raw": way(raw), "pool": way(pool, amiss), "published": way(published)}, tiny=False)
    assert [goal.ok for goal in found] == held
    assert all_ok(found) is all(held)


def test_a_tiny_model_decides_nothing_but_its_tokens_count() -> None:
    ways = {"raw": way(1000), "pool": way(10), "published": way(500)}
    found = goals(ways, tiny=True)
    assert [goal.ok for goal in found] == [None, None, True]
    assert found[0].measured == 0.01
    assert not all_ok(goals(ways | {"raw": way(1000, 1)}, tiny=True))


def test_the_summary_takes_the_median_round_and_counts_tokens_amiss() -> None:
    rounds = [Round(2, 100, 100, 1.0, 0.5), Round(2, 100, 90, 2.0, 0.5), Round(2, 100, 110, 4.0, 0.5)]
    found = summary(Measured(3.0, 1.0, rounds))
    assert (found["tokens_per_s"], found["tokens"], found["tokens_amiss"]) == (50.0, 300, 20)
    assert found["cpu_ms_per_token"] == 5.0
