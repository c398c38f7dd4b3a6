"""What the generator keeps of what it was given: the configured similarity, held-out and evaluation questions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from bench.texts import candidates, made
from lion_ray.actors.generator import _Request, _Stage
from lion_ray.actors.novelty_shard import SHARD_TEXTS, NoveltyShard, NoveltyShards, start_shards
from lion_ray.config import GenerationConfig
from lion_ray.core.records import OK
from lion_ray.core.store import RunStore
from lion_ray.gateway.calls import Completion
from tests.in_process import Here

# Ten words each; with the first so many of them kept, ROUGE-L F is that many tenths.
KNOWN = "Describe how old rivers carve deep valleys through soft rock."
OTHER = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def alike(tenths: int, text: str = KNOWN) -> str:
    return " ".join([*text.split()[:tenths], *OTHER[tenths:]])


def texts(*rows: str) -> pa.Table:
    return pa.table({"text": pa.array(rows, pa.string())})


def stage(
    similarity: float = 0.7, *, known: str = "", heldout: str = "", question: str = "", wanted: int = 9
) -> _Stage:
    limits = GenerationConfig(hard=wanted, easy=wanted, max_similarity=similarity)
    first, second, third = (texts(*([text] if text else [])) for text in (known, heldout, question))
    return _Stage(limits, first, second, third, iteration=1, ahead=256)


def reason(stage: _Stage, text: str, kind: str = "hard", number: int = 0, novel: bool = True) -> str | None:
    answer = Completion("k", text, "stop", "m", "default", 1, 1)
    return stage.take(_Request(kind, number, "parent", "A seed.", number), answer, novel)


@pytest.mark.parametrize("at", [2, 5, 7, 9])
def test_candidates_are_rejected_above_the_configured_similarity(at: int) -> None:
    limit = (at + 0.5) / 10
    for table, told in (("known", "too similar to a known instruction"), ("heldout", "too similar to a held-out")):
        above = reason(stage(limit, **{table: KNOWN}), alike(at + 1))  # type: ignore[arg-type]
        assert above is not None
        assert above.startswith(told)
        assert reason(stage(limit, **{table: KNOWN}), alike(at)) is None  # type: ignore[arg-type]


def test_an_evaluation_question_and_what_quotes_it_is_rejected() -> None:
    assert reason(stage(question=KNOWN), KNOWN) == "too similar to an evaluation question"


def test_what_was_just_accepted_is_known() -> None:
    one = stage(0.5)
    assert reason(one, alike(10)) is None
    assert reason(one, alike(6), "easy") == "too similar to a known instruction"
    assert reason(one, alike(5), "easy", 1) is None
    assert one.known == 2


def test_each_kind_ends_at_its_target() -> None:
    one = stage(1.0, wanted=2)
    for kind in ("hard", "easy"):
        found = [reason(one, f"Please name one {kind} thing, number {n}.", kind, n) for n in range(4)]
        assert found == [None, None, *["not needed: the target was met"] * 2]
    assert [row["source"] for row in one.accepted] == ["hard", "hard", "easy", "easy"]
    assert [row["status"] for row in one.candidates].count(OK) == 4


@pytest.mark.parametrize("similarity", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_shards_decide_as_one_index(tmp_path: Path, count: int, similarity: float) -> None:
    known = made(60, seed=count)
    asked = candidates(known, [], 340)
    store = RunStore(str(tmp_path))
    parts = [f"part-{number}" for number in range(6)]
    for number, part in enumerate(parts):
        store.write_table(part, texts(*known[number * 10 : number * 10 + 10]))
    shards = NoveltyShards([Here(NoveltyShard(store, parts[n::count], similarity)) for n in range(count)])
    assert await shards.size() == 60
    limits = GenerationConfig(hard=400, easy=0, max_similarity=similarity)
    one = _Stage(limits, texts(*known), texts(), texts(), iteration=1, ahead=256)
    spread = _Stage(limits, texts(), texts(), texts(), iteration=1, ahead=256, in_shards=await shards.size())
    answers = await shards.novel(asked)
    for number, (text, novel) in enumerate(zip(asked, answers, strict=True)):
        assert reason(spread, text, number=number, novel=novel) == reason(one, text, number=number), text
        assert spread.known == one.known
    assert spread.accepted == one.accepted
    assert spread.candidates == one.candidates
    if similarity in (0.5, 0.7):
        assert 5 < len(one.accepted) < answers.count(True) < 340, "a shard and what was accepted must decide"


def test_a_pool_that_one_index_can_hold_has_no_shards(tmp_path: Path) -> None:
    assert start_shards("run", RunStore(str(tmp_path)), ["part-0", "part-1"], SHARD_TEXTS, 0.7) == {}
