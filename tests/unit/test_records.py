"""Tables, ids and seeds."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lion_ray.core.records import ANSWER, INSTRUCTION, derive_seed, instruction_id, ok_rows, shards, table


def rows(count: int) -> pa.Table:
    texts = [f"instruction number {n}" for n in range(count)]
    return table(({"id": instruction_id(t), "text": t, "source": "seed", "iteration": 0} for t in texts), INSTRUCTION)


def test_ids_follow_the_text_alone() -> None:
    assert instruction_id("a") == instruction_id("a") != instruction_id("b")
    assert len(instruction_id("a\ud800")) == 16


def test_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = {derive_seed(0, 1, "x"), derive_seed(1, 0, "x"), derive_seed(0, 1, "y"), derive_seed("01", "x")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_shards_are_the_pool_and_carry_only_themselves() -> None:
    pool = rows(10)
    pieces = list(shards(pool, 4))
    assert [piece.num_rows for piece in pieces] == [4, 4, 2]
    assert pa.concat_tables(pieces).equals(pool)
    assert pieces[0].nbytes < pool.nbytes / 2
    assert pieces[2].get_total_buffer_size() < pool.get_total_buffer_size() / 2


def test_a_row_with_an_unknown_or_missing_field_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="colour"):
        table([{"id": "a", "colour": "red"}], INSTRUCTION)
    with pytest.raises(ValueError, match="text must not be null"):
        table([{"id": "a", "source": "seed", "iteration": 0}], INSTRUCTION)


def test_ok_rows_leaves_the_quarantined_out() -> None:
    answers = table(
        [{"id": "a", "text": "x", "status": "ok"}, {"id": "b", "text": "", "status": "quarantined", "reason": "r"}],
        ANSWER,
    )
    assert ok_rows(answers)["id"].to_pylist() == ["a"]
