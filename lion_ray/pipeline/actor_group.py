"""The run's actors: one or more proxies for each endpoint, budget, run store, referee, generator, student engines.

Invariants:
- The driver owns every actor and none is detached: they end with the run, however it ends.
- Names contain the run and the attempt, so that a retried run never meets actors of an earlier attempt.
- Leaving the actor group's context drains the calls in flight, then stops servers, engines and actors, in that order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from lion_ray.actors.base import get_within
from lion_ray.actors.budget import LedgerActor
from lion_ray.actors.endpoint_handle import proxy_names
from lion_ray.actors.generator import GeneratorActor
from lion_ray.actors.novelty_shard import start_shards
from lion_ray.actors.placement import Shares
from lion_ray.actors.referee import RefereeActor
from lion_ray.actors.resources import beside_the_driver, for_roles, for_server, scarce
from lion_ray.actors.rewarder import RewarderActor
from lion_ray.actors.run_store import RunStoreActor
from lion_ray.actors.student_pool import StudentPool
from lion_ray.actors.teacher import ProxySettings, TeacherActor
from lion_ray.config import EndpointConfig, RunConfig, endpoints_in_use, paid_roles
from lion_ray.core.errors import first_line
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.gateway.stats import Stats, meter_line
from lion_ray.pipeline.reporter import Reporter
from lion_ray.pipeline.scheduling import in_turn, together
from lion_ray.tracking import Spend

CLOSE_TIMEOUT_S = 60.0
"""Timeout for a proxy to stop its server and close its journal after its last call, in seconds."""
METER_S = 2.0


class ActorGroup:
    """The run's actors, as an async context."""

    def __init__(
        self,
        config: RunConfig,
        base_dir: Path,
        store: RunStore,
        attempt: int,
        progress: Progress,
        write_report: Callable[[RunStore], None],
        placed: Shares,
        keys: str | None = None,
    ) -> None:
        """
        Args:
            write_report: writes a run's report.
            placed: the GPUs to reserve.
            keys: the file with the driver's keys, if there is one.
        """
        self._progress = progress
        self._config = config
        self._placed = placed
        run_name = self._run_name = f"{config.run_name}-{attempt}"
        self._store = store
        journal = store.journal(config.journal)

        def named(endpoint: str) -> tuple[str, ...]:
            return proxy_names(run_name, endpoint, config.endpoints[endpoint].proxies)

        roles = for_roles()
        self.run_store: Any = RunStoreActor.options(name=f"{run_name}/run_store", **roles).remote(store)
        ledger = f"{run_name}/ledger"
        self.ledger: Any = LedgerActor.options(name=ledger, scheduling_strategy=beside_the_driver()).remote(
            config.budget and config.budget.usd
        )
        never = tuple(name for name, one in config.endpoints.items() if one.assume_billed == "never")
        self.proxies: dict[str, list[Any]] = {}
        for endpoint in endpoints_in_use(config):
            own = endpoint == config.teacher.endpoint
            fallbacks = tuple(named(other) for other in config.teacher.fallbacks) if own else ()
            gpus = placed.servers.get(endpoint, 0.0)
            place = for_server(gpus) if gpus else roles
            self.proxies[endpoint] = [
                TeacherActor.options(name=name, **place).remote(
                    ProxySettings(
                        endpoint=endpoint,
                        name=name,
                        run=config.run_name,
                        config=_with_gpus(config.endpoints[endpoint], gpus),
                        teacher=config.teacher,
                        journal=journal,
                        base_dir=base_dir,
                        seed=config.seed,
                        ledger=ledger,
                        keys=keys,
                        siblings=tuple(other for other in named(endpoint) if other != name),
                        never_billed=never,
                        fallbacks=fallbacks,
                    )
                )
                for name in named(endpoint)
            ]
        self._teachers = self.proxies[config.teacher.endpoint]
        # Pass proxies by name: an actor with an actor handle among its arguments cannot be restarted by Ray.
        judge, writer = config.referee.endpoint, config.generator.endpoint
        structured, tau = config.endpoints[judge].json_schema, config.discrimination.tau
        self._referees: list[Any] = [
            RefereeActor.options(name=f"{run_name}/referee-{number}", **roles).remote(
                config.referee, named(judge), structured, base_dir, config.seed, tau
            )
            for number in range(config.referee.replicas)
        ]
        self.generator: Any = GeneratorActor.options(name=f"{run_name}/generator", **roles).remote(
            config.generator, config.generation, named(writer), base_dir, config.seed
        )
        self._novelty_shards: dict[str, Any] = {}
        self.rewarder: Any = None
        if config.on_policy is not None:
            paid = [role for role in ("rubricator", "verifier") if role in paid_roles(config)]
            proxies = {role: named(getattr(config, role).endpoint) for role in paid}
            self.rewarder = RewarderActor.options(name=f"{run_name}/rewarder", **roles).remote(
                config, store, proxies, base_dir
            )
        self.reporter = Reporter(store, progress, write_report)
        self.students = StudentPool(
            config.student,
            run_name=run_name,
            store=store,
            base_dir=base_dir,
            seed=config.seed,
            shard_rows=config.rows_per_shard(),
            gpus=placed.engine,
        )

    async def __aenter__(self) -> ActorGroup:
        return self

    async def ready(self) -> None:
        """Wait until every endpoint is ready: journals are open, and the run's own servers answer."""

        async def one(name: str, proxies: list[Any]) -> None:
            gpus = self._placed.servers.get(name, 0.0)
            for proxy in proxies:
                if gpus:
                    await self._progress.waiting(
                        proxy.alive.remote(), lambda: f"endpoint {name}: waiting for {scarce({'GPU': gpus})}"
                    )
                address = await self._progress.waiting(proxy.ready.remote(), f"endpoint {name}: starting")
            self._progress.say(f"endpoint {name}: {address}")

        # vLLM measures what is free on its GPU, so servers that share one start one after another.
        sharing = [one(name, proxies) for name, proxies in self.proxies.items() if self._shares_gpu(name)]
        others = [one(name, proxies) for name, proxies in self.proxies.items() if not self._shares_gpu(name)]
        await together(in_turn(*sharing), *others)

    def _shares_gpu(self, endpoint: str) -> bool:
        return 0 < self._placed.servers.get(endpoint, 0.0) < 1

    @asynccontextmanager
    async def metered(self, report: Callable[[Spend], None] = lambda _: None) -> AsyncIterator[None]:
        """While the block runs, show the endpoints' activity and the cost, and pass them to `report`."""
        task = asyncio.create_task(self._keep_metering(report))
        try:
            yield
            with contextlib.suppress(ray.exceptions.RayError):
                await self._meter(report)  # the activity since the last interval
        finally:
            task.cancel()

    async def _keep_metering(self, report: Callable[[Spend], None]) -> None:
        while True:
            await asyncio.sleep(METER_S)
            try:
                await self._meter(report)
            except ray.exceptions.RayError:
                continue  # a restarting actor has no stats; a lasting error ends a stage

    async def _meter(self, report: Callable[[Spend], None]) -> None:
        stats = {name: [await p.stats.remote() for p in ps] for name, ps in self.proxies.items()}
        spent = await self.ledger.spent.remote()
        self._progress.meter(meter_line(stats, spent, self._config.budget.usd if self._config.budget else None))
        report(_spend([one for of_endpoint in stats.values() for one in of_endpoint], spent))

    def actors(self) -> dict[str, Any]:
        """The run's current actors by a readable name."""
        named = {
            "ledger": self.ledger,
            "run_store": self.run_store,
            "generator": self.generator,
        } | ({} if self.rewarder is None else {"rewarder": self.rewarder})
        named |= {f"referee {number}": actor for number, actor in enumerate(self._referees)}
        named |= {f"novelty shard {number}": actor for number, actor in enumerate(self._novelty_shards.values())}
        for endpoint, proxies in self.proxies.items():
            named |= {f"endpoint {endpoint}, proxy {number}": proxy for number, proxy in enumerate(proxies)}
        return named | {f"student engine {number}": actor for number, actor in self.students.running.items()}

    async def moves(self) -> int:
        """A number that changes whenever a call starts or ends, or one of the run's own servers computes a token. It
        also changes all the time while calls wait for something that ends by itself (`Stats.moves`): an outage, or a
        pause that an endpoint requested."""
        moved = 0
        for name, proxy in self._each_proxy():
            try:
                stats = await get_within(proxy.stats.remote(), METER_S)
            except (TimeoutError, ray.exceptions.RayError):
                continue  # the watchdog checks whether it answers
            own = self._config.endpoints[name].serve is not None
            moved += stats.moves(own_server=own, now=time.monotonic_ns())
        return moved

    def teacher(self, shard: int) -> Any:
        """The proxy for a teacher shard: always the same one."""
        return self._teachers[shard % len(self._teachers)]

    def referee(self, shard: int) -> Any:
        """The referee for a shard: always the same one."""
        return self._referees[shard % len(self._referees)]

    @contextmanager
    def novelty_shards(self, iteration: int, parts: Sequence[str], rows: int) -> Iterator[list[str]]:
        """For the time of the block, actors that index the known instructions: all `rows` of these parts. Yields their
        names: none if the generator can index so many itself."""
        prefix, limit = f"{self._run_name}/iteration-{iteration}", self._config.generation.max_similarity
        self._novelty_shards = start_shards(prefix, self._store, parts, rows, limit, **for_roles())
        try:
            yield list(self._novelty_shards)
        finally:
            for actor in self._novelty_shards.values():
                ray.kill(actor)
            self._novelty_shards = {}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._progress.say("stopping: calls in flight finish and are kept, then servers and engines end")
        # Concurrently: engines hold GPUs, which the report does not need.
        await asyncio.gather(self._close(for_good=error is None), self.reporter.close(wait=error is None))

    async def _close(self, *, for_good: bool) -> None:
        await self.students.stop()
        # Concurrently: each may wait for calls in flight, which are paid for.
        await asyncio.gather(*(self._close_proxy(name, proxy, for_good) for name, proxy in self._each_proxy()))
        for actor in self.actors().values():
            ray.kill(actor)

    async def _close_proxy(self, name: str, proxy: Any, for_good: bool) -> None:
        longest = CLOSE_TIMEOUT_S + self._config.endpoints[name].timeout_s
        closing = get_within(proxy.close.remote(for_good), longest)
        try:
            await self._progress.waiting(closing, f"endpoint {name}: waiting for calls in flight")
        except TimeoutError:
            self._progress.say(f"endpoint {name} did not close in time; killing it")
        except ray.exceptions.RayError as error:
            self._progress.say(f"endpoint {name} could not close ({first_line(error)}); killing it")

    def _each_proxy(self) -> list[tuple[str, Any]]:
        return [(name, proxy) for name, proxies in self.proxies.items() for proxy in proxies]


def _with_gpus(endpoint: EndpointConfig, gpus: float) -> EndpointConfig:
    """The endpoint's settings with the number of GPUs that its server has reserved."""
    if endpoint.serve is None:
        return endpoint
    return endpoint.model_copy(update={"serve": endpoint.serve.model_copy(update={"num_gpus": gpus})})


def _spend(stats: Sequence[Stats], usd: float) -> Spend:
    """Cost and counts of the endpoints' proxies, for trackers."""
    return Spend(
        time=time.time(),
        usd=usd,
        uncertain_usd=sum(one.uncertain_usd for one in stats),
        completed=sum(one.completed for one in stats),
        replayed=sum(one.replayed for one in stats),
        failed=sum(one.failed for one in stats),
        prompt_tokens=sum(one.prompt_tokens for one in stats),
        completion_tokens=sum(one.completion_tokens for one in stats),
        in_flight=sum(one.in_flight for one in stats),
    )
