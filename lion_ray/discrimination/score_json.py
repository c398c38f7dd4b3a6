"""Read a judge's two scores from JSON of any shape.

Invariants:
- Only keys and numbers count, never the text of strings: an explanation may quote anything.
- Two scores are read only if each clearly belongs to one assistant. Contradictory pairs, duplicate keys and a scale
  other than ten give no verdict.

This module reads only JSON; `score_parser` reads other text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

Pair = tuple[float, float]
"""The scores of the first and the second assistant."""

NO_VERDICT = "no verdict"
"""The text is JSON, but two scores cannot be read from it."""

MOST_OBJECTS = 50
"""Only this many of the last possible starts of JSON in a text are tried: each may take time linear in the text."""

_MARK = r"(?:scores?|ratings?|grades?|marks?|points|overall|total|value)"
_NOUN = (
    r"(?:assistants?|responses?|answers?|models?|candidates?|outputs?|submissions?|repl(?:y|ies)|systems?|options?|"
    r"(?:chat)?bots?|ai)"
)
_ID = r"(?P<id>[12ab]|one|two|first|second)"
_WHO = re.compile(
    rf"(?:the_)?(?:(?:final|overall|total)_)?(?:{_MARK}_?(?:of_|for_)?)?(?:the_)?(?:ai_)?{_NOUN}?_?{_ID}"
    rf"(?:_{_NOUN})?(?:_s)?(?:_(?:final|overall|total))?(?:_?{_MARK})?"
)
_SCORE = re.compile(rf"(?:(?:final|overall|total|assigned|given)_)?{_MARK}")
_NAMES = re.compile(rf"(?:{_NOUN}|id|name|label|index|number|who)(?:_(?:id|name|label|index|number))?")
_SCALE = re.compile(rf"(?:{_MARK}_)?(?:scale|max|maximum|out_of|range|maximum_{_MARK}|max_{_MARK})")
_NUMBER = re.compile(r"([0-9]{1,3}(?:[.,][0-9]{1,3})?)(?: ?(?:/|out of) ?10(?:\.0)?)?(?: ?points?)?", re.IGNORECASE)
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_BEGINS = re.compile(r"\{(?=\s*[\"'{])|\[(?=\s*[\[{])")
_THIRD = re.compile(rf"(?:{_MARK}_?)?{_NOUN}_?(?:[3c]|three|third)(?:_{_MARK})?|{_MARK}_?[3c]")
_FIRST = {"1", "a", "one", "first"}


class _RefusedError(ValueError):
    pass


def pair_of_json(text: str) -> Pair | str | None:
    """The scores in a text that is JSON, JSON Lines or begins with JSON. Returns NO_VERDICT if the JSON has no two
    scores, None if the text is not JSON."""
    values: list[Any] = []
    for form in (text, _TRAILING_COMMA.sub("", text)):
        end = _after_space(form, 0)
        while form[end : end + 1] in ("{", "[") and (found := _decoded(form, end)) is not None:
            value, end = found
            values.append(value)
            end = _after_space(form, end)
        if values:
            break
    if not values:
        return None
    return _pair(values[0] if len(values) == 1 else values) or NO_VERDICT


def first_pair(text: str) -> Pair | None:
    """The scores in JSON within a text. Returns None if there are none, or contradictory ones."""
    begins = [match.start() for match in _BEGINS.finditer(text)][-MOST_OBJECTS:]
    pairs, end = set(), 0
    for start in begins:
        if start < end or (found := _decoded(text, start)) is None:
            continue
        value, end = found
        if (pair := _pair(value)) is not None:
            pairs.add(pair)
    return pairs.pop() if len(pairs) == 1 else None


def _decoded(text: str, start: int) -> tuple[Any, int] | None:
    """A JSON value and its end; a `_RefusedError` as the value if it must not be read."""
    try:
        return _DECODER.raw_decode(text, start)
    except _RefusedError as refused:
        return refused, len(text)
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise _RefusedError("a key is there twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise _RefusedError(f"{name} is no score")


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object, parse_constant=_no_constant)


def _after_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n,;":
        start += 1
    return start


def _pair(value: Any) -> Pair | None:
    try:
        if any(_is_other_scale(key, below) for key, below in _items(value)):
            return None
        found = _pairs(value)
    except RecursionError:
        return None
    return found.pop() if len(found) == 1 else None


def _pairs(value: Any) -> set[Pair]:
    """The pairs of a value: its own if it has any, else those of nested values."""
    own: set[Pair] = set()
    if isinstance(value, dict):
        own = _of_object({_plain(key): below for key, below in value.items()})
        below = list(value.values())
    elif isinstance(value, list):
        own = _of_list(value)
        below = value if len(value) <= 2 or not own else []
    else:
        return set()
    return own or set().union(*map(_pairs, below))


def _of_object(value: dict[str, Any]) -> set[Pair]:
    """From keys that each name an assistant, or from a list of two numbers under a key such as `scores`."""
    if any(map(_THIRD.fullmatch, value)):
        return set()
    scores: dict[int, set[float]] = {1: set(), 2: set()}
    for key, below in value.items():
        who, score = _who(key), _number(below)
        if who and score is not None:
            scores[who].add(score)
    if all(len(found) == 1 for found in scores.values()):
        return {(scores[1].pop(), scores[2].pop())}
    if any(scores.values()) and all(scores.values()):
        return {(one, two) for one in scores[1] for two in scores[2]}  # contradictory: no verdict
    lists = [below for key, below in value.items() if _SCORE.fullmatch(key) or key in ("tuple", "output", "verdict")]
    return set().union(*(_of_list(below) for below in lists if isinstance(below, list)))


def _of_list(value: list[Any]) -> set[Pair]:
    """From two numbers, or two objects that name their assistant or come in order."""
    if len(value) != 2:
        return set()
    numbers = [_number(one) for one in value]
    if all(isinstance(one, dict) for one in value):
        objects = [{_plain(key): below for key, below in one.items()} for one in value]
        if any(len(one) == 1 and _who(next(iter(one))) for one in objects):
            merged = {key: below for one in objects for key, below in one.items()}
            return _of_object(merged) if len(merged) == 2 else set()
        ids = [_named(one) for one in objects]
        if ids in ([2, 1], [1, 0]):
            numbers.reverse()
        elif ids not in ([1, 2], [0, 1], [None, None]):
            return set()
    one, two = numbers
    return set() if one is None or two is None else {(one, two)}


def _named(value: dict[str, Any]) -> int | None:
    """The assistant of an object, from a key such as `assistant` or `id`; -1 if it is neither of the two."""
    for key, below in value.items():
        if _NAMES.fullmatch(key) and isinstance(below, str | int) and not isinstance(below, bool):
            if below == 0 or below == "0":
                return 0
            if (who := _who(_plain(str(below)))) is not None:
                return who
            if key not in ("answer", "response", "output"):  # these may hold the text itself
                return -1
    return None


def _who(key: str) -> int | None:
    match = _WHO.fullmatch(key)
    return None if match is None else 1 if match["id"] in _FIRST else 2


def _number(value: Any) -> float | None:
    """A score: a number, a text such as "8/10", or an object that holds one under a name such as `score`."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1000 else None
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value.strip())):
        return float(match[1].replace(",", "."))
    if isinstance(value, dict):
        named = {_plain(key): below for key, below in value.items()}
        found = {_number(below) for key, below in named.items() if _SCORE.fullmatch(key)} - {None}
        return found.pop() if len(found) == 1 else None
    return None


def _plain(key: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", key[:100].lower()).strip("_")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield _plain(key), below
            yield from _items(below)
    elif isinstance(value, list):
        for one in value:
            yield from _items(one)


def _is_other_scale(key: str, value: Any) -> bool:
    if not _SCALE.fullmatch(key) or isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    numbers = re.findall(r"[0-9]+", str(value)[:40])
    return bool(numbers) and int(numbers[-1]) != 10
