"""Functions called by the tasks' YAML files: they load questions from a folder and score a completion.

lm-eval loads this file by its path, so its imports are absolute.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from lion_ray.core.errors import ConfigError
from lion_ray.evaluation.benchmarks.protocol import FILES, Question, load_suite, published_letter, standing_letter


def questions(suite: str, task: str, data: str | None = None, **_: Any) -> dict[str, Any]:
    """A task's questions in the format of lm-eval's `custom_dataset`: the split ``test`` of a data set.

    Columns: id, prompt, letters (the question's choices) and answer.

    Raises:
        ConfigError: no folder is given, or it lacks the task's file.
        DataError: a file is invalid.
    """
    from datasets import Dataset

    variable = f"LION_{suite.upper()}"
    folder = data or os.environ.get(variable)
    if not folder:
        raise ConfigError(f"{variable} is not set; set it to the folder with {FILES[suite]}")
    found = [one for one in _suite(suite, folder) if one.task == task]
    if not found:
        raise ConfigError(f"{folder}: the file of {task} is missing; it needs {FILES[suite]}")
    rows = [{"id": one.id, "prompt": one.prompt(), "letters": one.letters, "answer": one.answer} for one in found]
    return {"test": Dataset.from_list(rows)}


def letters(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """1 if the completion's letter is correct, else 0, by each extraction: published and standing."""
    (output,) = results
    return {
        "published": int(published_letter(output) == doc["answer"]),
        "standing": int(standing_letter(output, doc["letters"]) == doc["answer"]),
    }


@cache
def _suite(suite: str, folder: str) -> list[Question]:
    return load_suite(suite, Path(folder))
