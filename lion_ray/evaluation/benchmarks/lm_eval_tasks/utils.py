"""Functions that the tasks' YAML files call: questions from a folder, and letters from a completion.

lm-eval loads this file by its path, so it names its own package in full.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from lion_ray.core.errors import ConfigError
from lion_ray.evaluation.benchmarks.protocol import FILES, Question, load_suite, published_letter, standing_letter


def questions(suite: str, task: str, data: str | None = None, **_: Any) -> dict[str, Any]:
    """A task's questions as lm-eval's `custom_dataset` gives them: the split ``test`` of a data set.

    Columns: id, prompt, letters (those there are to choose from) and answer.

    Raises:
        ConfigError: no folder is named.
        DataError: the folder does not hold the task's questions.
    """
    from datasets import Dataset

    variable = f"LION_{suite.upper()}"
    folder = data or os.environ.get(variable)
    if not folder:
        raise ConfigError(f"{variable} is not set: the folder with {FILES[suite]}")
    found = [one for one in _suite(suite, folder) if one.task == task]
    if not found:
        raise ConfigError(f"{folder}: {task}'s file is not there; it takes {FILES[suite]}")
    rows = [{"id": one.id, "prompt": one.prompt(), "letters": one.letters, "answer": one.answer} for one in found]
    return {"test": Dataset.from_list(rows)}


def letters(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """Whether the completion's letter is right: as published, and by the first letter that stands alone."""
    (output,) = results
    return {
        "published": int(published_letter(output) == doc["answer"]),
        "standing": int(standing_letter(output, doc["letters"]) == doc["answer"]),
    }


@cache
def _suite(suite: str, folder: str) -> list[Question]:
    return load_suite(suite, Path(folder))
