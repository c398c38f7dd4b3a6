"""One real vLLM engine on a tiny model, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lion_ray.config import StudentConfig
from lion_ray.core import layout
from lion_ray.core.errors import EngineError, ModelError
from lion_ray.core.records import INSTRUCTION, instruction_id, table
from lion_ray.inference.engine import Engine
from lion_ray.inference.weight_check import Greedy
from lion_ray.models.weight_chunks import chunks
from tests.ray.harness import wait_until_gone
from tests.tiny import make_tiny_model
from tests.trained import make_trained

CONFIG = StudentConfig(
    model="base", dtype="float32", max_tokens=20, max_model_len=128, max_num_seqs=8, enforce_eager=True
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "base"
    make_tiny_model(path, initializer_range=0.5)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[Engine]:
    engine = Engine(CONFIG, base_dir=folder.parent, seed=0, transfers=True)
    await engine.start(folder, "base")
    yield engine
    processes = engine.processes()
    engine.shutdown()
    assert processes
    wait_until_gone(processes)


@pytest.mark.asyncio(loop_scope="module")
async def test_answers_are_whole_and_say_who_gave_them(engine: Engine) -> None:
    texts = ["Describe item 1.", "long " * 300, "", "Text with <|im_end|> inside."]
    rows = table(({"id": instruction_id(t), "text": t, "source": "seed", "iteration": 0} for t in texts), INSTRUCTION)
    answers = (await engine.answer(rows, 1)).to_pylist()
    assert [row["id"] for row in answers] == rows["id"].to_pylist()
    assert [row["status"] for row in answers] == ["ok", "quarantined", "ok", "ok"]
    first = answers[0]
    assert (first["model"], first["version"]) == ("base", "base")
    assert first["finish_reason"] in ("stop", "length")
    assert 0 < first["completion_tokens"] <= 20
    assert answers[1]["reason"] == "prompt too long"
    assert answers[1]["prompt_tokens"] > 128


@pytest.mark.asyncio(loop_scope="module")
async def test_top_k_bounds_what_is_sampled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table([{"id": instruction_id("Go on."), "text": "Go on.", "source": "seed", "iteration": 0}], INSTRUCTION)

    async def answer(**changes: Any) -> str:
        monkeypatch.setattr(engine, "_config", CONFIG.model_copy(update=changes))
        return str((await engine.answer(rows, 1))["text"][0].as_py())

    likeliest = await answer(temperature=0.0)
    assert await answer(temperature=2.0, top_k=1) == likeliest
    assert await answer(temperature=2.0) != likeliest


@pytest.mark.asyncio(loop_scope="module")
async def test_greedy_tokens_come_with_their_probabilities(engine: Engine) -> None:
    (once,) = await engine.greedy([(5, 6, 7)], 6)
    (again,) = await engine.greedy([(5, 6, 7)], 6)
    assert once == again
    assert len(once.tokens) == len(once.logprobs)
    assert all(value <= 0 for value in once.logprobs)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_chat_streams(engine: Engine) -> None:
    pieces = [piece async for piece in engine.stream("Describe item 1.", 8)]
    assert 1 <= len(pieces) <= 8


@pytest.mark.asyncio(loop_scope="module")
async def test_answers_and_new_weights_take_turns(engine: Engine, folder: Path, tmp_path: Path) -> None:
    make_trained(folder, tmp_path / "model", seed=1)
    rows = table([{"id": instruction_id("Go on."), "text": "Go on.", "source": "seed", "iteration": 0}], INSTRUCTION)
    before = asyncio.create_task(engine.answer(rows, 1))
    await asyncio.sleep(0)  # it has begun, and its row is next
    loading = asyncio.create_task(engine.refresh(tmp_path / "model", "one"))
    await asyncio.sleep(0)
    meanwhile = asyncio.create_task(engine.answer(rows, 1))
    agreement = await loading
    assert agreement.ok, agreement.detail
    assert (await before)["version"].to_pylist() == ["base"]
    assert (await meanwhile)["version"].to_pylist() == ["one"]
    after = await engine.answer(rows, 1)
    assert after.equals(await meanwhile), "what waited was answered with the new weights"


@pytest.fixture(scope="module")
def trained(folder: Path) -> list[Path]:
    """Two checkpoints."""
    for seed in (1, 2):
        make_trained(folder, folder.parent / f"seed-{seed}", seed=seed)
    return [folder.parent / f"seed-{seed}" for seed in (1, 2)]


Damage = Callable[[list[bytes], list[bytes]], Iterator[bytes]]


def lost(right: list[bytes], wrong: list[bytes]) -> Iterator[bytes]:
    yield right[0]
    raise OSError("lost on the way")


def missing(right: list[bytes], wrong: list[bytes]) -> Iterator[bytes]:
    yield from right[:-1]


def truncated(right: list[bytes], wrong: list[bytes]) -> Iterator[bytes]:
    yield from right[:-1]
    yield right[-1][:-4]


def another_model(right: list[bytes], wrong: list[bytes]) -> Iterator[bytes]:
    yield from wrong


def mixed(right: list[bytes], wrong: list[bytes]) -> Iterator[bytes]:
    yield from right[:-2]
    yield from wrong[-2:]


def whole(right: list[bytes], wrong: list[bytes]) -> Iterator[bytes]:
    yield from reversed(right)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (lost, "could not load one: lost on the way"),
        (missing, "parameters did not come, such as "),
        (truncated, "could not load one: "),
        (another_model, "the canary disagrees"),
        (mixed, "the canary disagrees"),
        (whole, ""),  # after all that
    ],
)
async def test_weights_from_memory_are_those_on_disk(
    engine: Engine, trained: list[Path], sent: Damage, told: str
) -> None:
    """To the last bit; what is wrong with those in memory is told, and the others are used."""
    one, two = trained
    right, wrong = ([chunk.tobytes() for chunk in chunks(folder, 30_000)] for folder in trained)
    assert len(right) > 4

    async def arriving() -> AsyncIterator[bytes]:
        for chunk in sent(right, wrong):
            yield chunk

    async def fetch() -> Path:
        assert told, "nothing is read from the disk"
        return one

    async def answers() -> list[Greedy]:
        return await engine.greedy([(5, 6, 7), (9, 8)], 12)

    await engine.refresh(one, "one")
    expected = await answers()
    await engine.refresh(two, "two")
    assert await answers() != expected
    agreement, why = await engine.refresh_from_memory(arriving(), (one / layout.CANARY).read_bytes(), fetch, "one")
    assert agreement.ok, agreement.detail
    assert told in why
    assert bool(told) == bool(why)
    assert engine.version == "one"
    assert await answers() == expected


@pytest.mark.asyncio(loop_scope="module")
async def test_weights_that_are_not_there_are_an_error_of_ours(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not load lost"):
        await engine.refresh(tmp_path / "lost", "lost")


async def test_no_model_no_engine(tmp_path: Path) -> None:
    engine = Engine(CONFIG, base_dir=tmp_path, seed=0)
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        await engine.start(tmp_path, "base")
    engine.shutdown()


async def test_an_engine_that_has_not_started_says_so(tmp_path: Path) -> None:
    engine = Engine(CONFIG, base_dir=tmp_path, seed=0)
    with pytest.raises(EngineError, match="has not started"):
        engine.llm  # noqa: B018
    engine.shutdown()
