"""Token ids that are made once: the same samples as in memory, whatever becomes of the file."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from lion_ray.config.plugins import PreferenceConfig
from lion_ray.core.errors import ModelError
from lion_ray.imitation.training import tokens
from lion_ray.imitation.training.data import digest, encode
from lion_ray.imitation.training.fit import train
from lion_ray.models.prompter import Prompter
from tests.training.conftest import HELDOUT, ROWS, weights

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "So"}]
MIXED: list[Any] = [
    *ROWS,
    {"instruction": "So", "answer": "Well.", "messages": TURNS, "source": "talk"},
    {"instruction": "Pick.", "answer": "This.", "rejected": "That one, or another one.", "source": 3},
    {"instruction": "Nothing", "answer": " "},
    {"instruction": "Cut", "answer": "and so", "finish_reason": "length"},
    ("As a tuple.", "Yes."),
]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch, tmp_path):
    monkeypatch.setattr(tokens, "MANY", 2)
    monkeypatch.setattr(tokens, "CHUNK", 10)
    monkeypatch.setattr(tokens, "cores", lambda: 1)
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def prompter(tiny):
    return Prompter.load(tiny, "chat")


def test_the_samples_of_a_file_are_those_in_memory(make_spec, prompter, few_are_many):
    spec = make_spec(loss_on="assistant_turns")
    expected, reasons = encode(MIXED, prompter, 128, "drop", "assistant_turns")
    samples, dropped = tokens.tokenise(MIXED, prompter, spec)
    assert isinstance(samples, tokens.Stored)
    assert list(samples) == expected
    assert list(dropped.items()) == list(reasons.items())
    assert tokens.digest_of(samples) == digest(expected)
    assert (len(samples), samples[-1], samples[3:14:5]) == (len(expected), expected[-1], expected[3:14:5])
    with pytest.raises(IndexError):
        samples[len(expected)]
    assert tokens.count_pairs(samples) == tokens.count_pairs(expected) == 1
    few = tokens.extremes(samples)
    by_length = sorted(expected, key=lambda one: len(one.ids))
    assert by_length[-1] in few
    assert [one for one in few if one.rejected is not None]
    assert sorted(few, key=lambda one: len(one.ids))[:2] == by_length[:2]
    assert {path.suffix for path in few_are_many.iterdir()} <= {".lock", ".arrow"}


def test_rows_are_encoded_once(make_spec, prompter, monkeypatch):
    first, _ = tokens.tokenise(ROWS, prompter, make_spec())
    monkeypatch.setattr(tokens, "_make", lambda *_: pytest.fail("encoded again"))
    again, _ = tokens.tokenise(ROWS, prompter, make_spec(output_dir="elsewhere", learning_rate=0.5))
    assert list(again) == list(first)


@pytest.mark.parametrize("change", ["row", "length", "loss_on", "tokenizer"])
def test_what_decides_the_ids_decides_the_file(change, make_spec, prompter, few_are_many, tmp_path, tiny):
    tokens.tokenise(ROWS, prompter, make_spec())
    rows: list[Any] = ROWS
    changes: dict[str, Any] = {}
    if change == "row":
        rows = [*ROWS[:-1], {**ROWS[-1], "answer": "Another."}]
    elif change == "tokenizer":
        changes = {"model_dir": str(tmp_path / "other")}
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "tokenizer.json").write_text(f"{(tiny / 'tokenizer.json').read_text()} ")
    else:
        changes = {"max_length": 64} if change == "length" else {"loss_on": "assistant_turns"}
    tokens.tokenise(rows, prompter, make_spec(**changes))
    assert len(list(few_are_many.glob("*.arrow"))) == 2


def test_a_damaged_file_is_made_anew(make_spec, prompter, few_are_many):
    expected = list(tokens.tokenise(ROWS, prompter, make_spec())[0])
    (path,) = few_are_many.glob("*.arrow")
    for content in (b"", b"junk" * 100, path.read_bytes()[:-50]):
        path.write_bytes(content)
        assert list(tokens.tokenise(ROWS, prompter, make_spec())[0]) == expected


def test_without_room_the_ids_are_in_memory(make_spec, prompter, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens, "_make", full)
    samples, _ = tokens.tokenise(ROWS, prompter, make_spec())
    assert samples == encode(ROWS, prompter, 128, "drop")[0]
    assert "made in memory: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_helper_encodes_and_passes_errors_on(make_spec, prompter):
    helper = tokens._Helper(make_spec())
    expected, reasons = encode(MIXED, prompter, 128, "drop")
    batch, dropped = helper.encode(MIXED, 7)
    assert (list(tokens._samples(batch)), dropped) == ([one._replace(columns={}) for one in expected], reasons)
    assert batch["row"][0].as_py() == 7
    with pytest.raises(RuntimeError, match=r"TypeError: .*missing 2 required"):
        helper.encode([()], 0)
    helper.process.kill()
    helper.process.wait()
    with pytest.raises(OSError):
        helper.encode(ROWS, 0)
    helper.end()


class InProcess:
    """A helper without a process; the first chunks take longer than the others."""

    def __init__(self, spec):
        self.prompter, self.spec = Prompter.load(spec.model_dir, "chat"), spec
        self.process = self

    def encode(self, rows, begin):
        if isinstance(rows[0], str):
            raise ModelError("no row")
        time.sleep(0.2 if begin == 0 else 0)
        return tokens._encode_chunk(rows, begin, self.prompter, self.spec)

    def end(self):
        """Nothing to end."""

    kill = end


def test_samples_come_in_the_rows_order(make_spec, prompter, monkeypatch):
    monkeypatch.setattr(tokens, "cores", lambda: 2)
    monkeypatch.setattr(tokens, "CHUNK", 2)
    monkeypatch.setattr(tokens, "_Helper", InProcess)
    found = list(tokens._encoded(MIXED, prompter, make_spec()))
    assert [one for batch, _ in found for one in tokens._samples(batch)] == [
        one._replace(columns={}) for one in encode(MIXED, prompter, 128, "drop")[0]
    ]
    with pytest.raises(ModelError, match="no row"):
        list(tokens._encoded([*ROWS[:8], *["text"] * 20], prompter, make_spec()))


def test_a_fit_learns_the_same_with_and_without_a_file(make_spec, few_are_many, monkeypatch, tmp_path):
    pair = {"instruction": "Pick.", "answer": "This.", "rejected": "That one, or another."}
    changes = {"epochs": 1, "objective": PreferenceConfig(type="preference")}

    def fit(name):
        metrics = train(make_spec(name, **changes), rows=[*ROWS, pair], heldout_rows=HELDOUT, report=lambda *_: None)
        return metrics, weights(tmp_path / name)

    stored, one = fit("stored")
    assert list(few_are_many.glob("*.arrow"))
    monkeypatch.setattr(tokens, "MANY", 1000)
    usual, two = fit("usual")
    timed = {"tokens_per_second", "seconds"}
    assert {k: v for k, v in stored.items() if k not in timed} == {k: v for k, v in usual.items() if k not in timed}
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_checkpoint_is_taken_up_without_the_file(make_spec, few_are_many, monkeypatch, tmp_path):
    def fit(name, report, restore=None):
        train(make_spec(name), rows=ROWS, heldout_rows=HELDOUT, report=report, restore=restore)

    kept = []

    def stop(metrics, folder):
        if folder is not None:
            kept.append(folder.rename(tmp_path / "kept"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("killed", stop)
    for path in few_are_many.iterdir():
        path.unlink()
    monkeypatch.setattr(tokens, "MANY", 1000)
    fit("killed", lambda *_: None, restore=kept[0])
    fit("whole", lambda *_: None)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_old_files_are_removed(make_spec, prompter, few_are_many, monkeypatch):
    tokens.tokenise(ROWS, prompter, make_spec())
    (old,) = few_are_many.glob("*.arrow")
    monkeypatch.setattr(tokens, "OLD_S", -1.0)
    tokens.tokenise(ROWS[:-1], prompter, make_spec())
    assert not old.exists()
