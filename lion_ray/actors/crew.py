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
from lion_ray.config import RunConfig
from lion_ray.store import RunStore
from lion_ray.telemetry import Progress

CLOSE_TIMEOUT_S = 60.0


class Crew:
    """The run's actors, as an async context."""

    def __init__(self, config: RunConfig, base_dir: Path, store: RunStore, attempt: int, progress: Progress) -> None:
        self._progress = progress
        self._roles = {config.teacher.endpoint, config.referee.endpoint, config.generator.endpoint}
        run_name = f"{config.run_name}-{attempt}"
        journal = config.journal or store.path("journal")
        self.proxies: dict[str, Any] = {
            name: TeacherActor.options(name=f"{run_name}/endpoint-{name}").remote(
                name, config.endpoints[name], config.teacher, journal, base_dir, config.seed
            )
            for name in sorted(self._roles)
        }
        self.teacher = self.proxies[config.teacher.endpoint]
        self.referee: Any = RefereeActor.options(name=f"{run_name}/referee").remote(
            config.referee, self.proxies[config.referee.endpoint], base_dir, config.seed
        )
        self.generator: Any = GeneratorActor.options(name=f"{run_name}/generator").remote(
            config.generator, config.generation, self.proxies[config.generator.endpoint], base_dir, config.seed
        )
        self.students = StudentPool(config.student, run_name=run_name, store=store, base_dir=base_dir, seed=config.seed)

    async def __aenter__(self) -> Crew:
        try:
            for name, proxy in self.proxies.items():
                address = await self._progress.waiting(proxy.ready.remote(), f"endpoint {name}: starting")
                self._progress.say(f"endpoint {name}: {address}")
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def stats(self) -> dict[str, dict[str, Any]]:
        """Each endpoint's counts since this attempt began."""
        return {name: await proxy.stats.remote() for name, proxy in self.proxies.items()}

    async def _close(self) -> None:
        await self.students.stop()
        for name, proxy in self.proxies.items():
            try:
                await asyncio.wait_for(asyncio.wrap_future(proxy.close.remote().future()), CLOSE_TIMEOUT_S)
            except (TimeoutError, ray.exceptions.RayError) as error:
                self._progress.say(f"endpoint {name} did not close by itself ({type(error).__name__}); ending it")
        for actor in (self.referee, self.generator, *self.proxies.values()):
            ray.kill(actor)
