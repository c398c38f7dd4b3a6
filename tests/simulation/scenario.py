"""The processes of a simulated run, and the simulation of one seed with its final checks."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import BudgetError, LionError, RunConflictError
from lion_ray.core.store import RunStore
from lion_ray.gateway.calls import Call, Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.ledger import Ledger
from tests.simulation.model import Violation
from tests.simulation.network import SimTransport
from tests.simulation.system import SimFileSystem, installed
from tests.simulation.world import Process, World, collector_off, folder_in_memory

RUN = "run-1"
STAGES = ("pool-0", "answers-0", "iteration-0/verdicts")


def simulate(seed: int, folder: Path) -> World:
    """Run one seed in an empty folder. Raises Violation, or a process's unexpected error."""
    world = World(seed, folder)
    with _quiet(), collector_off(), installed():
        try:
            _populate(world)
            world.run()
            _check_end(world)
        except BaseException as error:
            error.add_note("\n".join(world.said[-40:]))
            raise
        finally:
            world.clear_away()
    return world


def run(seed: int) -> World:
    """Run one seed in a temporary folder."""
    with folder_in_memory() as folder:
        return simulate(seed, Path(folder))


def run_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        try:
            run(seed)
        except Exception as error:
            error.add_note(f"python -m tests.simulation --seed {seed}")
            raise


def _populate(world: World) -> None:
    rng = world.rng
    prompts = [f"question {number}" for number in range(rng.randint(1, 8))]
    proxies = rng.randint(1, 3)
    config = EndpointConfig(
        model="simulated",
        api_key_env=None,
        prices=world.prices,
        proxies=proxies,
        max_concurrency=rng.choice((1, 4, 64)),
        max_attempts=rng.randint(1, 4),
        breaker_failures=rng.randint(2, 8),
        outage_timeout_s=rng.choice((30.0, 3600.0)),
    )
    segment_bytes = rng.choice((1, 500, 2**20))
    overlap = rng.random() < 0.3
    for number in range(proxies):
        mine = [p for place, p in enumerate(prompts) if place % proxies == number or (overlap and rng.random() < 0.5)]
        world.working.add(f"proxy-{number}")
        world.start(f"proxy-{number}", Proxy(config, mine, segment_bytes))
    if rng.random() < 0.5:
        world.later(rng.random() * 30, lambda: world.start("compactor", _compact))
    if rng.random() < 0.3:
        world.start("driver", _drive)


class Proxy:
    """A proxy of the endpoint, as in `actors.teacher`, and its callers."""

    def __init__(self, config: EndpointConfig, prompts: Sequence[str], segment_bytes: int) -> None:
        self.config, self.prompts, self.segment_bytes = config, prompts, segment_bytes

    async def __call__(self, world: World, process: Process) -> None:
        world.working.add(process.name)
        journal = await asyncio.to_thread(
            Journal.open,
            journal_folder(world),
            filesystem=SimFileSystem(),
            segment_bytes=self.segment_bytes,
            clock=world.clock,
        )
        found = {prompt: await journal.get(self._call(prompt).key(self.config.model)) for prompt in self.prompts}
        answers = {prompt: (c.text if c else None) for prompt, c in found.items()}
        world.model.check_answers(answers, process.began, f"{process.name} starts")
        spent = sum(one.usd for one in journal.spending(RUN).values())
        budget = world.budget

        async def message() -> None:
            await asyncio.sleep(world.rng.random() * 0.01)

        async def lease(wanted: float) -> float | None:
            await message()
            granted = budget.lease(process.name, wanted)
            await message()
            return granted

        async def report(amount: float, returned: float) -> None:
            await message()
            budget.report(process.name, amount, returned)
            await message()

        await message()
        budget.opened(process.name, spent)
        client = Client(
            "api",
            self.config,
            journal,
            run=RUN,
            transport=SimTransport(world, process),
            base_url="http://127.0.0.1:1/v1",
            ledger=Ledger(world.prices, lease=lease, report=report),
            clock=world.clock,
            rng=random.Random(world.rng.random()),
        )
        callers = [
            asyncio.create_task(self._ask(world, process, client, prompt))
            for prompt in self.prompts
            for _ in range(world.rng.choice((1, 1, 2)))
        ]
        for caller in callers:
            if world.rng.random() < 0.1:
                asyncio.get_running_loop().call_later(world.rng.random() * 5, caller.cancel)
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        if not any(isinstance(outcome, LionError) and not isinstance(outcome, BudgetError) for outcome in outcomes):
            # A proxy lives as long as the run.
            world.working.discard(process.name)
            while world.working:  # noqa: ASYNC110 - the others are other processes, with other loops
                await asyncio.sleep(1.0)
        await client.close()
        await journal.close()
        for outcome in outcomes:
            if isinstance(outcome, BudgetError):
                world.say(f"{process.name}: {outcome}")
            elif isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _ask(self, world: World, process: Process, client: Client, prompt: str) -> None:
        await asyncio.sleep(world.rng.random() * world.rng.choice((0.0, 10.0)))
        world.model.asked(process, prompt)
        outcome = await client.complete(self._call(prompt))
        if isinstance(outcome, Completion):
            world.say(f"{process.name} has {outcome.text!r}{' (replayed)' if outcome.replayed else ''}")
            world.model.handed_out(prompt, outcome.text, replayed=outcome.replayed)

    @staticmethod
    def _call(prompt: str) -> Call:
        return call_for(prompt)


def call_for(prompt: str) -> Call:
    return Call(messages=({"role": "user", "content": prompt},), max_tokens=100, role="teacher", stage="answers-0")


def journal_folder(world: World) -> str:
    return str(world.disk.root / "runs" / RUN / "journal")


async def _compact(world: World, process: Process) -> None:
    """Compact the journal while the run continues."""
    folder = Folder.at(journal_folder(world), SimFileSystem())
    for _ in range(world.rng.randint(1, 3)):
        if folder.exists():
            await asyncio.to_thread(compact, folder)
        await asyncio.sleep(world.rng.random() * 10)


async def _drive(world: World, process: Process) -> None:
    """The run's driver: stages of parts, each committed by its manifest."""
    store = RunStore(str(world.disk.root / "runs" / RUN))
    await asyncio.to_thread(store.claim)
    await asyncio.to_thread(_refused, store.root)
    for name in STAGES:
        stage = store.stage(name)
        manifest = await asyncio.to_thread(stage.manifest)
        world.model.check_stage(name, manifest)
        if manifest is not None:
            marks = [(await asyncio.to_thread(stage.read_part, k))["mark"][0].as_py() for k in range(manifest["parts"])]
            if marks != manifest["marks"]:
                raise Violation(f"stage {name} is committed as {manifest}, but its parts are {marks}")
            continue
        present = await asyncio.to_thread(stage.part_indexes)
        marks = []
        for part in range(world.rng.randint(1, 3)):
            if part in present:
                marks.append((await asyncio.to_thread(stage.read_part, part))["mark"][0].as_py())
                continue
            marks.append(world.rng.getrandbits(60))
            await asyncio.to_thread(stage.write_part, part, pa.table({"mark": [marks[-1]], "text": ["x" * 100]}))
            await asyncio.sleep(world.rng.random() * 5)
        committed = {"parts": len(marks), "rows": len(marks), "marks": marks}
        await asyncio.to_thread(stage.commit, committed)
        world.say(f"driver committed {name}")
        world.model.commit(name, committed)
    await asyncio.to_thread(lambda: store.heartbeat(ended=True))


def _refused(root: str) -> None:
    try:
        RunStore(root).claim()
    except RunConflictError:
        return
    raise Violation("a second attempt was admitted beside a live one")


def _check_end(world: World) -> None:
    """Check what a new run finds after all processes have ended, after a power cut, and after a compaction."""
    for when in ("at the end", "after a last power cut", "compacted"):
        if when == "after a last power cut":
            world.disk.cut_power(world.rng)
        world.start(when, _audit)
        world.run()


async def _audit(world: World, process: Process) -> None:
    if process.name == "compacted":
        await asyncio.to_thread(compact, Folder.at(journal_folder(world), SimFileSystem()))
    journal = await asyncio.to_thread(Journal.open, journal_folder(world), filesystem=SimFileSystem())
    found = {prompt: await journal.get(call_for(prompt).key("simulated")) for prompt in world.model.purchases}
    world.model.check_answers(
        {prompt: (c.text if c else None) for prompt, c in found.items()}, process.began, process.name
    )
    # Without uncertain costs, which are only an upper bound of the bills.
    bought = sum(one.usd for one in journal.spending(RUN, never_billed=("api",)).values())
    world.model.check_spending(bought, process.name)
    await journal.close()
    store = RunStore(str(world.disk.root / "runs" / RUN))
    for name in world.model.committed:
        world.model.check_stage(name, store.stage(name).manifest())


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages about killed processes' unfinished coroutines, and the gateway's warnings."""
    hook, level = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = lambda unraisable: None
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logging.disable(level)
