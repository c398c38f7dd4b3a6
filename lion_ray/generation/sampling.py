"""Which seeds to draw, which candidates to keep, and how many to request.

Invariants:
- A draw depends only on the pool and on (run seed, iteration, kind, request number), never on order, time or process:
  a resumed run draws what the first attempt would have drawn.
- A candidate is first cleaned of thoughts and formatting, then kept or rejected with a reason that can be counted.
- The number of requests never exceeds the limit, however few candidates pass.

This module does not know prompts, models or existing texts (see `novelty`).
"""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Any

import pyarrow as pa

from lion_ray.core.finish_reason import Ending, ending
from lion_ray.core.records import derive_seed
from lion_ray.core.thoughts import without_thoughts
from lion_ray.similarity.rouge import has_unspaced_script, tokens

EMPTY = "empty"
CUT_OFF = "cut off at the length limit"
FILTERED = "cut off by the endpoint's content filter"
UNFINISHED = "ended in a way that is not known to be complete"
MENTIONS_INSTRUCTION = "mentions 'instruction'"
STARTS_WITH_PUNCTUATION = "starts with punctuation"
STARTS_WITH_SYMBOL = "starts with a symbol"

_OPENS_SENTENCE = "¿¡"
_PAIRS = (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"), ("`", "`"), ("'", "'"), ("‘", "’"))
_BOLD = re.compile(r"(\*\*|__)(?!\s)((?:(?!\1).)+)(?<!\s)\1", re.DOTALL)

_ADJECTIVES = (
    r"(?:(?:(?:brand|new|newly|created|generated|rare|rarer|similar|rewritten|revised|updated|modified|evolved|harder|"
    r"more|complex|difficult|challenging|different|final|the|your|output|example)[-_\s]+)*)"
)
# "New instruction:", "**Instruction:**", "### Instruction 2:", "#Created Prompt#:", with or without "Here is a" before.
_LABEL = re.compile(
    r"(?:(?:sure|certainly|of course|okay|ok)\b[!,.:]?\s+)?"
    r"(?:here(?:'s|’s|\s+is)\s+(?:an?|the|your|my|another|one)\s+)?"
    rf"[#*_\[(<\s]*{_ADJECTIVES}"
    r"(?:instructions?|prompt|task|question)"
    r"(?:\s*\#?\d{1,2})?"
    r"[#*_\])>\s]*[:：][#*_]*\s*(?=\S)",
    re.IGNORECASE,
)
# A whole first line that only announces: it ends in a colon ("Here is a new question from the same field:"), or a
# blank line follows it ("Certainly! Below is a new task in the same domain.").
_PREAMBLE = re.compile(
    r"(?:[a-z ]{1,16}[!,.]\s+)?(?:here(?:'s|’s|\s+is|\s+comes)|below(?:'s|’s|\s+is)|this\s+is|i(?:'ve|’ve|\s+have)"
    r"\s+(?:created|written|made|come\s+up))\s[^:\n]{0,60}\b(?:instruction|prompt|task|question)\b[^:\n]{0,80}"
    r"(?::[ \t]*\n|[.!:][ \t]*\n[ \t]*\n)\s*(?=\S)",
    re.IGNORECASE,
)
# "Sure!" or "Of course, I can do that." alone, with a blank line after it.
_ASSENT = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|great|understood)\b[^\n?]{0,80}[!.:,]?[ \t]*\n[ \t]*\n\s*(?=\S)",
    re.IGNORECASE,
)
# "### New task", "#Rewritten Prompt#", "**Instruction**" or "[New Question]" on a line of its own.
_HEADING = re.compile(
    rf"(?:\#{{1,6}}|\*\*|\[|<)\s*{_ADJECTIVES}(?:instructions?|prompt|task|question)(?:\s*\#?\d{{1,2}})?"
    r"\s*[#*\]>]*[ \t]*\n+(?=.*\S)",
    re.IGNORECASE,
)
_FENCED = re.compile(
    r"(`{3,}|~{3,})(?:text|txt|plaintext|plain|markdown|md|prompt)?[ \t]*\n"
    r"((?:(?!\1).)*?)\n?[ \t]*\1",
    re.DOTALL,
)
_LIST_MARKER = re.compile(r"(?:\d{1,2}[.)]|[-*•])[ \t]+(?=\S)")
_NUMBERED_LINE = re.compile(r"^[ \t]*\d{1,2}[.)][ \t]+\S", re.MULTILINE)
_BULLET_LINE = re.compile(r"^[ \t]*[-*•][ \t]+\S", re.MULTILINE)


def draw_seed(pool: pa.Table, *, seed: int, iteration: int, kind: str, request: int) -> dict[str, Any]:
    """The pool's row for one request: uniform, with replacement (paper, section 3.3).

    `kind` is hard or easy. The modulo's bias is at most rows / 2**31. Raises ValueError on an empty pool.
    """
    if pool.num_rows == 0:
        raise ValueError(f"there is no {kind} instruction to draw from")
    row = derive_seed("draw", seed, iteration, kind, request) % pool.num_rows
    return pool.slice(row, 1).to_pylist()[0]


def filter_candidate(text: str, finish_reason: str, *, min_words: int) -> str | None:
    """Why a cleaned candidate is rejected, or None. The rules are as strict as in the published code, except that the
    text may begin with a letter or digit of any script.

    `finish_reason` is the endpoint's; a text that its content filter cut counts as incomplete. Words are separated by
    spaces, as in the published code; in scripts without spaces they are ROUGE tokens.
    """
    match ending(finish_reason):
        case Ending.CUT:
            return CUT_OFF
        case Ending.FILTERED:
            return FILTERED
        case Ending.TOOL | Ending.FAILED | Ending.UNKNOWN:
            return UNFINISHED
    if not text.strip():
        return EMPTY
    if "instruction" in text.lower():
        return MENTIONS_INSTRUCTION
    if _words(text) < min_words:
        return f"fewer than {min_words} words"
    first = text.lstrip()[0]
    if first in string.punctuation:
        return STARTS_WITH_PUNCTUATION
    # The published code accepts only ASCII letters, and so rejects paid candidates in any other script.
    kind = unicodedata.category(first)
    if kind[0] not in "LNM" and first not in _OPENS_SENTENCE:
        return STARTS_WITH_PUNCTUATION if kind[0] == "P" else STARTS_WITH_SYMBOL
    return None


def _words(text: str) -> int:
    return len(tokens(text)) if has_unspaced_script(text) else len(text.split())


def clean_candidate(text: str) -> str:
    """The candidate without thoughts, preamble, label, list marker, fence or quotation marks; "" if the model only
    thought.

    The published code rejects such texts for their first character or for the word in the label. They are otherwise
    good, and already paid for.
    """
    text = without_thoughts(text)
    while True:
        cleaned = _without_quotes(_without_fence(_without_marker(_without_label(text.strip()))))
        if cleaned == text:
            return cleaned
        text = cleaned


def _without_label(text: str) -> str:
    label = _PREAMBLE.match(text) or _ASSENT.match(text) or _HEADING.match(text) or _LABEL.match(text)
    return text[label.end() :] if label else text


def _without_fence(text: str) -> str:
    """Remove one fence around the whole text, unless it marks a program."""
    fenced = _FENCED.fullmatch(text)
    return fenced[2].strip() if fenced else text


def _without_marker(text: str) -> str:
    marker = _LIST_MARKER.match(text)
    if marker is None:
        return text
    # If there are several items, keep the list intact.
    items = _NUMBERED_LINE if text[0].isdigit() else _BULLET_LINE
    return text if items.search(text, marker.end()) else text[marker.end() :]


def _without_quotes(text: str) -> str:
    """Remove one pair of marks around the whole text; `"A" or "B"` is not such a pair."""
    if bold := _BOLD.fullmatch(text):
        return bold.group(2)
    for opening, closing in _PAIRS:
        if len(text) > 2 and text[0] == opening and text[-1] == closing:
            inner = text[1:-1]
            # An apostrophe between letters is not a closing quote.
            marks = re.sub(r"(?<=\w)['’](?=\w)", "", inner)
            if opening not in marks and closing not in marks:
                return inner.strip()
    return text


def wave_size(*, wanted: int, accepted: int, attempted: int, max_attempts: int, ceiling: int, floor: int = 8) -> int:
    """How many requests to send next; 0 if there are enough candidates or no request is left.

    The number is expected to yield what is missing at the acceptance rate so far, within [floor, ceiling] and never
    beyond `max_attempts` in total. The rate is smoothed by one imaginary accepted request, (accepted + 1) /
    (attempted + 1): before the first rejection, no more are requested than are wanted.
    """
    missing, allowed = wanted - accepted, max_attempts - attempted
    if missing <= 0 or allowed <= 0:
        return 0
    if ceiling < 1:
        raise ValueError("ceiling must be at least 1")
    # Integer arithmetic, rounded up: the same on every machine.
    expected = -(-missing * (attempted + 1) // (accepted + 1))
    return min(max(expected, floor), ceiling, allowed)
