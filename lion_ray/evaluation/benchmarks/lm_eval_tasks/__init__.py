"""BBH and AGIEval by the paper's protocol as tasks for EleutherAI's lm-eval (tested with 0.4.13), and their generator.

Invariants:
- Questions, prompts and answer extraction come from `benchmarks`: lm-eval and `lion-ray eval` give the same scores.
- A group's score is the unweighted mean over its tasks (the paper).

`python -m lion_ray.evaluation.benchmarks.lm_eval_tasks --write` generates one small YAML file for each task; without
``--write`` it prints the folder, for lm-eval's ``--include_path``. Questions are read from the folder in the
environment variable LION_BBH or LION_AGIEVAL, or in ``--metadata '{"data": FOLDER}'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lion_ray.evaluation.benchmarks.protocol import SUITES

FOLDER = Path(__file__).parent
TEMPLATE = "_lion_template_yaml"
_NOTE = "# Made by `python -m lion_ray.evaluation.benchmarks.lm_eval_tasks --write`.\n"


def task_name(suite: str, task: str) -> str:
    """A task's name in lm-eval."""
    return f"lion_{suite}_{task.replace('-', '_')}"


def yaml_files() -> Iterator[tuple[str, str]]:
    """Each file's name and content."""
    for suite, tasks in SUITES.items():
        for task in tasks:
            name = task_name(suite, task)
            kwargs = f"dataset_kwargs: {{suite: {suite}, task: {task}}}\n"
            yield f"{name}.yaml", f"{_NOTE}include: {TEMPLATE}\ntask: {name}\n{kwargs}"
        members = "".join(f"  - {task_name(suite, task)}\n" for task in tasks)
        yield f"_lion_{suite}.yaml", f"{_NOTE}group: lion_{suite}\ntask:\n{members}{_MEANS}"


_MEANS = """aggregate_metric_list:
  - metric: published
    aggregation: mean
    weight_by_size: false
  - metric: standing
    aggregation: mean
    weight_by_size: false
metadata:
  version: 1.0
"""
