"""One method to answer instructions with a model, in its own process: `python -m bench.student_way METHOD WORK RESULT`.

WORK is a file with `Work` as JSON; `Measured` is written to the file RESULT as JSON.

Invariants:
- Every method gets the same texts, token ids, sampling and lengths. End tokens are ignored: each row generates exactly
  `length` tokens.
- The engine's boot and the warm-up are not timed; tokenization and detokenization are.
- Every process started here has ended when this one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lion_ray.config import StudentConfig
from lion_ray.core.process_guard import Guard, descendants
from lion_ray.core.records import derive_seed, instruction_id

ITERATION = 1


@dataclass(frozen=True)
class Work:
    """A method's input."""

    student: dict[str, Any]
    """A StudentConfig; its `model` is a folder."""
    seed: int
    shard_rows: int
    """Rows of a shard, for the pool."""
    warm_up: list[str]
    rounds: list[list[str]]
    """Instructions; no round repeats another's, because engines cache prompts."""

    @property
    def config(self) -> StudentConfig:
        return StudentConfig(**self.student)

    def row_seed(self, text: str) -> int:
        """A row's sampling seed, as in the pool."""
        return derive_seed(self.seed, ITERATION, instruction_id(text))

    def lengths(self, texts: list[str]) -> list[int]:
        return [length(self.row_seed(text), self.config.max_tokens) for text in texts]


@dataclass
class Round:
    """One pass over a round's rows."""

    rows: int
    tokens: int
    """Generated tokens."""
    asked: int
    """Tokens required by the rows' lengths."""
    seconds: float
    cpu_s: float
    """CPU time of this process and its descendants, including Ray's."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Measured:
    """One method's result; `boot_s` is the time from the process's start until the first row could be sent."""

    boot_s: float
    warm_up_s: float
    rounds: list[Round] = field(default_factory=list)


def length(seed: int, longest: int) -> int:
    """The number of tokens that the row with this sampling seed generates, from 1 to `longest`.

    Log-normal with a median of a quarter of `longest`; about one in sixteen has the maximum length.
    """
    drawn = random.Random(seed).lognormvariate(math.log(longest / 4), 0.9)
    return max(1, min(longest, round(drawn)))


def tree_cpu_s() -> float:
    """CPU seconds used by this process and its descendants so far."""
    ticks = 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime: proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def clocked(work: Work, texts: list[str]) -> Iterator[Round]:
    """Time the block; the caller sets `tokens`."""
    found = Round(len(texts), 0, sum(work.lengths(texts)), 0.0, 0.0)
    cpu, began = tree_cpu_s(), time.perf_counter()
    yield found
    found.seconds = time.perf_counter() - began
    found.cpu_s = tree_cpu_s() - cpu


# -- raw vLLM ---------------------------------------------------------------------------------------------------------


def raw(work: Work) -> Measured:
    """`vllm.LLM.generate`, given everything at once: the engine's speed without the pool."""
    from lion_ray.inference.engine_settings import engine_arguments, set_environment

    began = time.perf_counter()
    config, folder = work.config, Path(work.config.model)
    set_environment(config)
    guard = Guard()
    import vllm

    from lion_ray.models.prompter import Prompter

    prompter = Prompter.load(folder, config.prompt)
    llm = vllm.LLM(**engine_arguments(config, folder, work.seed))
    guard.watch(*descendants(os.getpid()))

    def answer(texts: list[str]) -> int:
        prompts: list[Any] = [{"prompt_token_ids": prompter.prompt_ids(text)} for text in texts]
        sampling = [
            vllm.SamplingParams(
                temperature=config.temperature, top_p=config.top_p, max_tokens=tokens, seed=seed, ignore_eos=True
            )
            for text, tokens in zip(texts, work.lengths(texts), strict=True)
            for seed in [work.row_seed(text)]
        ]
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in answers)

    try:
        return _run(work, answer, time.perf_counter() - began)
    finally:
        llm.llm_engine.engine_core.shutdown()
        guard.close()


def _run(work: Work, answer: Callable[[list[str]], int], boot_s: float) -> Measured:
    began = time.perf_counter()
    answer(work.warm_up)
    result = Measured(boot_s, time.perf_counter() - began)
    for texts in work.rounds:
        with clocked(work, texts) as one:
            one.tokens = answer(texts)
        result.rounds.append(one)
    return result


# -- the pool ---------------------------------------------------------------------------------------------------------


def pool(work: Work) -> Measured:
    """The student pool as in a run: one engine in an actor, Arrow shards through Ray's object store."""
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    from lion_ray.pipeline.ray_cluster import RAY_ENVIRONMENT

    os.environ |= RAY_ENVIRONMENT
    began = time.perf_counter()
    ray.init(
        address="local",
        num_cpus=max(4, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        return asyncio.run(_pool(work, began))
    finally:
        ray.shutdown()


async def _pool(work: Work, began: float) -> Measured:
    import ray

    from lion_ray.core.records import INSTRUCTION, shards, table

    async with _student_pool(work) as students:

        async def answer(texts: list[str]) -> int:
            rows = ({"id": instruction_id(t), "text": t, "source": "seed", "iteration": 0} for t in texts)
            parts = [ray.put(shard) for shard in shards(table(rows, INSTRUCTION), work.shard_rows)]
            answers = ray.get(await asyncio.gather(*(students.answer(part, ITERATION) for part in parts)))
            return sum(count or 0 for part in answers for count in part["completion_tokens"].to_pylist())

        boot_s, warm = time.perf_counter() - began, time.perf_counter()
        await answer(work.warm_up)
        result = Measured(boot_s, time.perf_counter() - warm)
        for texts in work.rounds:
            with clocked(work, texts) as one:
                one.tokens = await answer(texts)
            result.rounds.append(one)
    return result


@contextlib.asynccontextmanager
async def _student_pool(work: Work) -> AsyncIterator[Any]:
    from lion_ray.actors.student import ModelRef
    from lion_ray.actors.student_pool import StudentPool
    from lion_ray.core.progress import Progress
    from lion_ray.core.store import RunStore

    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as folder:
        students = StudentPool(
            work.config,
            run_name="bench",
            store=RunStore(folder),
            base_dir=Path(folder),
            seed=work.seed,
            shard_rows=work.shard_rows,
        )
        try:
            await students.load(ModelRef("base", source=work.config.model), Progress(sys.stderr))
            for actor in students.running.values():
                await actor.__ray_call__.remote(_ignore_end, work.config.max_tokens)
            yield students
        finally:
            await students.stop()


def _ignore_end(actor: Any, longest: int) -> None:
    """Make an engine's answers end only by `length`; otherwise it is unchanged."""
    engine = actor._engine
    generate = engine._generate

    async def exactly(ids: list[int], sampling: dict[str, Any]) -> Any:
        return await generate(ids, sampling | {"ignore_eos": True, "max_tokens": length(sampling["seed"], longest)})

    engine._generate = exactly
    engine._prompter.stop_token_ids = []


# -- the published method ---------------------------------------------------------------------------------------------


def published(work: Work) -> Measured:
    """`transformers` `generate`, one row at a time."""
    began = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM

    from lion_ray.inference import wants_gpu
    from lion_ray.models.prompter import Prompter

    torch.set_num_threads(os.cpu_count() or 1)
    config = work.config
    device = "cuda" if wants_gpu(config.use_gpu) else "cpu"
    prompter = Prompter.load(config.model, config.prompt)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=getattr(torch, config.dtype))
    model.to(device).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = prompter.end_id
    heat = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if config.temperature else {}

    def answer(texts: list[str]) -> int:
        generated = 0
        for text, tokens in zip(texts, work.lengths(texts), strict=True):
            torch.manual_seed(work.row_seed(text))
            ids = torch.tensor([prompter.prompt_ids(text)], device=device)
            with torch.inference_mode():
                whole = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=bool(config.temperature),
                    **heat,
                )
            answered = whole[0, ids.shape[1] :].tolist()
            prompter.tokenizer.decode(answered, skip_special_tokens=True)
            generated += len(answered)
        return generated

    return _run(work, answer, time.perf_counter() - began)


WAYS: dict[str, Callable[[Work], Measured]] = {"raw": raw, "pool": pool, "published": published}


def main() -> None:
    way, work, result = sys.argv[1:]
    measured = WAYS[way](Work(**json.loads(Path(work).read_text())))
    Path(result).write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
