"""Referee: judges the teacher's answer against the student's, and re-judges the canary pairs in each iteration.

Invariants:
- The judge (`discrimination.judge`) makes the questions and reads the replies; this actor only sends the calls.
- Every call goes through a TeacherProxy; a shard costs one message per round of asking.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_ray.actors.base import BaseActor, restartable
from lion_ray.actors.endpoint_handle import EndpointHandle
from lion_ray.config import RefereeConfig
from lion_ray.core.records import OK, OWN_VERDICT, VERDICT, instruction_id, table
from lion_ray.discrimination.drift import load_canaries
from lion_ray.discrimination.judge import JudgedRow, load_judge
from lion_ray.discrimination.pairwise import JUDGED, PairwiseJudge


class Referee(BaseActor):
    """The judge as an async actor."""

    def __init__(
        self, config: RefereeConfig, proxies: Sequence[str], structured: bool, base_dir: Path, seed: int, tau: float
    ) -> None:
        """`proxies`: the names of the endpoint's actors; `structured`: it supports a JSON schema.

        Raises:
            ConfigError: the template or the canaries cannot be used.
        """
        self._endpoint = EndpointHandle(proxies)
        self._judge = load_judge(config, structured=structured, base_dir=base_dir, seed=seed)
        self._schema = VERDICT if isinstance(self._judge, PairwiseJudge) else OWN_VERDICT
        self._canaries = load_canaries(config.canaries, config.canary_pairs, base_dir)
        self._near = tau if config.second_order == "near_threshold" else None

    async def judge(
        self, shard: pa.Table, teacher: pa.Table, student: pa.Table, stage: str, both_orders: bool = False
    ) -> pa.Table:
        """Verdicts on a shard: INSTRUCTION, ANSWER and ANSWER rows of the same order in, VERDICT rows out.

        Only the columns in JUDGED are used. `both_orders`: judge every row in both orders, whatever the configuration
        says; for rows that are measured and not split.
        """
        tables = (
            part.select([*columns, *({"messages"} & set(part.column_names))]).to_pylist()
            for part, columns in zip((shard, teacher, student), JUDGED, strict=True)
        )
        near = None if both_orders else self._near
        return await self._verdicts([self._judge.open(*row, tau=near) for row in zip(*tables, strict=True)], stage)

    async def judge_canaries(self, iteration: int, stage: str) -> pa.Table:
        """Verdicts on the canary pairs, in both orders, the good answer in the teacher's place.

        Each iteration is a new sample with its own journal key, so the calls are not answered from the journal.
        """
        rows: list[JudgedRow] = []
        for canary in self._canaries:
            name = {"id": instruction_id(canary.instruction), "status": OK, "reason": None, "version": None}
            texts = (canary.instruction, canary.good, canary.poor)
            rows.append(self._judge.open(*(name | {"text": text} for text in texts)))
        return await self._verdicts(rows, stage, sample=iteration)

    async def _verdicts(self, rows: Sequence[JudgedRow], stage: str, sample: int = 0) -> pa.Table:
        while wanted := [(row, order) for row in rows for order in row.wanted()]:
            calls = [row.call(order, stage, sample=sample) for row, order in wanted]
            for (row, order), outcome in zip(wanted, await self._endpoint.complete(calls), strict=True):
                row.take(order, outcome)
        return table((row.verdict() for row in rows), self._schema)


RefereeActor: Any = restartable(Referee, at_once=100)
