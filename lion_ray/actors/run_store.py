"""The run store actor: reads, writes and computes in the run folder, so that the driver sees only summaries.

Invariants:
- Only references and summaries pass through the driver, never rows.
- A part is written completely or not at all (`store`). Writes are idempotent, so calls to a restarted actor are simply
  retried.

An actor rather than Ray tasks: a node keeps no more idle workers than it has CPUs, and starting one costs more than a
hundred parts. This module does not know when a stage is due or what its rows are for (`loop`, `stages`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.actors.base import BaseActor, restartable
from lion_ray.config import RunConfig, check_name
from lion_ray.core import layout
from lion_ray.core.errors import ConfigError, DamagedError, DataError, ModelError
from lion_ray.core.finish_reason import Ending, ending
from lion_ray.core.records import (
    FILTERED,
    INSTRUCTION,
    KEPT,
    OK,
    ORDERS,
    QUARANTINED,
    Piece,
    Prompt,
    as_instructions,
    derive_seed,
    ok_rows,
    shards,
    slim,
    table,
)
from lion_ray.core.store import Manifest, RunStore
from lion_ray.core.terminal import tell
from lion_ray.data.importing import import_data
from lion_ray.data.mapped import BATCH_ROWS
from lion_ray.data.pools import bad_rows_jsonl
from lion_ray.discrimination import split
from lion_ray.discrimination.checks import load_checks
from lion_ray.discrimination.drift import Gaps, drift
from lion_ray.discrimination.rubric import signal
from lion_ray.discrimination.win_rate import heldout_figures
from lion_ray.evaluation import check_scores
from lion_ray.imitation.filters import AnsweredRow, RowFilter, first_reason, load_filters
from lion_ray.models.resolve import resolve_model


class RunStoreServer(BaseActor):
    """Reads and writes one run's folder, with several calls at once."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def load(self, *names: str) -> pa.Table:
        """The named parts as one table; without names, an empty INSTRUCTION table."""
        if not names:
            return INSTRUCTION.empty_table()
        return as_instructions(self._store.read_table(name) for name in names)

    def load_each(self, *parts: tuple[str, Sequence[str]]) -> list[pa.Table]:
        """One table for each part: these columns, and its conversations if it has any. Call it with as many returns.

        One task is cheaper than several. Raises DamagedError if a column is missing.
        """
        found = []
        for name, columns in parts:
            rows = self._store.read_table(name, (*columns, "messages"), optional=True)
            if missing := [column for column in columns if column not in rows.column_names]:
                raise DamagedError(self._store.path(name), f"it has no column {missing[0]!r}")
            found.append(rows)
        return found

    def commit(self, stage: str, index: int, rows: pa.Table | None) -> Manifest:
        """Write a part, or use the existing one (`rows` None). Returns its summary."""
        folder = self._store.stage(stage)
        if rows is None:
            rows = folder.read_part(index)
        else:
            folder.write_part(index, rows)
        return summary(rows)

    def import_pools(self, config: RunConfig, base_dir: Path) -> tuple[Manifest, Manifest]:
        """Read the user's instructions into pool-0 and pool-heldout; returns both manifests, uncommitted."""
        taken = import_data(config.data, base_dir, config.seed)
        check_conversations(config, base_dir, taken.pool, taken.heldout)
        if taken.bad_rows:
            self._store.write_bytes(layout.QUARANTINE, bad_rows_jsonl(taken.bad_rows).encode())
        if taken.contaminated:
            self._store.write_bytes(layout.CONTAMINATED, taken.contaminated_jsonl().encode())
        if taken.questions:
            # The generator checks its candidates against the same questions.
            self._store.write_table(layout.QUESTIONS, pa.table({"text": pa.array(taken.questions, pa.string())}))
        first, heldout = (
            write_pool(self._store, name, pool, config.rows_per_shard(pool.num_rows))
            for name, pool in (("0", taken.pool), (layout.HELDOUT, taken.heldout))
        )
        return first | taken.counts(), heldout

    def signal(self, rewards: str) -> Manifest:
        """What the rewards of an on-policy round tell (`discrimination.rubric.signal`)."""
        folder = self._store.stage(rewards)
        return signal(folder.read((folder.manifest() or {"parts": 0})["parts"]))

    def commit_generated(self, iteration: int, piece: Piece) -> Manifest:
        """Write a piece from the generator: a part of the new pool, or at the end every candidate.

        Returns:
            For a part, ``part`` and ``rows``; for the candidates, their counts by kind.
        """
        if piece.part is not None:
            self._store.stage(layout.pool(iteration)).write_part(piece.part, piece.rows)
            return {"part": piece.part, "rows": piece.rows.num_rows}
        self._store.write_table(layout.candidates(iteration), piece.rows)
        counts = {
            kind: {
                "requests": of_kind.num_rows,
                "accepted": ok_rows(of_kind).num_rows,
                "rejected": dict(Counter(reason for reason in of_kind["reason"].to_pylist() if reason).most_common()),
            }
            for kind in ("hard", "easy")
            for of_kind in [piece.rows.filter(pc.equal(piece.rows["source"], kind))]
        }
        return {"kinds": counts, **spent(piece.rows)}

    def split_verdicts(self, stage: str, instructions: list[str], tau: float, seed: int) -> Manifest:
        """Split judged rows into hard.parquet and easy.parquet beside the verdicts. Returns a summary."""
        # Only these columns: the reviews are most of the data, and a Cache Pool may have a million rows.
        everything = self._store.stage(stage).read(len(instructions), split.COLUMNS, split.OWN_COLUMNS)
        verdicts = ok_rows(everything)
        lags = split.lags(verdicts, tau)
        counts = {}
        pool = as_instructions(self._store.read_table(name) for name in instructions)
        for name, mask, path in (("hard", lags, layout.hard), ("easy", ~lags, layout.easy)):
            ids = verdicts["id"].filter(pa.array(mask)).combine_chunks()
            counts[name] = len(ids)
            self._store.write_table(path(stage), pool.filter(pc.is_in(pool["id"], value_set=ids)))
        return counts | {
            "relative_quality": split.quality(verdicts, seed=seed, stage=stage),
            **split.order_flips(verdicts),
            "judges": counted(everything["model"]),
        }

    def heldout_figures(self, iteration: int, seed: int) -> Manifest:
        """The win rate of an iteration's student on the held-out set, and its gain (`win_rate.heldout_figures`)."""
        parts = (self._store.stage(layout.pool(layout.HELDOUT)).manifest() or {})["parts"]
        answers = ("id", "text")

        def read(stage: str, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
            return self._store.stage(stage).read(parts, columns, optional)

        earlier = layout.verdicts(iteration - 1, heldout=True)
        judged = iteration > 0 and self._store.stage(earlier).manifest() is not None
        return heldout_figures(
            read(layout.verdicts(iteration, heldout=True), split.COLUMNS, split.OWN_COLUMNS),
            read(layout.answers(layout.HELDOUT), answers),
            read(layout.student_answers(iteration, heldout=True), answers),
            read(earlier, split.COLUMNS, split.OWN_COLUMNS) if judged else None,
            seed=derive_seed(seed, "held-out", iteration),
        )

    def filter_answers(self, config: RunConfig, base_dir: Path, instructions: str, answers: str) -> pa.Table:
        """Which answers of a part to train on, as KEPT rows. Raises ConfigError if a filter cannot be used."""
        asked, given = self._store.read_table(instructions), self._store.read_table(answers)
        return kept(load_filters(config.imitation.filters, base_dir), asked, given)

    def check_answers(self, config: RunConfig, base_dir: Path, iteration: int | None) -> Manifest:
        """Score the held-out answers of an iteration's student, or the teacher's (None), by the configured checks.

        Writes one part of CHECKED rows and returns its manifest.

        Raises:
            ConfigError: a check cannot be loaded here.
            DataError: no answer could be scored.
        """
        heldout = self._store.stage(layout.pool(layout.HELDOUT))
        parts = (heldout.manifest() or {})["parts"]
        if iteration is None:
            answers = layout.answers(layout.HELDOUT)
        else:
            answers = layout.student_answers(iteration, heldout=True)
        checks = load_checks(config.evaluation.checks, base_dir)
        given = self._store.stage(answers).read(parts, ("id", "text", "status", "reason"))
        rows = check_scores.checked_rows(checks, heldout.read(parts), given)
        if (why := check_scores.nothing_scored(rows)) is not None:
            who = "the teacher's answers" if iteration is None else f"the answers of iteration {iteration}'s student"
            raise DataError(
                f"evaluation.checks: none of {who} to the held-out instructions could be scored: {why}. Correct the "
                "checks or the references, and start a run with another name"
            )
        self._store.stage(layout.checks(iteration)).write_part(0, rows)

        def earlier(k: int | None) -> pa.Table:
            return self._store.stage(layout.checks(k)).read_part(0)

        found = check_scores.describe(
            rows,
            map(check_name, config.evaluation.checks),
            seed=derive_seed(config.seed, "checks"),
            teacher=None if iteration is None else earlier(None),
            before=earlier(iteration - 1) if iteration else None,
            base=earlier(0) if iteration else None,
        )
        return check_scores.counts(rows) | {"parts": 1} | found

    def commit_canaries(self, iteration: int, verdicts: pa.Table) -> Manifest:
        """Write an iteration's verdicts on the canary pairs. Returns a summary compared with the first iteration's."""
        stage = self._store.stage(layout.canaries(iteration))
        stage.write_part(0, verdicts)
        gaps = canary_gaps(verdicts)
        manifest = summary(verdicts) | {
            "parts": 1,
            "verdicts": len(gaps),
            "right": sum(gap > 0 for gap in gaps.values()),
            "mean_gap": sum(gaps.values()) / len(gaps) if gaps else None,
            "judges": counted(verdicts["model"]),
        }
        for earlier in range(iteration):
            first = self._store.stage(layout.canaries(earlier))
            if first.manifest() is not None:
                found = drift(canary_gaps(first.read_part(0)), gaps)
                return manifest | {"against": earlier, "drift": found and found.to_json() | {"says": found.sentence()}}
        return manifest


RunStoreActor: Any = restartable(RunStoreServer, at_once=8)


def check_conversations(config: RunConfig, base_dir: Path, *pools: pa.Table) -> None:
    """Check, before any call is paid, that the student's prompt format supports every row of several turns.

    Raises:
        ConfigError: it does not.
    """
    found: dict[tuple[str, ...], tuple[Prompt, int]] = {}
    """By sequence of roles: the first such row, and the number of such rows."""
    for pool in pools:
        for row in _conversations(pool):
            prompt = Prompt.of(row)
            roles = tuple(one["role"] for one in prompt.messages)
            first, count = found.get(roles, (prompt, 0))
            found[roles] = first, count + 1
    if not found:
        return
    # Imported here, because it takes seconds and few pools need it.
    from lion_ray.models.prompter import Prompter

    model = resolve_model(config.student.model, base_dir=base_dir, progress=tell)
    prompter = Prompter.load(model, config.student.prompt, base_dir)
    for roles, (first, count) in found.items():
        try:
            prompter.check(roles)
        except ModelError as error:
            raise ConfigError(
                f"data: {count} rows are conversations of {', '.join(roles)}, such as {first.text[:60]!r}, but the "
                f"student's prompt format cannot express them: {error}"
            ) from None


def _conversations(pool: pa.Table) -> Iterator[Mapping[str, Any]]:
    """The rows of more than one turn."""
    if "messages" not in pool.column_names:
        return
    for batch in pool.to_batches(max_chunksize=BATCH_ROWS):
        yield from batch.filter(pc.greater(pc.fill_null(pc.list_value_length(batch["messages"]), 0), 0)).to_pylist()


def write_pool(store: RunStore, name: str, pool: pa.Table, shard_rows: int) -> Manifest:
    """Write a pool's parts. An interrupted attempt may have left more; the manifest says how many count."""
    folder = store.stage(layout.pool(name))
    parts = 0
    for parts, shard in enumerate(shards(pool, shard_rows), start=1):
        folder.write_part(parts - 1, slim(shard))
    return {"rows": pool.num_rows, "parts": parts}


def summary(rows: pa.Table) -> Manifest:
    """Counts of a part: rows, quarantined by reason, tokens and cost."""
    result: Manifest = {"rows": rows.num_rows}
    if "status" in rows.column_names:
        found = rows.select(["status", "reason"]).to_pylist()
        result |= {"quarantined": _reasons(found, QUARANTINED), **spent(rows)}
        if filtered := _reasons(found, FILTERED):
            result["filtered"] = filtered
    if "finish_reason" in rows.column_names:
        result["cut_off"] = sum(ending(reason) is Ending.CUT for reason in rows["finish_reason"].to_pylist())
    return result


def _reasons(rows: Sequence[Mapping[str, Any]], status: str) -> dict[str, int]:
    """The number of rows for each reason, ignoring details in parentheses."""
    return dict(Counter(row["reason"].split(" (")[0] for row in rows if row["reason"] and row["status"] == status))


def kept(filters: Sequence[RowFilter], instructions: pa.Table, answers: pa.Table) -> pa.Table:
    """The filters' decisions as KEPT rows; a row without an answer keeps its status."""
    rows = []
    asked = zip(instructions.to_pylist(), answers.to_pylist(), strict=True)
    for question, answer in asked:
        reason = None
        if answer["status"] == OK:
            row = AnsweredRow(
                id=question["id"],
                instruction=question["text"],
                answer=answer["text"],
                reference=question.get("reference"),
                source=question["source"],
                iteration=question["iteration"],
                finish_reason=answer["finish_reason"],
                model=answer["model"],
            )
            reason = first_reason(filters, row)
        status = answer["status"] if reason is None else FILTERED
        rows.append({"id": question["id"], "status": status, "reason": reason or answer["reason"]})
    return table(rows, KEPT)


def spent(rows: pa.Table) -> Manifest:
    """Tokens and cost of a table's calls or answers."""
    result: Manifest = {}
    for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
        if name not in rows.column_names:
            continue
        total = pc.sum(rows[name]).as_py()
        if total is not None:
            result[name] = total
    if "calls" in rows.column_names:
        result["calls"] = pc.sum(pc.list_value_length(rows["calls"])).as_py() or 0
    elif "call" in rows.column_names:
        result["calls"] = len(rows["call"]) - rows["call"].null_count
    return result


def counted(values: pa.ChunkedArray) -> dict[str, int]:
    """The number of occurrences of each value except null, most frequent first."""
    return dict(Counter(value for value in values.to_pylist() if value is not None).most_common())


def canary_gaps(verdicts: pa.Table) -> Gaps:
    """score(good) - score(poor) of each canary and order with both scores; for a judge without scores, its gap."""
    if "gap" in verdicts.column_names:
        found = zip(verdicts["id"].to_pylist(), verdicts["gap"].to_pylist(), strict=True)
        return {(row, "gap"): gap for row, gap in found if gap is not None}
    rows = verdicts.select(["id", *ORDERS]).to_pylist()
    return {(row["id"], order): row[order][0] - row[order][1] for row in rows for order in ORDERS if row[order]}
