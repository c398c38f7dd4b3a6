"""Endpoints for evaluations and calibrations, which send calls from their own process, without Ray.

Invariants:
- Calls use the same gateway as a run: replies are journaled before use, priced, capped, and never paid for twice.
- A server started here is stopped here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson

from lion_ray.config import EndpointConfig
from lion_ray.core.progress import Progress
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.ledger import Budget, Ledger
from lion_ray.gateway.request import as_sent
from lion_ray.inference.kept_server import KeptServer
from lion_ray.inference.served_model import ServedModel, patient
from lion_ray.inference.server import ModelServer

T = TypeVar("T")


class LazyEndpoint:
    """An endpoint that is opened only when a call must be sent; replies in the journal are free.

    Use it as an async context; `close` ends its client and server earlier.
    """

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        journal: Journal,
        budget: Budget,
        *,
        account: str,
        base_dir: Path,
        progress: Progress,
        server: Callable[[], AbstractContextManager[ModelServer]] | None = None,
    ) -> None:
        """An endpoint called `name`; its server is started first if the configuration says so.

        Args:
            budget: shared by all endpoints of one evaluation; a cap of None means no cap.
            account: the run's name in the journal's accounts; must not be the name of a run with its own budget.
            server: creates the server to start instead of the configured one (see `inference.serving.model_server`).
        """
        self.name, self.config = name, config
        self._journal, self._budget, self._progress = journal, budget, progress
        self._account, self._server = account, server
        serve = config.serve
        self._served = None if serve is None else ServedModel(config.model, serve, base_dir, progress.say)
        self._stack = AsyncExitStack()
        self._client: Client | None = None
        self._kept: KeptServer | None = None
        self.spent: dict[str, Spending] = {}
        """By role."""

    async def __aenter__(self) -> LazyEndpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client and the server after the calls in flight. The next call opens them again."""
        self._client = None
        await self._stack.aclose()

    async def ask(self, calls: Sequence[Call], title: str) -> list[Outcome]:
        """Every call's outcome, in order.

        Raises:
            EndpointError: no key, the server did not start, or the endpoint refuses every call.
            BudgetError: the budget is spent; received answers are in the journal.
        """
        known = await _replay(self.config, self._journal, calls, await self._weights())
        if None in known:
            if self._client is None:
                self._client = await self._open()
            asking = _ask_all(self._client, calls, self._progress, title)
            outcomes = await (asking if self._kept is None else self._kept.during(asking))
        else:
            outcomes = [one for one in known if one is not None]
            self._progress.say(f"{title}: all {len(calls)} calls are in the journal")
        for call, outcome in zip(calls, outcomes, strict=True):
            self.spent.setdefault(call.role, Spending()).add(outcome)
        return outcomes

    async def _open(self) -> Client:
        say, config, base_url = self._progress.say, self.config, self.config.base_url
        self._kept = None
        if (server := await self._own_server()) is not None:
            self._kept = KeptServer(server, say)
            self._stack.push_async_callback(self._kept.stop)
            base_url = await self._kept.start()
            config = patient(config)
        self._budget.opened(self.name, 0.0)
        ledger = Ledger(
            self.config.prices,
            lease=partial(_at_once, self._budget.lease, self.name),
            report=partial(_at_once, self._budget.report, self.name),
        )
        client = Client(
            self.name,
            config,
            self._journal,
            run=self._account,
            base_url=base_url,
            served=self._kept is not None,
            weights=await self._weights(),
            ledger=ledger,
            say=say,
        )
        self._stack.push_async_callback(client.close)
        return client

    async def _weights(self) -> str:
        """The hash of the configured served model, which is part of the journal keys, as in a run."""
        return await self._served.weights() if self._served is not None and self._server is None else ""

    async def _own_server(self) -> ModelServer | None:
        """The server that must be started before the first call, if any."""
        if self._server is not None:
            return self._stack.enter_context(self._server())
        return None if self._served is None else await self._served.server()


@dataclass(slots=True)
class Spending:
    """Counts and cost of answers. A request shared by several calls counts once."""

    calls: int = 0
    bought: int = 0
    """New calls; the others were in the journal."""
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    """The cost of all calls, new or not; None if a price is unknown."""
    bought_usd: float = 0.0
    _seen: set[str] = field(default_factory=set)

    def add(self, outcome: Outcome) -> None:
        if outcome.key in self._seen:
            return
        self._seen.add(outcome.key)
        self.calls += 1
        if isinstance(outcome, Failure):
            self.failed += 1
            return
        self.bought += not outcome.replayed
        self.prompt_tokens += outcome.prompt_tokens
        self.completion_tokens += outcome.completion_tokens
        self.usd = None if self.usd is None or outcome.cost_usd is None else self.usd + outcome.cost_usd
        self.bought_usd += 0.0 if outcome.replayed else outcome.cost_usd or 0.0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_")}


async def _replay(
    config: EndpointConfig, journal: Journal, calls: Sequence[Call], weights: str
) -> list[Completion | None]:
    """The journal's completions for calls to an endpoint, without a client; None for each call that must be sent."""

    async def one(call: Call) -> Completion | None:
        try:
            key = as_sent(call, config).key(config.model, weights)
        except orjson.JSONEncodeError:
            return None  # invalid text: the client reports it
        return await journal.get(key)

    return list(await asyncio.gather(*(one(call) for call in calls)))


async def _ask_all(client: Client, calls: Sequence[Call], progress: Progress, title: str) -> list[Outcome]:
    """Every call's outcome, in order; the client limits the calls in flight.

    Raises:
        EndpointError: the endpoint refuses every call.
        BudgetError: the budget is spent; received answers are in the journal.
    """
    with progress.stage(title, len(calls), "calls") as shown:

        async def one(call: Call) -> Outcome:
            outcome = await client.complete(call)
            shown.advance(1)
            return outcome

        return list(await asyncio.gather(*(one(call) for call in calls)))


async def _at_once(method: Callable[..., T], *arguments: object) -> T:
    return method(*arguments)
