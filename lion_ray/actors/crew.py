"""Everyone a run employs: one proxy per endpoint, the referee, the generator, the student's engines.

Invariants:
- The driver owns every actor and none is detached: when the run ends, in whatever way, they end with it.
- Names carry the run and the attempt, so that a retried run never meets its own past.
- Leaving the crew's context drains the calls in flight, then stops servers, engines and actors, in that order.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from lion_ray.actors.generator import GeneratorActor
from lion_ray.actors.referee import RefereeActor
from lion_ray.actors.student import StudentPool
from lion_ray.actors.teacher import TeacherActor
from lion_ray.checks import ROLES
from lion_ray.config import RunConfig
from lion_ray.store import RunStore
from lion_ray.telemetry import Progress

CLOSE_TIMEOUT_S = 60.0


class Crew:
    """The run's actors, as an async context."""

    def __init__(self, config: RunConfig, base_dir: Path, store: RunStore, attempt: int, progress: Progress) -> None:
        self._progress = progress
        run_name = f"{config.run_name}-{attempt}"
        journal = config.journal or store.path("journal")

        def named(endpoint: str) -> str:
            return f"{run_name}/endpoint-{endpoint}"

        self.proxies: dict[str, Any] = {
            name: TeacherActor.options(name=named(name)).remote(
                name, config.endpoints[name], config.teacher, journal, base_dir, config.seed
            )
            for name in sorted({getattr(config, role).endpoint for role in ROLES})
        }
        self.teacher = self.proxies[config.teacher.endpoint]
        # Proxies go by their names: a handle among its arguments would keep Ray from restarting an actor.
        judge, writer = config.referee.endpoint, config.generator.endpoint
        self.referee: Any = RefereeActor.options(name=f"{run_name}/referee").remote(
            config.referee, named(judge), config.endpoints[judge].json_schema, base_dir, config.seed
        )
        self.generator: Any = GeneratorActor.options(name=f"{run_name}/generator").remote(
            config.generator, config.generation, named(writer), base_dir, config.seed
        )
        self.students = StudentPool(config.student, run_name=run_name, store=store, base_dir=base_dir, seed=config.seed)

    async def __aenter__(self) -> Crew:
        return self

    async def ready(self) -> None:
        """Wait until every endpoint can be called: journals are open, the run's own servers answer."""

        async def one(name: str, proxy: Any) -> None:
            address = await self._progress.waiting(proxy.ready.remote(), f"endpoint {name}: starting")
            self._progress.say(f"endpoint {name}: {address}")

        await asyncio.gather(*(one(name, proxy) for name, proxy in self.proxies.items()))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._progress.say("stopping: calls that are out come home and are kept, then servers and engines end")
        await self._close()

    async def _close(self) -> None:
        await self.students.stop()
        for name, proxy in self.proxies.items():
            try:
                await asyncio.wait_for(asyncio.wrap_future(proxy.close.remote().future()), CLOSE_TIMEOUT_S)
            except (TimeoutError, ray.exceptions.RayError) as error:
                self._progress.say(f"endpoint {name} did not close by itself ({type(error).__name__}); ending it")
        for actor in (self.referee, self.generator, *self.proxies.values()):
            ray.kill(actor)
