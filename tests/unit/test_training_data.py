"""From rows to batches: what is dropped, what ends, what order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lion_ray.actors import trainer
from lion_ray.core.errors import DataError, TrainingError
from lion_ray.core.records import ANSWER, INSTRUCTION, KEPT, OK, QUARANTINED, table
from lion_ray.core.store import RunStore
from lion_ray.imitation.training.balance import share_out
from lion_ray.imitation.training.data import (
    AnyRow,
    Row,
    Sample,
    as_row,
    collate,
    count_steps,
    digest,
    encode,
    pack,
    read_rows,
    step_batches,
)
from lion_ray.models.prompter import Prompter
from tests.tiny import make_tiny_tokenizer


@pytest.fixture(scope="module")
def prompter():
    return Prompter(make_tiny_tokenizer(), "chat")


def test_every_row_is_a_sample_or_counted(prompter):
    room = len(prompter.prompt_ids("q")) + len(prompter.completion_ids("yes", complete=True))
    rows: list[AnyRow] = [
        Row("q", "yes", "stop"),
        {"instruction": "q", "answer": "yes", "finish_reason": "length"},
        ("q", "yes", "content_filter"),
        ("q", "  \n", "stop"),
        ("q", "a longer answer " * 5, "stop"),
        ("long " * 100, "yes", "stop"),
        ("q", "yes", None),
    ]
    samples, dropped = encode(rows, prompter, room, "drop")
    assert len(samples) == 2
    assert dropped == {"answer cut off": 3, "empty answer": 1, "prompt too long": 1}
    samples, dropped = encode(rows, prompter, room, "keep")
    assert [sample.ids[-1] == prompter.end_id for sample in samples] == [True, False, False, False, True]
    assert max(len(sample.ids) for sample in samples) <= room
    assert dropped == {"empty answer": 1, "prompt too long": 1}


@pytest.mark.parametrize(
    ("reason", "complete"), [("end_turn", True), ("MAX_TOKENS", False), ("model_length", False), ("novel", False)]
)
def test_only_an_ending_that_is_known_to_be_one_gets_the_end_token(prompter, reason, complete):
    samples, _ = encode([("q", "yes", reason)], prompter, 100, "keep")
    assert (samples[0].ids[-1] == prompter.end_id) == complete


def test_an_answer_whose_end_token_does_not_fit_is_cut_off(prompter):
    room = len(prompter.prompt_ids("q")) + len(prompter.completion_ids("yes", complete=False))
    assert encode([Row("q", "yes")], prompter, room, "drop") == ([], {"answer cut off": 1})
    [sample], _ = encode([Row("q", "yes")], prompter, room, "keep")
    assert sample.ids[-1] != prompter.end_id


def test_a_prompt_that_leaves_no_room_is_dropped(prompter):
    length = len(prompter.prompt_ids("q"))
    assert encode([Row("q", "yes")], prompter, length, "keep")[1] == {"prompt too long": 1}
    assert len(encode([Row("q", "yes")], prompter, length + 1, "keep")[0]) == 1


def test_steps_are_counted_as_the_paper_does():
    assert count_steps(52_002, 3, 128) == 1_219
    assert count_steps(6_000, 3, 128) == 141
    assert len(list(step_batches(6_000, 3, 128, seed=1))) == 141


def test_every_epoch_takes_every_sample_once_in_its_own_order():
    batches = list(step_batches(10, 3, 4, seed=7))
    assert [len(batch) for batch in batches] == [4] * 7 + [2]
    stream = [i for batch in batches for i in batch]
    epochs = [stream[k : k + 10] for k in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches == list(step_batches(10, 3, 4, seed=7))
    assert batches != list(step_batches(10, 3, 4, seed=8))


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_a_resumed_fit_sees_the_rest_of_the_same_order(start):
    assert list(step_batches(10, 3, 4, seed=7, start=start)) == list(step_batches(10, 3, 4, seed=7))[start:]


def test_packed_rows_are_as_few_as_they_can_be_and_then_as_short():
    rows = pack([Sample([1] * length, 1) for length in (6, 6, 3, 3, 3, 3)], 20)
    # Two rows it takes, of 24 tokens in all.
    assert sorted(sum(len(sample.ids) for sample in row) for row in rows) == [12, 12]
    assert pack([], 20) == []


def test_packing_loses_nothing_and_overfills_nothing():
    samples = [Sample(list(range(n)), 1) for n in (9, 3, 7, 10, 2, 5, 5, 1)]
    rows = pack(samples, 10)
    assert all(sum(len(sample.ids) for sample in row) <= 10 for row in rows)
    assert Counter(len(s.ids) for row in rows for s in row) == Counter(len(s.ids) for s in samples)
    assert len(rows) == 5  # 42 tokens: the fewest rows there can be


@pytest.mark.parametrize("processes", [1, 3, 40, 100, 128])
def test_no_process_is_idle_while_there_are_samples_and_tokens_are_shared_evenly(processes):
    sizes = [20 + 37 * i % 900 for i in range(128)]
    shares = share_out([Sample([1] * size, 1) for size in sizes], 1024, processes)
    tokens = [sum(sample.size for row in rows for sample in row) for rows in shares]
    assert Counter(s.size for rows in shares for row in rows for s in row) == Counter(sizes)
    assert all(tokens)
    # No sharing is better than this, and the heuristic misses it by a third at most.
    assert max(tokens) <= 4 / 3 * max(max(sizes), sum(sizes) / processes)


def test_a_process_without_a_sample_has_no_rows():
    assert share_out([Sample([1, 2], 1)], 8, 3) == [[[Sample([1, 2], 1)]], [], []]


def test_a_batch_labels_answers_and_restarts_positions():
    rows = [[Sample([1, 2, 3, 4], 2), Sample([5, 6], 1)], [Sample([7, 8, 9], 1)]]
    batch = collate(rows)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert batch.targets.tolist() == [3, 4, 6, 8, 9]
    # The token before each target predicts it.
    assert batch.input_ids.flatten()[batch.positions].tolist() == [2, 3, 5, 7, 8]


def test_a_share_without_rows_is_a_batch_without_labels():
    batch = collate([])
    assert batch.input_ids.shape == (1, 1)
    assert batch.targets.shape == (0,)


def test_a_digest_tells_samples_apart():
    one = [Sample([1, 2, 3], 1)]
    assert digest(one) == digest([Sample([1, 2, 3], 1)])
    assert len({digest(one), digest([Sample([1, 2, 3], 2)]), digest([Sample([1], 1), Sample([2, 3], 1)])}) == 3


def test_rows_are_read_with_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a\\u2028", "answer": "b", "finish_reason": "length"}\n{"instruction": "a"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2"):
        read_rows(path)
    path.write_text('{"instruction": "a", "answer": "b"}\n')
    assert read_rows(path) == [Row("a", "b", "stop")]
    with pytest.raises(TypeError):
        as_row(("a", None))


@pytest.fixture
def parts(tmp_path: Path) -> RunStore:
    """Four instructions with their answers, of which the second is quarantined; a filter drops the third."""
    store = RunStore(str(tmp_path))
    ids = [str(number) for number in range(4)]
    asked = [{"id": number, "text": f"q{number}", "source": "hard", "iteration": 1} for number in ids]
    given = [{"id": number, "text": f"a{number}", "status": QUARANTINED if number == "1" else OK} for number in ids]
    kept = [{"id": number, "status": OK if number in "03" else QUARANTINED} for number in ids]
    store.write_table("asked.parquet", table(asked, INSTRUCTION))
    store.write_table("given.parquet", table(given, ANSWER))
    store.write_table("kept.parquet", table(kept, KEPT))
    store.write_table("others.parquet", table(given[::-1], ANSWER))
    return store


def test_what_was_quarantined_or_filtered_is_never_trained_on(parts: RunStore) -> None:
    both = [("asked.parquet", "given.parquet")]
    rows = trainer.read_rows(parts, both)
    assert [(row["instruction"], row["answer"]) for row in rows] == [("q0", "a0"), ("q2", "a2"), ("q3", "a3")]
    rows = trainer.read_rows(parts, both, ["kept.parquet"])
    assert [(row["instruction"], row["answer"]) for row in rows] == [("q0", "a0"), ("q3", "a3")]


def test_answers_to_other_instructions_are_not_trained_on(parts: RunStore) -> None:
    with pytest.raises(TrainingError, match=r"others\.parquet does not answer asked\.parquet"):
        trainer.read_rows(parts, [("asked.parquet", "others.parquet")])
