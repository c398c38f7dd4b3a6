"""The processes of a simulated run, and the simulation of one seed with its final checks."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from lion_ray.config import BatchConfig, EndpointConfig
from lion_ray.core.errors import BudgetError, LionError, RunConflictError
from lion_ray.core.store import RunStore
from lion_ray.gateway.batch.state import BatchRecords
from lion_ray.gateway.calls import Call, Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.ledger import Ledger
from tests.simulation.batches import ADDRESS, SimBatchAPI
from tests.simulation.model import Violation
from tests.simulation.network import SimTransport
from tests.simulation.system import SimFileSystem, installed
from tests.simulation.world import Process, World, collector_off, folder_in_memory

RUN = "run-1"
T = TypeVar("T")
STAGES = ("pool-0", "answers-0", "iteration-0/verdicts")


def simulate(seed: int, folder: Path) -> World:
    """Run one seed in an empty folder. Raises Violation, or a process's unexpected error."""
    world = World(seed, folder)
    play(world)
    return world


def play(world: World) -> None:
    """Let a seed's history happen. Raises like `simulate`."""
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
        batch=BatchConfig(
            linger_s=1.0, poll_s=10.0, leftovers=rng.choice(("batch", "live")), max_requests=rng.choice((2, 50))
        ),
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

        def lease(wanted: float) -> Awaitable[float | None]:
            return _message(world, lambda: budget.lease(process.name, wanted))

        def report(amount: float, returned: float) -> Awaitable[None]:
            return _message(world, lambda: budget.report(process.name, amount, returned))

        await _message(world, lambda: budget.opened(process.name, spent))
        client = Client(
            "api",
            self.config,
            journal,
            run=RUN,
            transport=SimTransport(world, process),
            batch_api=lambda: SimBatchAPI(world, process),
            base_url=ADDRESS,
            ledger=Ledger(world.prices, lease=lease, report=report),
            clock=world.clock,
            rng=random.Random(world.rng.random()),
        )
        # The role's mode, which may change from one start to the next.
        batch = world.rng.random() < world.in_batches
        callers = [
            asyncio.create_task(self._ask(world, process, client, prompt, batch=batch))
            for prompt in self.prompts
            for _ in range(world.rng.choice((1, 1, 2)))
        ]
        for caller in callers:
            if world.rng.random() < 0.1:
                asyncio.get_running_loop().call_later(world.rng.random() * world.rng.choice((5, 30)), caller.cancel)
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        failed = any(isinstance(outcome, LionError) and not isinstance(outcome, BudgetError) for outcome in outcomes)
        if not failed:
            # It lives as long as the run does.
            world.working.discard(process.name)
            while world.working:  # noqa: ASYNC110 - the others are other processes, with other loops
                await asyncio.sleep(5.0)
        world.model.closing(process)
        await client.close(for_good=not failed)
        if not failed:
            world.service.check_left(process)
        await journal.close()
        for outcome in outcomes:
            if isinstance(outcome, BudgetError):
                world.say(f"{process.name}: {outcome}")
            elif isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _ask(self, world: World, process: Process, client: Client, prompt: str, *, batch: bool) -> None:
        await asyncio.sleep(world.rng.random() * world.rng.choice((0.0, 10.0)))
        world.model.asked(process, prompt)
        outcome = None
        try:
            outcome = await client.complete(replace(self._call(prompt), batch=batch))
        finally:
            if process.alive:
                world.model.left(process, prompt)
        if isinstance(outcome, Completion):
            world.say(f"{process.name} has {outcome.text!r}{' (replayed)' if outcome.replayed else ''}")
            world.model.handed_out(prompt, outcome.text, replayed=outcome.replayed)

    @staticmethod
    def _call(prompt: str) -> Call:
        return call_for(prompt)


def _message(world: World, act: Callable[[], T]) -> Awaitable[T]:
    """Call an actor's method: it arrives even if its caller has ended."""
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def hear(result: T) -> None:
        if not answer.done():
            answer.set_result(result)

    def arrives() -> None:
        result = act()
        world.later(world.rng.random() * 0.01, lambda: hear(result))

    world.later(world.rng.random() * 0.01, arrives)
    return answer


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
    bought, at_most = (
        sum(one.usd for one in journal.spending(RUN, never_billed=never).values()) for never in (("api",), ())
    )
    world.model.check_spending(bought, at_most, process.name)
    if world.service.batches:
        records = await asyncio.to_thread(BatchRecords(journal.root).load, ADDRESS)
        keys = {key for record in records for key in record.keys}
        in_records = {prompt for prompt in world.model.purchases if call_for(prompt).key("simulated") in keys}
        journaled = {prompt for prompt, completion in found.items() if completion is not None}
        world.model.check_batches(journaled, in_records, world.service.holds, process.name)
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
