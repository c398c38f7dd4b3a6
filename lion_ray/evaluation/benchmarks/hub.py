"""The multiple-choice suites from a model hub's data sets, through the `datasets` package.

The repositories and their columns are those of lm-eval's own tasks (0.4.13): SaylorTwift/bbh (a configuration for each
task, columns `input` and `target`, split `test`), and hails/agieval-TASK (columns `query`, `choices` and `gold`, split
`test`). A `query` is the paper's prompt; passage and question are taken from it.

Untested against a real hub: the formats are tested on synthetic rows. Counts are checked as for a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from string import ascii_uppercase
from typing import Any

from lion_ray.core.errors import DataError, InfrastructureError, one_line
from lion_ray.evaluation.benchmarks.protocol import SUITES, Question, bbh_question, check_count, strip_letter

REPOSITORIES = {"bbh": "SaylorTwift/bbh", "agieval": "hails/agieval-{task}"}
Rows = Iterable[Mapping[str, Any]]


def load_from_hub(suite: str, fetch: Callable[[str, str | None], Rows] | None = None) -> list[Question]:
    """The questions of a whole suite.

    Args:
        fetch: returns the rows of a repository's configuration (None: its only one), split ``test``; by default
            `datasets.load_dataset`.

    Raises:
        InfrastructureError: the hub cannot be reached, or has no such data set.
        DataError: the rows have an unexpected format or number.
    """
    fetch = fetch or _fetch
    questions: list[Question] = []
    for task, count in SUITES[suite].items():
        repository = REPOSITORIES[suite].format(task=task)
        rows = fetch(repository, task if suite == "bbh" else None)
        found = list(_questions(suite, task, repository, rows))
        check_count(repository, task, len(found), count)
        questions += found
    return questions


def _questions(suite: str, task: str, repository: str, rows: Rows) -> Iterator[Question]:
    for number, row in enumerate(rows):
        where = f"{repository}, {task}, row {number}"
        try:
            if suite == "bbh":
                yield bbh_question(task, number, row["input"], row["target"], where)
            else:
                yield _agieval(task, number, row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(f"{where}: unexpected format: {type(error).__name__}: {one_line(error)}") from None


def _agieval(task: str, number: int, row: Mapping[str, Any]) -> Question:
    query, _, rest = row["query"].rpartition(" Answer Choices: ")
    if not rest:
        raise ValueError("`query` has no Answer Choices")
    passage, mark, text = query.rpartition("Q: ")
    if not mark:
        raise ValueError("`query` has no Q:")
    options = tuple(strip_letter(option) for option in row["choices"])
    # Only other sets of AGIEval have questions with several correct answers.
    (gold,) = row["gold"]
    return Question(
        "agieval", task, number, text.strip(), options, ascii_uppercase[: len(options)][gold], passage.strip()
    )


def _fetch(repository: str, name: str | None) -> Rows:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows: Rows = datasets.load_dataset(repository, name, split="test")
    # A data set that needs its own script raises a RuntimeError; scripts are never run.
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        what = " ".join(str(error).split())[:300]
        raise InfrastructureError(
            f"{repository}: cannot be fetched from the hub: {what}; or use --data FOLDER"
        ) from None
    return rows
