"""MLflow.

Invariants:
- All attempts log to one MLflow run, which is found by a tag with the run's id.
- Existing data is read from the server and not logged again.
- One request carries many steps, so that a distant server does not slow the tracker.
- MLflow's state in this process is not changed (no active run, no global address).

The server's user, password or token come from MLflow's environment variables (MLFLOW_TRACKING_USERNAME, …).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lion_ray.core.iteration_result import IterationResult
from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, Tracker, TrainingStep
from lion_ray.tracking.numbers import ITERATION, SPENT_AT, STEP, result_numbers, spend_numbers, step_numbers

TAG = "lion_ray.run"
BATCH = 1000
"""The most metrics in one request, MLflow's limit."""
PARAMETERS = 100
"""The most parameters in one request."""
LONGEST = 500
"""The most characters of a parameter that every version of MLflow accepts."""


class Mlflow(Tracker):
    """Logs a run's metrics to an MLflow tracking server."""

    def __init__(self, tracking_uri: str, experiment: str = "lion-ray") -> None:
        self._uri, self._experiment = tracking_uri, experiment
        self._client: Any = None
        self._id = ""
        self._waiting: list[Any] = []
        self._began = 0.0

    def begin(self, run: RunInfo) -> Held | None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self._began = run.began
        self._waiting = []
        self._client = MlflowClient(tracking_uri=self._uri)
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(self._experiment)
        there = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if there:
            self._id = there[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            # Read again, because a search may return a slightly older state.
            last = self._client.get_run(self._id).data.metrics
            return Held(int(last.get(STEP, 0)), int(last.get(ITERATION, -1)))
        made = self._client.create_run(experiment, run_name=run.name, tags={TAG: run.id, "lion_ray.folder": run.root})
        self._id = made.info.run_id
        self._write_parameters(run.config)
        return Held()

    def step(self, step: TrainingStep) -> None:
        self._add(step.number, step_numbers(step), step.time)

    def iteration(self, result: IterationResult) -> None:
        self._add(result.iteration, result_numbers(result))

    def spend(self, spend: Spend) -> None:
        shown = spend_numbers(spend, self._began)
        self._add(int(shown.pop(SPENT_AT)), shown, spend.time)

    def flush(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:BATCH])
            del self._waiting[:BATCH]

    def end(self, outcome: Outcome) -> None:
        self.flush()
        stopped = "FAILED" if isinstance(outcome.error, Exception) else "KILLED"
        self._client.set_terminated(self._id, stopped if outcome.error else "FINISHED")

    def _add(self, step: int, numbers: Mapping[str, float], at: float | None = None) -> None:
        from mlflow.entities import Metric

        if len(self._waiting) >= BATCH:
            self.flush()  # before adding, because the step is sent again if this raises
        moment = int((at or time.time()) * 1000)
        metrics = [Metric(name, value, moment, step) for name, value in numbers.items()]
        # The position metrics go last, so that an interrupted request is repeated.
        metrics.sort(key=lambda metric: metric.key in (STEP, ITERATION))
        self._waiting += metrics

    def _write_parameters(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        found = [Param(re.sub(r"[^\w./ -]", "_", name), str(value)[:LONGEST]) for name, value in _flat(config)]
        for start in range(0, len(found), PARAMETERS):
            self._client.log_batch(self._id, params=found[start : start + PARAMETERS])


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name}", value
