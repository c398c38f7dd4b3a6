"""TeacherProxy: the only door to one endpoint, for teacher, referee and generator alike.

Invariants:
- No other code of the run calls this endpoint's API, and no other process reads its key.
- An answer leaves the proxy only after it is in the journal (contract 1), so the proxy may die at any moment: the
  one that Ray starts in its place goes on from the journal.
- Messages carry shards, not single calls: one actor message costs as much as several calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from lion_ray.algorithm.prompts import load_template, teacher_messages
from lion_ray.config import EndpointConfig, TeacherConfig
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.inference.server import ModelServer
from lion_ray.models import resolve_model
from lion_ray.records import ANSWER, OK, QUARANTINED, derive_seed, table


class TeacherProxy:
    """An endpoint of the run, as an async actor."""

    def __init__(
        self, name: str, endpoint: EndpointConfig, teacher: TeacherConfig, journal: str, base_dir: Path, seed: int
    ) -> None:
        self._name = name
        self._endpoint = endpoint
        self._teacher = teacher
        self._template = load_template(teacher.prompt, "teacher", base_dir)
        self._journal_root = journal
        self._base_dir = base_dir
        self._seed = seed
        self._server: ModelServer | None = None
        self._journal: Journal | None = None
        self._opening: asyncio.Task[Client] | None = None

    async def ready(self) -> str:
        """Open the journal, start the endpoint's server where the run serves it; returns the address.

        Raises:
            EndpointError: no key, or the server did not come up.
        """
        await self._client()
        return self._server.base_url if self._server else self._endpoint.base_url or "the openai package's default"

    async def _client(self) -> Client:
        # A task, so that calls arriving together open once; and lazily, so that a restarted actor opens again.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Client:
        base_url = self._endpoint.base_url
        self._journal = await asyncio.to_thread(Journal.open, self._journal_root)
        if self._endpoint.serve is not None:
            model = await asyncio.to_thread(
                resolve_model, self._endpoint.serve.model, base_dir=self._base_dir, progress=print
            )
            self._server = ModelServer(self._endpoint.serve, str(model), self._endpoint.model)
            base_url = await self._server.start(say=print)
        return Client(self._name, self._endpoint, self._journal, base_url=base_url)

    async def complete(self, calls: list[Call]) -> list[Outcome]:
        """Every call's outcome, in order.

        Raises:
            EndpointError: the endpoint refuses every call.
        """
        client = await self._client()
        return list(await asyncio.gather(*(client.complete(call) for call in calls)))

    async def answer(self, shard: pa.Table) -> pa.Table:
        """The teacher's answers to a shard of INSTRUCTION rows: an ANSWER table in the same order."""
        rows = shard.select(["id", "text"]).to_pylist()
        outcomes = await self.complete([self._call(row["id"], row["text"]) for row in rows])
        return table((answer_row(row["id"], outcome) for row, outcome in zip(rows, outcomes, strict=True)), ANSWER)

    def _call(self, row_id: str, text: str) -> Call:
        # No iteration in the seed: the Cache Pool's answers must come out of the journal in every iteration.
        return Call(
            messages=teacher_messages(self._template, text),
            max_tokens=self._teacher.max_tokens,
            temperature=self._teacher.temperature,
            top_p=self._teacher.top_p,
            seed=derive_seed(self._seed, "teacher", row_id),
            role="teacher",
        )

    async def stats(self) -> dict[str, Any]:
        """Counts since this proxy started; see `gateway.client.Stats`."""
        return dataclasses.asdict((await self._client()).stats)

    async def close(self) -> None:
        """Let the calls that are out come home and be journaled, close the journal, stop the server."""
        if self._opening is not None and self._opening.done() and not self._opening.exception():
            closing = asyncio.create_task(self._opening.result().close())
            await asyncio.sleep(0)  # the client now knows that it is closing
            if self._server is not None:
                # What a server of our own still writes costs nothing: it is not waited for.
                await asyncio.to_thread(self._server.stop)
            await closing
        elif self._server is not None:
            await asyncio.to_thread(self._server.stop)
        if self._journal is not None:
            await self._journal.close()


TeacherActor: Any = ray.remote(num_cpus=0, max_restarts=5, max_task_retries=5, max_concurrency=1000)(TeacherProxy)


def answer_row(row_id: str, outcome: Outcome) -> dict[str, Any]:
    """An outcome as a row of ANSWER. An empty or filtered text was paid for and is no answer: quarantined."""
    if isinstance(outcome, Failure):
        reason = f"{outcome.reason} ({outcome.detail})" if outcome.detail else outcome.reason
        return {"id": row_id, "text": "", "status": QUARANTINED, "reason": reason, "call": outcome.key}
    refused = refusal(outcome)
    return {
        "id": row_id,
        "text": outcome.text,
        "status": QUARANTINED if refused else OK,
        "reason": refused,
        "finish_reason": outcome.finish_reason,
        "model": outcome.model,
        "endpoint": outcome.endpoint,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cost_usd": outcome.cost_usd,
        "call": outcome.key,
    }


def refusal(completion: Completion) -> str | None:
    """Why a completion is no answer, or None."""
    if completion.finish_reason == "content_filter":
        return "withheld by the endpoint's content filter"
    if not completion.text.strip():
        return "empty answer"
    return None
