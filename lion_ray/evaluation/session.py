"""The context of an evaluation: journal, budget, the participants' endpoints, and the place of its results.

Invariants:
- A run's evaluations use the run's folder and journal, under the account ``NAME/eval``, so the run's own budget is not
  used. Other evaluations have their own folder.
- The budget covers one evaluation (suite and target) over all attempts: earlier costs in the journal count.
- However it ends, every received answer is in the journal, and everything started is stopped.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lion_ray.core import layout
from lion_ray.core.descriptors import raise_limit
from lion_ray.core.durable import lock
from lion_ray.core.errors import BudgetError, ConfigError, RunConflictError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.evaluation.endpoint import LazyEndpoint, Spending
from lion_ray.evaluation.participants import Participant
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.ledger import Budget
from lion_ray.inference.serving import model_server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an evaluation's results and calls are kept."""

    store: RunStore
    prefix: str
    journal: str
    account: str
    """The account of the calls in the journal."""

    def name(self, stem: str, suffix: str) -> str:
        return f"{self.prefix}{stem}.{suffix}"


def place_of(target: Participant, out: Path | None, journal: str | None) -> Place:
    """The default place of a target's evaluations, overridden by `out` and `journal`."""
    run, config = target.run, target.run_config
    if run is None or config is None:
        own = out or Path(layout.EVALUATIONS)
        return Place(RunStore(str(own)), "", journal or str(own / layout.JOURNAL), f"{target.label}/eval")
    store, prefix = (run, f"{layout.EVALUATIONS}/") if out is None else (RunStore(str(out)), "")
    return Place(store, prefix, journal or run.journal(config.journal), f"{config.run_name}/eval")


@dataclass
class Session:
    """A running evaluation."""

    place: Place
    stem: str
    """The evaluation's name: in file names, and as the stage in the accounts."""
    progress: Progress
    journal: Journal
    budget: Budget
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _open: list[tuple[Participant, LazyEndpoint]] = field(default_factory=list)
    _spent: dict[str, Spending] = field(default_factory=dict)

    async def endpoint(self, participant: Participant) -> LazyEndpoint:
        """The participant's endpoint, shared by participants with the same one. Other servers are stopped first.

        Two models seldom fit on a machine together, and a served model is not needed after its phase.
        """
        assert participant.config is not None
        for other, endpoint in self._open:
            if (other.endpoint, other.config, other.base_dir) == (
                participant.endpoint,
                participant.config,
                participant.base_dir,
            ):
                return endpoint
        for _, endpoint in self._open:
            await endpoint.close()
        server, served = None, participant.served
        if served is not None:
            server = partial(model_server, served.config, participant.config.model, served.prompt, served.base_dir)
        endpoint = LazyEndpoint(
            participant.endpoint,
            participant.config,
            self.journal,
            self.budget,
            account=self.place.account,
            base_dir=participant.base_dir,
            progress=self.progress,
            server=server,
        )
        self._open.append((participant, endpoint))
        return await self._stack.enter_async_context(endpoint)

    def costs(self) -> dict[str, dict[str, Any]]:
        """Counts and cost of the answers by role."""
        return {role: spent.to_json() for _, endpoint in self._open for role, spent in endpoint.spent.items()}


@asynccontextmanager
async def session(
    place: Place, stem: str, progress: Progress, participants: Iterable[Participant], cap: float | None
) -> AsyncIterator[Session]:
    """Open the journal and the budget; stop everything started, however the block ends.

    Raises:
        ConfigError: a budget is set, but a participant's price is unknown.
        RunConflictError: another command runs the same evaluation.
        BudgetError: the budget is spent; with the message for the command line.
        CancelledError: on SIGTERM; see `done`.
    """
    participants = list(participants)
    for participant in participants:
        config = participant.config
        free = config is None or config.serve is not None or participant.served is not None
        if cap is not None and not free and config is not None and config.prices is None:
            raise ConfigError(
                f"--budget: endpoint {participant.endpoint} has no prices, so its cost cannot be "
                "capped; define it with its prices in a configuration, and name it CONFIG.yaml:NAME"
            )
    with _locked(place, stem):
        async with _session(place, stem, progress, participants, cap) as opened:
            yield opened


@contextmanager
def _locked(place: Place, stem: str) -> Iterator[None]:
    """Lock the evaluation against other commands, which would pay for the same calls and apply the cap separately.

    There is no lock if the journal is in an object store or its file system has no locks.
    """
    if "://" in place.journal:
        yield
        return
    beside = Path(place.journal).parent
    beside.mkdir(parents=True, exist_ok=True)
    path = beside / f".{place.account.replace('/', '-')}-{stem}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if lock(descriptor) is False:
            raise RunConflictError(
                f"{stem}: another command is running this evaluation, and both would pay for it; wait for it ({path})"
            )
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _session(
    place: Place, stem: str, progress: Progress, participants: list[Participant], cap: float | None
) -> AsyncIterator[Session]:
    main = asyncio.current_task()
    assert main is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
    raise_limit()
    journal = await asyncio.to_thread(Journal.open, place.journal)
    never = [one.endpoint for one in participants if one.config and one.config.assume_billed == "never"]
    accounts = await asyncio.to_thread(journal.spending, place.account, never_billed=never)
    spent = sum(one.usd for account, one in accounts.items() if account.stage == stem)
    opened = Session(place, stem, progress, journal, Budget(cap, spent=spent))
    try:
        async with opened._stack:
            yield opened
    except BudgetError as error:
        raise BudgetError(
            f"the budget of ${cap or 0:,.2f} is spent: {error}. All received answers are in {place.journal}; raise "
            "--budget and run the same command to continue"
        ) from None
    finally:
        await journal.close()


def done(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine. Raises KeyboardInterrupt on SIGTERM, as on Ctrl-C."""
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def utc_now() -> str:
    """The current time in the format of results."""
    return datetime.now(UTC).isoformat(timespec="seconds")
