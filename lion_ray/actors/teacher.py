"""TeacherProxy: the only access to one endpoint, for teacher, referee and generator alike.

Invariants:
- No other code of the run calls this endpoint's API, and no other process reads its key.
- An answer leaves the proxy only after it is in the journal (contract: bought once), so the proxy may die at any
  moment: its replacement continues from the journal.
- Messages carry shards, not single calls: one actor message costs as much as several calls.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from lion_ray.actors.base import LOST, BaseActor, restartable
from lion_ray.actors.endpoint_handle import EndpointHandle
from lion_ray.actors.metrics import EndpointMetrics
from lion_ray.config import EndpointConfig, TeacherConfig
from lion_ray.core.descriptors import raise_limit
from lion_ray.core.errors import EndpointError, InfrastructureError, LionError, as_raised
from lion_ray.core.finish_reason import ending
from lion_ray.core.records import ANSWER, OK, QUARANTINED, Prompt, derive_seed, table
from lion_ray.core.terminal import tell
from lion_ray.gateway.calls import Call, Failure, Outcome, answer_text, refusal
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.ledger import Excess, Ledger
from lion_ray.gateway.sender import DOWN
from lion_ray.gateway.stats import Event, ServedStats, Stats
from lion_ray.gateway.tuning import collect_seldom
from lion_ray.gateway.wire import UNREACHABLE
from lion_ray.inference.kept_server import KeptServer
from lion_ray.inference.served_model import ServedModel, patient
from lion_ray.inference.server_metrics import ServerRates
from lion_ray.prompts.source import load_source

METRICS_S = 2.0


@dataclass(frozen=True)
class ProxySettings:
    """The settings of a proxy."""

    endpoint: str
    """The endpoint's name in the configuration."""
    name: str
    """This proxy's name; the proxies of one endpoint share its limits."""
    run: str
    """The run's name for accounting."""
    config: EndpointConfig
    teacher: TeacherConfig
    journal: str
    base_dir: Path
    seed: int
    ledger: str
    """The name of the run's ledger actor."""
    keys: str | None = None
    """The file with the driver's keys, if the driver started Ray (`gateway.keys`)."""
    siblings: tuple[str, ...] = ()
    """The endpoint's other proxies. A 429 at one pauses them all; a surprising bill at one is shared with all."""
    never_billed: tuple[str, ...] = ()
    """The run's endpoints whose calls of unknown outcome cost nothing."""
    fallbacks: tuple[tuple[str, ...], ...] = ()
    """The proxies of each fallback endpoint for the teacher, in order; used while this one is down."""


class TeacherProxy(BaseActor):
    """An endpoint of the run, as an async actor."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._teacher = settings.teacher
        self._source = load_source(settings.teacher, settings.base_dir)
        self._metrics = EndpointMetrics(settings.endpoint, settings.name)
        self._server: KeptServer | None = None
        self._served: ServedStats | None = None
        self._journal: Journal | None = None
        self._opening: asyncio.Task[Client] | None = None
        self._meter: asyncio.Task[None] | None = None
        self._paused_until = 0.0

    async def ready(self) -> str:
        """Open the journal, and start the endpoint's server if the run serves it. Returns the address.

        Raises:
            EndpointError: no key, or the server did not start.
        """
        await self._client()
        return (
            self._server.server.base_url if self._server else self._settings.config.base_url or "the package's default"
        )

    async def _client(self) -> Client:
        # A task, so that concurrent calls open it once; lazy, so that a restarted actor opens it again.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            if self._opening.cancelled():
                raise InfrastructureError("the run ended before this endpoint was open") from None
            raise

    async def _open(self) -> Client:
        settings = self._settings
        self._journal = await asyncio.to_thread(Journal.open, settings.journal)
        spending = partial(self._journal.spending, settings.run, never_billed=settings.never_billed)
        spent = sum(one.usd for one in (await asyncio.to_thread(spending)).values())
        ledger: Any = ray.get_actor(settings.ledger)
        await ledger.opened.remote(settings.name, spent)
        config, base_url, weights = settings.config, settings.config.base_url, ""
        if config.serve is not None:
            served = ServedModel(config.model, config.serve, settings.base_dir, tell)
            self._server = KeptServer(await served.server(), tell)
            hashing = asyncio.create_task(served.weights())
            base_url = await self._server.start()
            config, weights = patient(config), await hashing
        collect_seldom()
        raise_limit()
        client = Client(
            settings.endpoint,
            config,
            self._journal,
            run=settings.run,
            base_url=base_url,
            served=self._server is not None,
            weights=weights,
            keys=settings.keys,
            ledger=Ledger(
                settings.config.prices,
                lease=partial(_lease, ledger, settings.name),
                report=partial(_report, ledger, settings.name),
            ),
            on_event=self._heard,
            say=tell,
        )
        self._meter = asyncio.create_task(self._keep_showing(client))
        return client

    def _heard(self, event: Event) -> None:
        self._metrics.heard(event)
        if event.kind == "surprised" and (client := self._opened()) is not None:
            for name in self._settings.siblings:
                ray.get_actor(name).expect.remote(client.excess)
            return
        until = time.monotonic() + event.seconds
        # A burst of 429s causes one pause and one message.
        if event.kind == "rate_limited" and until > self._paused_until + 0.5:
            self._paused_until = until
            for name in self._settings.siblings:
                ray.get_actor(name).pause.remote(event.seconds)

    async def pause(self, seconds: float) -> None:
        """Send nothing for this long, because a sibling got a 429."""
        (await self._client()).pause(seconds)

    async def expect(self, excess: Excess) -> None:
        """Reserve as much budget for each call as a sibling has observed that a call can cost."""
        (await self._client()).expect(excess)

    async def _keep_showing(self, client: Client) -> None:
        rates = ServerRates()
        while True:
            if self._server is not None and (counts := await self._server.server.counts()) is not None:
                self._served = rates.add(time.monotonic(), counts)
            self._metrics.show(client.stats)
            await asyncio.sleep(METRICS_S)

    async def complete(self, calls: list[Call], patient: bool = True) -> list[Outcome]:
        """Every call's outcome, in order. With `patient` False, a Failure with `DOWN` if the endpoint is down.

        Raises:
            EndpointError: the endpoint refuses every call.
            BudgetError: the run's budget is spent.
        """
        client = await self._client()
        outcomes = asyncio.gather(*(client.complete(call, patient=patient) for call in calls))
        return list(await (outcomes if self._server is None else self._server.during(outcomes)))

    async def answer(self, shard: pa.Table, stage: str) -> pa.Table:
        """The teacher's answers to a shard of INSTRUCTION rows: an ANSWER table in the same order."""
        rows = [Prompt.of(row, reference=False) for row in shard.to_pylist()]
        outcomes = await self._from_anyone([self._call(row, stage) for row in rows])
        return table((answer_row(row.id, outcome) for row, outcome in zip(rows, outcomes, strict=True)), ANSWER)

    async def _from_anyone(self, calls: list[Call]) -> list[Outcome]:
        """Outcomes from this endpoint; if it is down or refuses, from the first fallback that answers."""
        if not self._settings.fallbacks:
            return await self.complete(calls)
        outcomes: dict[int, Outcome] = {}
        refused: LionError | None = None
        for ask in (self.complete, *(proxy.complete for proxy in self._fallbacks)):
            left = [i for i in range(len(calls)) if i not in outcomes]
            try:
                answers = await ask([calls[i] for i in left], patient=False)
            except (EndpointError, ray.exceptions.RayTaskError) as error:
                raised = as_raised(error)
                if not isinstance(raised, EndpointError):
                    raise
                refused = raised
                tell(f"teacher: {raised}; asking the next endpoint")
                continue
            outcomes |= {i: a for i, a in zip(left, answers, strict=True) if not _passes_on(a)}
            if len(outcomes) == len(calls):
                return [outcomes[i] for i in range(len(calls))]
        if refused is not None:
            raise refused
        # All endpoints are down: wait for this one.
        left = [i for i in range(len(calls)) if i not in outcomes]
        outcomes |= dict(zip(left, await self.complete([calls[i] for i in left]), strict=True))
        return [outcomes[i] for i in range(len(calls))]

    @cached_property
    def _fallbacks(self) -> list[EndpointHandle]:
        # Looked up on first use: the other proxies may start after this one.
        return [EndpointHandle(names) for names in self._settings.fallbacks]

    def _call(self, prompt: Prompt, stage: str) -> Call:
        # No iteration in the seed, so that the Cache Pool's answers come from the journal in every iteration.
        return Call(
            messages=tuple(self._source.messages(prompt)),
            max_tokens=self._teacher.max_tokens,
            temperature=self._teacher.temperature,
            top_p=self._teacher.top_p,
            seed=derive_seed(self._settings.seed, "teacher", prompt.id),
            role="teacher",
            stage=stage,
            batch=self._teacher.mode == "batch",
        )

    async def stats(self) -> Stats:
        """Counts since this proxy started, and its current state."""
        return replace((await self._client()).stats, served=self._served)

    def _opened(self) -> Client | None:
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception():
            return None
        return opening.result()

    async def close(self, for_good: bool = False) -> None:
        """Wait until the calls in flight are journaled, close the journal, and stop the server.

        `for_good`: the run is finished, so the results of pending batches are not needed.
        """
        if self._meter is not None:
            self._meter.cancel()
        if self._opening is not None and not self._opening.done():
            # Whoever waits for it gets an error: Ray repeats, and reports, calls that a killed actor did not end.
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if (client := self._opened()) is not None:
            closing = asyncio.create_task(client.close(for_good=for_good))
            await asyncio.sleep(0)  # the client now knows that it is closing
            if self._server is not None:
                # Unfinished answers of our own server cost nothing, so do not wait for them.
                await self._server.stop()
            await closing
        elif self._server is not None:
            await self._server.stop()
        if self._journal is not None:
            await self._journal.close()


async def _lease(ledger: Any, proxy: str, wanted: float) -> float | None:
    try:
        leased: float | None = await ledger.lease.remote(proxy, wanted)
    except LOST:
        raise InfrastructureError(
            "the run's ledger is lost (its process was killed or its machine is gone), and no call is made without it; "
            "everything paid for is kept; run the same command again to resume"
        ) from None
    return leased


async def _report(ledger: Any, proxy: str, spent: float, returned: float) -> None:
    # If the ledger is lost, the answer still counts: the journal has it, and the ledger is not restarted.
    with suppress(*LOST):
        await ledger.report.remote(proxy, spent, returned)


def _passes_on(outcome: Outcome) -> bool:
    """Whether to try another endpoint."""
    return isinstance(outcome, Failure) and outcome.reason in (DOWN, UNREACHABLE)


TeacherActor: Any = restartable(TeacherProxy, at_once=1000)


def answer_row(row_id: str, outcome: Outcome) -> dict[str, Any]:
    """An outcome as a row of ANSWER. An empty or filtered text is quarantined, although it was paid for."""
    if isinstance(outcome, Failure):
        reason = f"{outcome.reason} ({outcome.detail})" if outcome.detail else outcome.reason
        return {"id": row_id, "text": "", "status": QUARANTINED, "reason": reason, "call": outcome.key}
    refused = refusal(outcome)
    return {
        "id": row_id,
        "text": answer_text(outcome),
        "status": QUARANTINED if refused else OK,
        "reason": refused,
        "finish_reason": ending(outcome.finish_reason).value,
        "model": outcome.model,
        "endpoint": outcome.endpoint,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cost_usd": outcome.cost_usd,
        "call": outcome.key,
    }
