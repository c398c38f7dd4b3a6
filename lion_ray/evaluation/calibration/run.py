"""Run a calibration: judge pairs repeatedly and report the judge's measures.

Invariants:
- All calls use the gateway: replies are journaled before anyone sees them, priced, capped and never paid for twice. A
  run's referee is measured with the run's own journal and its recorded verdicts, which cost nothing.
- A calibration does not use its run's budget: it has its own account, ``NAME/judge``, and its own cap.

`measures` computes the results from the replies; `cases` provides the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lion_ray.config import EndpointConfig, RefereeConfig
from lion_ray.config.file import load_config
from lion_ray.core import layout
from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.progress import Progress
from lion_ray.core.records import ORDERS
from lion_ray.core.store import RunStore
from lion_ray.discrimination.orders import Replayed, replay
from lion_ray.discrimination.pairwise import PairwiseJudge
from lion_ray.evaluation.calibration.cases import Case, Judged, both_orders, judged_iterations, judged_rows
from lion_ray.evaluation.calibration.measures import Measures, Reply, measure
from lion_ray.evaluation.participants import Participant
from lion_ray.evaluation.session import Place, session, utc_now
from lion_ray.gateway.calls import Completion, Failure


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A judge and a template."""

    name: str
    """The endpoint's, in its configuration."""
    endpoint: EndpointConfig
    referee: RefereeConfig
    base_dir: Path
    seed: int
    tau: float
    """The configured threshold."""

    def judge(self) -> PairwiseJudge:
        """The pairwise judge. Never in batch mode, because a calibration is small."""
        live = self.referee.model_copy(update={"mode": "live"})
        return PairwiseJudge(live, structured=self.endpoint.json_schema, base_dir=self.base_dir, seed=self.seed)

    def participant(self) -> Participant:
        """Who is asked."""
        return Participant(self.name, endpoint=self.name, config=self.endpoint, base_dir=self.base_dir)

    def described(self) -> dict[str, Any]:
        """The judge's description in a report."""
        names = ("prompt", "temperature", "max_tokens", "weighted", "second_order", "second_order_margin")
        asked = {name: getattr(self.referee, name) for name in names}
        return {"endpoint": self.name, "model": self.endpoint.model, "tau": self.tau} | asked


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a calibration."""

    judge: dict[str, Any]
    labelled: Measures | None
    rows: Measures | None
    """Of a run's own."""
    second_order: tuple[Replayed, ...]
    """What `near_threshold` would have saved and changed, on every row of the run judged in both orders."""

    def to_json(self) -> dict[str, Any]:
        return {
            "judge": self.judge,
            "made_at": utc_now(),
            "labelled": self.labelled and asdict(self.labelled),
            "rows": self.rows and asdict(self.rows),
            "second_order": [one.to_json() for one in self.second_order],
        }


def named_judge(named: str) -> Calibrated:
    """The judge of ``CONFIG.yaml``, or another of its endpoints: ``CONFIG.yaml:NAME``.

    Raises:
        ConfigError: no such file or endpoint.
    """
    path, _, name = named.rpartition(":") if not named.endswith((".yaml", ".yml")) else (named, "", "")
    if not path:
        raise ConfigError(f"{named}: name a judge as CONFIG.yaml or CONFIG.yaml:ENDPOINT")
    loaded = load_config(Path(path))
    config = loaded.config
    name = name or config.referee.endpoint
    tau = config.discrimination.tau
    return Calibrated(name, loaded.endpoint(name), config.referee, loaded.base_dir, config.seed, tau)


def runs_judge(store: RunStore) -> Calibrated:
    """A run's referee, as the run was configured.

    Raises:
        ConfigError: the run's description lacks it, or is another version's.
    """
    described = store.described()
    config = described["config"]
    # Only these sections, because the others may be another version's, and do not matter here.
    try:
        referee = RefereeConfig.model_validate(config["referee"])
        endpoint = EndpointConfig.model_validate(config["endpoints"][referee.endpoint])
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigError(
            f"{store.path(layout.RUN)}: its referee is another version's ({where}); name a judge: CONFIG.yaml:ENDPOINT"
        ) from None
    tau = config["discrimination"]["tau"]
    return Calibrated(referee.endpoint, endpoint, referee, Path(described["base_dir"]), config["seed"], tau)


def place_of(store: RunStore | None, journal: str | None) -> Place:
    """The place of a calibration's calls and result: the run's folder, if it measures a run."""
    if store is None:
        return Place(RunStore(layout.EVALUATIONS), "", journal or f"{layout.EVALUATIONS}/{layout.JOURNAL}", "judge")
    config = store.described()["config"]
    return Place(
        store, f"{layout.EVALUATIONS}/", journal or store.journal(config["journal"]), f"{config['run_name']}/judge"
    )


async def calibrate(
    judge: Calibrated,
    *,
    labelled: Sequence[Case],
    judged: Sequence[Judged],
    recorded: bool,
    samples: int,
    alpha: float,
    place: Place,
    budget: float | None,
    progress: Progress,
) -> tuple[Measures | None, Measures | None]:
    """Ask what is not known yet; returns the measures of the labelled pairs, and of a run's rows.

    Args:
        recorded: the rows' verdicts are this very judge's, and are its first sample.
        samples: how often each pair is judged in each order; noise needs two.
        budget: US dollars, for all that this judge's calibrations here have cost; None for no cap.

    Raises:
        EndpointError: no key, no server at the address, or a refusal.
        BudgetError: the cap is reached; what was answered is in the journal.
        ConfigError: a cap, and an endpoint without prices.
    """
    asks = judge.judge()
    known = [reply for row in judged for reply in _recorded(row)] if recorded else []
    # Rows that rest on one order; the other was never asked.
    half = {row.case.id for row in judged if recorded and not row.reason and len(row.orders) == 1}
    there = {(reply.case, reply.order) for reply in known}
    groups = [list(labelled), [row.case for row in judged]]
    wanted = [
        (group, case, order, sample)
        for group, cases in enumerate(groups)
        for case in cases
        for sample in range(samples)
        for order in ORDERS
        if group == 0 or sample or not recorded or (case.id in half and (case.id, order) not in there)
    ]
    replies: tuple[list[Reply], list[Reply]] = ([], list(known))
    if wanted:
        participant, stem = judge.participant(), f"judge-{judge.name}"
        calls = [asks.call(case.comparison, order, stem, sample=sample) for _, case, order, sample in wanted]
        async with session(place, stem, progress, [participant], budget) as opened:
            outcomes = await (await opened.asked(participant)).ask(calls, "asking the judge")
        for (group, case, order, sample), outcome in zip(wanted, outcomes, strict=True):
            replies[group].append(_reply(asks, case, order, sample, outcome))
    found = [
        measure(cases, said, alpha=alpha, tau=judge.tau, seed=judge.seed) if cases else None
        for cases, said in zip(groups, replies, strict=True)
    ]
    return found[0], found[1]


def replays(store: RunStore, tau: float) -> tuple[Replayed, ...]:
    """Replay a run's verdicts in both orders with the second order only near `tau`; all iterations together."""
    rows = both_orders(row for iteration in judged_iterations(store) for row in judged_rows(store, iteration))
    return tuple(replay(rows, tau)) if rows else ()


def _reply(judge: PairwiseJudge, case: Case, order: str, sample: int, outcome: Completion | Failure) -> Reply:
    reading = judge.read(order, outcome)
    if isinstance(outcome, Failure):
        return Reply(case.id, order, sample, None, reading.failure)
    return Reply(
        case.id,
        order,
        sample,
        reading.pair,
        reading.failure,
        weighted=reading.weighted,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        cost_usd=outcome.cost_usd,
        replayed=outcome.replayed,
    )


def _recorded(row: Judged) -> Iterable[Reply]:
    """A recorded verdict as replies: one for each of its calls, which share its tokens and its cost alike."""
    each = max(1, row.calls)
    cost = None if row.cost_usd is None else row.cost_usd / each
    tokens = (row.prompt_tokens / each, row.completion_tokens / each)
    for place, (order, pair) in enumerate(row.orders.items()):
        yield Reply(row.case.id, order, 0, pair, "", place < row.weighted, *tokens, cost)
    for _ in range(row.calls - len(row.orders)):
        # The run keeps the reason of the last one only.
        yield Reply(row.case.id, "", 0, None, row.reason or "asked again", False, *tokens, cost)


def rows_to_judge(store: RunStore, count: int) -> list[Judged]:
    """`count` rows of the newest iteration that judged the Cache Pool.

    Raises:
        DataError: none has yet.
    """
    iterations = judged_iterations(store)
    if not iterations:
        raise DataError(f"{store.root}: no iteration has judged the Cache Pool yet")
    return judged_rows(store, iterations[-1], count)
