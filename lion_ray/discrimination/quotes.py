"""Removes what a judge's reply quotes of the answers that it was shown, so that a planted verdict is never read.

Invariants:
- Only what stands in an answer word for word, whatever the space between words, is removed: whole answers, and single
  lines that could be taken for a verdict (they hold letters or brackets, and are not short). A number that both an
  answer and the verdict hold stays.
- Removing may lose a verdict that equals a line of an answer: the reply is then unreadable, which is retried.

Quotations that were changed on the way are left to the parsers (`score_parser`), which know how judges quote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

SHORTEST = 6
"""Characters of a line that is removed by itself."""
_LOADED = re.compile(r"[^\W\d_]|[{}\[\]<>]")
_SPACE = r"(?:\s|\\[nrt])+"
"""Space between words; in a JSON string it may be escaped."""
GAP = " … "
"""Takes the place of a quotation."""


def without_quotes(reply: str, answers: Iterable[str]) -> str:
    """The reply without quotations of `answers`, plain or as within a JSON string, whatever their spaces."""
    texts = list(answers)
    if reply.strip() in {answer.strip() for answer in texts}:
        return reply  # a verdict alone that an answer imitates is still the judge's
    found = {text for answer in texts for text in _quotable(answer)}
    found |= {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in found for ascii_only in (True, False)}
    for text in sorted(found, key=len, reverse=True):
        words = re.split(_SPACE, text)
        # Most answers are not quoted at all; only then the time of a search counts.
        if words[0] in reply and words[-1] in reply:
            reply = re.sub(_SPACE.join(map(re.escape, words)), GAP, reply)
    return reply


def _quotable(answer: str) -> Iterator[str]:
    for text in (answer.strip(), *(line.strip() for line in answer.splitlines())):
        if len(text) >= SHORTEST and _LOADED.search(text):
            yield text
