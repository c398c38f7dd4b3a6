"""Run a calibration: judge pairs repeatedly and report the judge's measures.

Invariants:
- All calls use the gateway: replies are journaled before use, priced, capped and never paid for twice. A run's referee
  is measured with the run's own journal and its recorded verdicts, which cost nothing.
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
    """A judge to calibrate: an endpoint and the referee's settings."""

    name: str
    """The endpoint's name in its configuration."""
    endpoint: EndpointConfig
    referee: RefereeConfig
    base_dir: Path
    seed: int
    tau: float
    """The configured threshold."""

    def judge(self) -> PairwiseJudge:
        """The pairwise judge; always in live mode, because a calibration is small."""
        live = self.referee.model_copy(update={"mode": "live"})
        return PairwiseJudge(live, structured=self.endpoint.json_schema, base_dir=self.base_dir, seed=self.seed)

    def participant(self) -> Participant:
        """The judge as a participant of an evaluation session."""
        return Participant(self.name, endpoint=self.name, config=self.endpoint, base_dir=self.base_dir)

    def described(self) -> dict[str, Any]:
        """The judge's description in a report."""
        names = ("prompt", "temperature", "max_tokens", "weighted", "second_order", "second_order_margin")
        settings = {name: getattr(self.referee, name) for name in names}
        return {"endpoint": self.name, "model": self.endpoint.model, "tau": self.tau} | settings


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a calibration."""

    judge: dict[str, Any]
    labelled: Measures | None
    rows: Measures | None
    """On a run's own rows."""
    second_order: tuple[Replayed, ...]
    """What `near_threshold` would have saved and changed, on all rows of the run with scores in both orders."""

    def to_json(self) -> dict[str, Any]:
        return {
            "judge": self.judge,
            "made_at": utc_now(),
            "labelled": self.labelled and asdict(self.labelled),
            "rows": self.rows and asdict(self.rows),
            "second_order": [one.to_json() for one in self.second_order],
        }


def named_judge(named: str) -> Calibrated:
    """The referee of ``CONFIG.yaml``, or another of its endpoints: ``CONFIG.yaml:NAME``.

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
    """A run's referee, as configured in the run.

    Raises:
        ConfigError: another version of lion-ray wrote the run's description.
    """
    described = store.described()
    config = described["config"]
    # Only these sections are validated, because another version may have written the others.
    try:
        referee = RefereeConfig.model_validate(config["referee"])
        endpoint = EndpointConfig.model_validate(config["endpoints"][referee.endpoint])
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigError(
            f"{store.path(layout.RUN)}: another version of lion-ray wrote its referee ({where}); "
            "name a judge: CONFIG.yaml:ENDPOINT"
        ) from None
    tau = config["discrimination"]["tau"]
    return Calibrated(referee.endpoint, endpoint, referee, Path(described["base_dir"]), config["seed"], tau)


def place_of(store: RunStore | None, journal: str | None) -> Place:
    """Where a calibration's calls and result are kept: the run's folder, if it measures a run."""
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
    """Judge what is not recorded yet; returns the measures on the labelled pairs, and on a run's rows.

    Args:
        recorded: the rows' verdicts are this judge's own, and count as its first sample.
        samples: how often each pair is judged in each order; measuring noise needs two.
        budget: a cap in US dollars on all of this judge's calibrations here; None for no cap.

    Raises:
        EndpointError: there is no key, no server at the address, or the endpoint refuses the calls.
        BudgetError: the cap is reached; received answers are in the journal.
        ConfigError: there is a cap, but the endpoint has no prices.
    """
    pairwise = judge.judge()
    known = [reply for row in judged for reply in _recorded(row)] if recorded else []
    # Rows that the run judged in one order only.
    one_order = {row.case.id for row in judged if recorded and not row.reason and len(row.orders) == 1}
    present = {(reply.case, reply.order) for reply in known}
    groups = [list(labelled), [row.case for row in judged]]
    wanted = [
        (group, case, order, sample)
        for group, cases in enumerate(groups)
        for case in cases
        for sample in range(samples)
        for order in ORDERS
        if group == 0 or sample or not recorded or (case.id in one_order and (case.id, order) not in present)
    ]
    replies: tuple[list[Reply], list[Reply]] = ([], list(known))
    if wanted:
        participant, stem = judge.participant(), f"judge-{judge.name}"
        calls = [pairwise.call(case.comparison, order, stem, sample=sample) for _, case, order, sample in wanted]
        async with session(place, stem, progress, [participant], budget) as opened:
            outcomes = await (await opened.endpoint(participant)).ask(calls, "asking the judge")
        for (group, case, order, sample), outcome in zip(wanted, outcomes, strict=True):
            replies[group].append(_reply(pairwise, case, order, sample, outcome))
    measured = [
        measure(cases, own, alpha=alpha, tau=judge.tau, seed=judge.seed) if cases else None
        for cases, own in zip(groups, replies, strict=True)
    ]
    return measured[0], measured[1]


def replays(store: RunStore, tau: float) -> tuple[Replayed, ...]:
    """Simulate `near_threshold` on a run's verdicts in both orders; all iterations together."""
    rows = both_orders(row for iteration in judged_iterations(store) for row in judged_rows(store, iteration))
    return tuple(replay(rows, tau)) if rows else ()


def _reply(judge: PairwiseJudge, case: Case, order: str, sample: int, outcome: Completion | Failure) -> Reply:
    reading = judge.read(case.comparison, order, outcome)
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
    """A recorded verdict as replies, one for each of its calls, with equal shares of its tokens and cost."""
    each = max(1, row.calls)
    cost = None if row.cost_usd is None else row.cost_usd / each
    tokens = (row.prompt_tokens / each, row.completion_tokens / each)
    for place, (order, pair) in enumerate(row.orders.items()):
        yield Reply(row.case.id, order, 0, pair, "", place < row.weighted, *tokens, cost)
    for _ in range(row.calls - len(row.orders)):
        # The run keeps only the last one's reason.
        yield Reply(row.case.id, "", 0, None, row.reason or "retried", False, *tokens, cost)


def rows_to_judge(store: RunStore, count: int) -> list[Judged]:
    """`count` rows of the latest iteration that judged the Cache Pool.

    Raises:
        DataError: no iteration has yet.
    """
    iterations = judged_iterations(store)
    if not iterations:
        raise DataError(f"{store.root}: no iteration has judged the Cache Pool yet")
    return judged_rows(store, iterations[-1], count)
