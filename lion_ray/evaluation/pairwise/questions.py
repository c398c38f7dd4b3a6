"""Open questions, whose answers a judge compares: Vicuna's 80, the 252 user-oriented ones, or the user's own.

Invariants:
- The id identifies a question: two rows of equal text are two questions with separate answers and weight in every mean.
- A suite known by name must be complete; a user's own suite may have any number of questions.
- A subset is the same on every machine, spread over the categories, and contained in every larger one.

Sources: the paper, section 4; lm-sys/vicuna-blog-eval; self-instruct (arXiv 2212.10560). The questions are not shipped:
see `FILES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.records import derive_seed
from lion_ray.data.formats import INPUT_KEYS, FormatError, checked_text, says_no_input
from lion_ray.data.sources import SourceRow, rows_of

T = TypeVar("T")

KNOWN = {"vicuna80": 80, "user252": 252}
"""The named suites and their numbers of questions."""
FILES = {
    "vicuna80": "question.jsonl of github.com/lm-sys/vicuna-blog-eval (eval/table), or FastChat's vicuna_bench",
    "user252": "human_eval/user_oriented_instructions.jsonl of github.com/yizhongw/self-instruct",
}
"""Where to get a suite's questions."""


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """One question without a single right answer."""

    id: str
    text: str
    category: str = ""


def read_questions(suite: str, path: Path | None) -> list[OpenQuestion]:
    """A suite's questions in the file's order.

    Rows have an id (``id`` or ``question_id``), a text (``text``; or ``instruction`` with an ``input`` or
    ``instances``; or one entry of ``turns``), and perhaps a ``category`` (or ``motivation_app``).

    Args:
        suite: a name in `KNOWN`, or the path of a user's file.
        path: the file of a known suite.

    Raises:
        ConfigError: no file is named, or it does not exist.
        DataError: a row is invalid, an id is a duplicate, or a known suite is incomplete; with the file and the line.
    """
    if suite in KNOWN and path is None:
        raise ConfigError(f"--suite {suite} needs its questions: --questions FILE ({FILES[suite]})")
    if suite not in KNOWN and path is not None:
        raise ConfigError(f"--questions is for {' and '.join(KNOWN)}; --suite {suite} is a file itself")
    path = path or Path(suite)
    questions: dict[str, OpenQuestion] = {}
    for row in rows_of(str(path), Path()):
        question = _question(row)
        if question.id in questions:
            raise DataError(f"{row.where}: duplicate id {question.id}")
        questions[question.id] = question
    if suite in KNOWN and len(questions) != KNOWN[suite]:
        raise DataError(
            f"{path}: {len(questions)} questions, but {suite} has {KNOWN[suite]}; is the file complete? "
            "(--suite FILE takes any number)"
        )
    return list(questions.values())


def suite_name(suite: str) -> str:
    """A suite's name in results: the known name, or its file's."""
    return suite if suite in KNOWN else Path(suite).name.split(".")[0]


def spread(items: Sequence[T], limit: int | None, key: Callable[[T], str], group: Callable[[T], str]) -> list[T]:
    """`limit` of the items in their order, balanced over the groups as far as possible; all by default.

    Args:
        key: an item's id; the choice within a group depends only on the ids.
    """
    if limit is None or limit >= len(items):
        return list(items)
    groups: dict[str, list[int]] = defaultdict(list)
    # By a hash, because a file may be sorted by its answers.
    for place in sorted(range(len(items)), key=lambda place: derive_seed("subset", key(items[place]))):
        groups[group(items[place])].append(place)
    turns = sorted((turn, name, place) for name, places in groups.items() for turn, place in enumerate(places))
    return [items[place] for place in sorted(place for _, _, place in turns[:limit])]


def each(items: Iterable[T], limit: int | None, key: Callable[[T], str], group: Callable[[T], str]) -> list[T]:
    """At most `limit` items of each group, chosen as `spread` does."""
    by_group: dict[str, list[T]] = defaultdict(list)
    for item in items:
        by_group[group(item)].append(item)
    return [item for members in by_group.values() for item in spread(members, limit, key, group)]


def id_of(row: SourceRow) -> str:
    """A row's ``id`` or ``question_id``, a string or an integer, as a string.

    Raises:
        DataError: the row is not an object, or has no id.
    """
    if row.problem is not None:
        raise DataError(f"{row.where}: {row.problem}")
    if not isinstance(row.value, dict):
        raise DataError(f"{row.where}: not a JSON object")
    found = row.value.get("id", row.value.get("question_id"))
    if not isinstance(found, int | str) or isinstance(found, bool) or found == "":
        raise DataError(f"{row.where}: no id; every row needs a unique `id` (or `question_id`)")
    return str(found)


def _question(row: SourceRow) -> OpenQuestion:
    one, value = id_of(row), row.value
    text = _text(row, value)
    if not text:
        raise DataError(f"{row.where}: no text; a question needs a `text` or an `instruction`")
    category = value.get("category", value.get("motivation_app")) or ""
    if not isinstance(category, str):
        raise DataError(f"{row.where}: `category` must be a string")
    return OpenQuestion(one, text, category)


def _text(row: SourceRow, value: dict[str, Any]) -> str:
    turns = value.get("turns")
    if isinstance(turns, list):
        if len(turns) != 1:
            raise DataError(f"{row.where}: {len(turns)} turns; only questions of one turn are supported")
        return _string(row, "turns", turns[0])
    if "instruction" not in value:
        return _string(row, "text", value.get("text", ""))
    instruction = _string(row, "instruction", value["instruction"])
    instances = value.get("instances")
    source = instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], dict) else value
    key = next((key for key in INPUT_KEYS if source.get(key)), "input")
    extra = _string(row, key, source.get(key) or "")
    # An input is appended to its instruction as in pools (`pools.read_pool`).
    return f"{instruction}\n\n{extra}" if extra and not says_no_input(extra) else instruction


def _string(row: SourceRow, key: str, value: Any) -> str:
    try:
        return checked_text(value, f"'{key}'")
    except FormatError as error:
        raise DataError(f"{row.where}: {error}") from None
