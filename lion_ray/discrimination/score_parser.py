"""Reading a judge's scores out of its text.

Invariants:
- No score is invented: a text from which two scores cannot be read reliably gives None. A retry costs less than a
  wrong verdict.
- The parser accepts 0 to 10, because real judges write 0. `scores.combine` accepts 1 to 10, the scale in the prompt.
- Time is linear in the text: every pattern is bounded, so a hostile answer that the judge repeats cannot stall a run.

How a text is read, in this order:
0. The judge's thoughts (`<think>` and the like) are removed. A text that names a scale other than ten gives None,
   unless it writes its scores as "/10".
1. A first line of just two numbers (or one number on each of the first two lines) is the verdict.
2. A text that is JSON is read only by its keys (`score_json`).
3. Otherwise each *announced* score counts: a label with the word score or a scale of ten, or under a heading such as
   "Scores:"; a score line under an assistant's heading; a tuple or pair called scores; a JSON key.
4. Without those, scores in running text: "I would give Assistant 1 a score of 8 and …".
5. Without those, bare labels: "Assistant 1: 8". They come last, as they may be the answers' results.
6. If all that finds nothing: JSON within the text; then the text with other labels ("Response A"), other languages and
   numbers in words translated into the usual form (`score_words`).
If an assistant has several scores, the last one counts, since a judge explains before it decides. Rules 3 to 5 ignore
text in quotation marks and quoted lines ("> …"). A verdict in a fence, in indented code, in JSON within a sentence or
under "the answer ends with:" may be a quotation too: if it follows a different verdict, both are rejected. Scores on a
scale other than ten are rejected.

This module does not know prompts, models or tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

from lion_ray.core.thoughts import without_thoughts
from lion_ray.discrimination.score_json import Pair, first_pair, pair_of_json
from lion_ray.discrimination.score_words import MARK, on_another_scale, plain_text, usual_numbers, usual_words

HIGHEST = 10.0

_Score = tuple[int, float]
"""The assistant (1 or 2) and its score; NaN if a score is present but unreadable."""

_NUM = r"(?<![\w.,/-])([0-9]{1,3}(?:\.[0-9]{1,3})?)(?![\w%]|\.[0-9])"
_OF_TEN = r"(?: ?/ ?10(?:\.0)?(?![\w.]*[0-9])| out of (?:10|ten)\b)"
_SCALE = rf"{_OF_TEN}?(?: ?points?\b)?"
# What may follow a score. After an operator, a unit or another number it is not a score.
_END = (
    r"(?= ?$| ?[;.!\]}\"|]| ?\((?![0-9])|,(?! ?[0-9])| ?[-–—:] ?(?![0-9 ])|"
    r" (?:and|but|because|due|for|while|with|assistant|score)\b)"
)
_VALUE = _NUM + _SCALE + _END
_JOIN = r"(?: ?(?:,|;|&|\||\band\b|\bto\b|\bvs\.?|\bversus\b) ?| )"
_PAIR = rf"{_NUM}{_SCALE}{_JOIN}(?!0[0-9])([0-9]{{1,3}}(?:\.[0-9]{{1,3}})?)(?![\w%]|[.,][0-9]){_SCALE}"
_WHO = r"(?:\bthe )?(?:\bAI )?\bassistant ?#?([12])\b(?:'s\b)?"
_NOUN = r"(?: (?:answer|response|submission|solution|code|work|performance|output|overall|final|total)){0,2}"
_MARK = MARK
_IS = rf"(?: ?[:=] ?| ?[-–—] | (?:is|gets|receives|scores) )(?:(?:an? )?{_MARK}(?: of| ?[:=])? )?"

_BARE_PAIR = re.compile(rf"((?:final |overall )?(?:{_MARK}|output|tuple) ?[:=]? ?)?[(\[]?{_PAIR}[)\]]?[.;]?", re.I)
_LONE = re.compile(rf"{_NUM}{_SCALE}[.,;]?", re.I)
_LABEL = re.compile(
    rf"(?:(?:\bthe )?(?:final |overall |total )?{_MARK} (?:of|for) {_WHO}|"
    rf"{_WHO}{_NOUN}(?: \(?{_MARK}\)?)?){_IS}{_VALUE}",
    re.I,
)
# A line labelled "score" whose number is not a score out of ten: no verdict can be read from it.
_UNREADABLE = re.compile(
    rf"^(?:the )?(?:final |overall |total )?(?:{_MARK} (?:of|for) {_WHO}|{_WHO}{_NOUN} {_MARK}){_IS}-?[0-9]", re.I
)
_LABEL_ABOVE = re.compile(
    rf"^(?:the )?(?:final |overall )?(?:{_MARK} (?:of|for) {_WHO}|{_WHO}{_NOUN} {_MARK}) ?:$", re.I
)
_SECTION = re.compile(rf"^\[?{_WHO}", re.I)
_SECTION_SCORE = re.compile(rf"^(?:overall |final |total )?(?:score|rating|grade) ?[:=] ?{_VALUE}", re.I)
_ANNOUNCES = re.compile(rf"\b{_MARK}\b|[0-9]{_OF_TEN}", re.I)
_HEADING = re.compile(
    rf"^(?!.{{0,80}}\b(?:expla|reason|justif|rationale))(?=.{{0,400}}:$).*\b{_MARK}\b[^:]{{0,80}}:$", re.I
)
_ANNOUNCED = re.compile(
    rf"(?:\b{_MARK}\b|^(?:the |final |my )*(?:output|tuple)\b|\b(?:output|python) tuple\b)[^0-9.()\[\]]{{0,40}}"
    rf"(?:assistants? 1 and (?:assistant )?2[^0-9.()\[\]]{{0,30}})?[(\[]{_PAIR}[)\]]",
    re.I,
)
_KEY = r"(?<!\\)[\"'](?:score_?(?:of_?)?)?assistant[_ ]?{n}(?:_?(?:score|rating))?[\"'] ?: ?\"?{value}(?= ?[,}}\"])"
_KEYS = [re.compile(_KEY.format(n=n, value=r"(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)(?: ?/ ?10)?"), re.I) for n in (1, 2)]
_ABOUT_POINTS = re.compile(r"\b(?:points?|endpoints?|coordinates?|vert(?:ex|ices))\b", re.I)

# Running text. Only these words may come between an assistant and its score: after "than", "if" or another clause the
# number may belong to the other assistant, or not be a score.
_FILLER = (
    r"(?: ?\(|,| (?:would|will|gets?|receives?|received|earns?|earned|is|was|be|given|awarded|assigned|as|at|with|"
    r"to|the|a|an|overall|final|total|higher|lower|slightly|perfect|high|low|full|also|answer|response|submission|solution|"
    r"code|work|performance|output)\b){0,8}"
)
_GIVEN = re.compile(rf"{_WHO}{_FILLER} (?:score|rating|grade|scores|rates)(?: of| is|:)?(?: an?)? {_VALUE}", re.I)
_RATED = re.compile(
    rf"\b(?:rate|give|award|assign|grade|and|while) {_WHO}{_NOUN}(?: (?:receives|gets))?"
    rf"(?:(?: as)? an?| as| with|(?= [0-9.]{{1,4}}{_OF_TEN})) {_VALUE}",
    re.I,
)
_GIVES = re.compile(rf"\b(?:score|rating|grade) of {_NUM}{_SCALE} (?:to|for) {_WHO}", re.I)
_BOTH = re.compile(
    rf"\bboth\b(?:(?! (?:would|could|might|may|if)\b)[^.;:!?0-9]|(?<=assistant )[12]){{0,60}} "
    rf"(?:(?:score|rating|grade)s? of |(?=[0-9.]{{1,4}}{_OF_TEN})){_NUM}{_SCALE}(?! ?(?:and|,|to) ?[0-9])",
    re.I,
)
_THEIRS = re.compile(
    rf"\b(?:scores|ratings|grades)\b[^0-9.;!?(]{{0,40}}(?:assistants? 1 and (?:assistant )?2[^0-9.;!?(]{{0,30}})?"
    rf"{_PAIR}(?=,? ?(?:respectively|for\b|[.;]|$))",
    re.I,
)

_SPACES = re.compile(r"[^\S\n]+")
_EMPHASIS = re.compile(r"(?<![\w)])[*_]+|[*_]+(?![\w(])")
_BULLET = re.compile(r"^(?:[#•+-]+ |[0-9]{1,2}[.)] (?=(?:the |overall |final )?(?:assistant|score)))+", re.I)
_QUOTED = re.compile(r"(?<!\w)\"[^\"\n]{0,400}\"|“[^“”\n]{0,400}”|`([^`\n]{0,400})`")
_BRACKETED = re.compile(r"\[(assistant ?#?[12])\]", re.I)
_SPAN = re.compile(r"(?<=[\s:(])\"(?=\S)[^\"]{1,600}(?<=\S)\"(?=[\s.,;:)!?]|\Z)|“[^“”]{0,600}”")
# "Note that the second answer ended with:" and the like: what follows is a quotation.
_ATTRIBUTES = re.compile(
    r"\b(?:answers?|responses?|assistants?|submissions?|texts?|it|student|candidate|user|message|sentence|lines?|that|which|"
    r"[12])\b[^.:]{0,60}\b(?:end(?:s|ed|ing)?|sa(?:ys|id|ying)|wr(?:ote|ites?)|written|contain\w*|include[sd]?|including|"
    r"claim\w*|stat(?:es|ed|ing)|reads?|quot\w+|insert\w*|append\w*|embed\w*|plant\w*|inject\w*|add(?:s|ed)|"
    r"print\w*|tr(?:y|ies|ied)|attempt\w*|asks?|demand\w*|request\w*|instruct\w*|tells?|told)\b[^.:]{0,60}:$|"
    r"\b(?:quot(?:e|ed|ing|ation)|injected|planted|embedded|verbatim)\b[^.:]{0,60}:$",
    re.I,
)
_OPENS_QUOTE = re.compile(r"<(?:blockquote|quote|quotation|excerpt|answer|response|text|output)\b[^<>]{0,80}>", re.I)
_CLOSES_QUOTE = re.compile(r"</(?:blockquote|quote|quotation|excerpt|answer|response|text|output)>", re.I)
_RULE = re.compile(r"[-=:| `~*_]*(?:json|text|python)?", re.I)
_ORDINAL = re.compile(r"\b(?:the )?(first|second) (?=assistant\b)assistant\b", re.I)


def parse_scores(text: str) -> Pair | None:
    """The scores of the first and the second assistant, each in 0..10. Returns None if `text` does not give both.

    A truncated text gives None unless both scores are there. Numbers outside 0..10 and scores on another scale
    ("5/5", "85/100") are ignored. Never raises.
    """
    text = plain_text(without_thoughts(text))
    if on_another_scale(text):
        return None
    scores, pair = _parsed(text)
    if pair is None and not any(math.isnan(value) for _, value in scores):
        # If a score was found, the labels were already in the usual form: then only normalise numbers.
        usual = usual_numbers(text) if scores else usual_words(text)
        if usual != text:
            _, pair = _parsed(usual)
    return pair


_Found = tuple[list[_Score], Pair | None]
"""Every score that was read, and the resulting verdict."""


def _parsed(text: str) -> _Found:
    marked = _marked(text)
    lines = [line for line, kind in marked if kind != _FOREIGN]
    scores, pair = _read(lines)
    if not scores and (embedded := first_pair("\n".join(lines))) is not None:
        return _found(embedded)
    if all(kind != _MAYBE for _, kind in marked):
        return scores, pair
    mine = _read([line for line, kind in marked if kind == _OWN])[1]
    quoted = _read([line for line, kind in marked if kind == _MAYBE])[1]
    if mine is None or quoted is None or mine == quoted:
        return scores, pair
    last = max(number for number, (_, kind) in enumerate(marked) if kind == _MAYBE)
    return scores, _read([line for line, kind in marked[last:] if kind == _OWN])[1]


def _read(lines: Sequence[str]) -> _Found:
    """Read lines by rules 1 to 5."""
    if not lines:
        return [], None
    bare = [line.strip("\"'` ") for line in lines[:2]]
    if match := _BARE_PAIR.fullmatch(bare[0]):
        return _found((float(match[2]), float(match[3])))
    if len(bare) == 2 and (one := _LONE.fullmatch(bare[0])) and (two := _LONE.fullmatch(bare[1])):
        return _found((float(one[1]), float(two[1])))
    if lines[0][0] in "{[" and (read := _json("\n".join(lines))) is not None:
        return read
    announced, bare_labels = _written(lines)
    for scores, cut_off in ((announced, True), (_told(lines), False), (bare_labels, True)):
        if {who for who, _ in scores} == {1, 2}:
            return scores, _last_of_each(scores, cut_off=cut_off)
    return [*announced, *bare_labels], None


def _found(pair: Pair) -> _Found:
    return [(1, pair[0]), (2, pair[1])], _checked(*pair)


def _json(text: str) -> _Found | None:
    """Read a text that begins like JSON. Returns None if it is not JSON after all."""
    unreadable: _Found = [(1, float("nan"))], None
    for form in (
        text,
        text.replace("'", '"') if '"' not in text else "",
        text.replace('\\"', '"') if text[1:3] == '\\"' else "",
    ):
        if isinstance(pair := pair_of_json(form), tuple):
            return _found(pair)
        if pair is not None and text[0] == "{":
            return unreadable
    if text[0] == "[":
        return None
    # Malformed or truncated JSON is read by its keys, whose values must be followed by a comma or a bracket.
    keyed = _json_scores(text.replace("\n", " "))
    return (keyed, _last_of_each(keyed, cut_off=False)) if keyed else unreadable


_OWN, _MAYBE, _FOREIGN = range(3)
"""The kind of a line: the judge's own words; possibly a quotation (fenced or indented); certainly a quotation."""


def _marked(text: str) -> list[tuple[str, int]]:
    """The text's non-empty lines, without markdown, quoted lines and repeated spaces, each with its kind.

    Split at newlines only: answers contain other separators (vertical tabs) that splitlines would treat as line ends.
    """
    text = _SPAN.sub(lambda match: "" if "\n" in match[0] else match[0], text)
    marked: list[tuple[str, int]] = []
    fenced, blank, attributed, labelled = False, True, _OWN, False
    for raw in text.split("\n"):
        line = raw.strip()
        if _OPENS_QUOTE.fullmatch(line) or _CLOSES_QUOTE.fullmatch(line):
            fenced = _OPENS_QUOTE.fullmatch(line) is not None
            continue
        if line.startswith(("```", "~~~")):
            fenced = not fenced
            # A fence that opens and closes on one line is not a block.
            fenced = fenced and not (len(line) > 3 and line.endswith(line[:3]))
        if not line:
            # A quotation may begin after a blank line, and ends with one.
            attributed, blank, labelled = (_OWN if labelled else attributed), True, False
            continue
        indented = bool(marked) and raw.startswith(("    ", "\t")) and (blank or marked[-1][1] == _MAYBE)
        blank = False
        line = _plain(line)
        if not line:
            continue
        if attributed != _OWN and labelled and not _LABEL.search(line):
            attributed, labelled = _OWN, False
        keyed = line[0] not in '{"' and any(key.search(line) for key in _KEYS)
        kind = attributed or (_MAYBE if fenced or indented or keyed else _OWN)
        marked.append((line, kind))
        labelled = labelled or (attributed != _OWN and _LABEL.search(line) is not None)
        if _ATTRIBUTES.search(line[-200:]):
            attributed, labelled = (_MAYBE if re.search(rf"\b{_MARK}\b", line, re.I) else _FOREIGN), False
    return marked


def _plain(raw: str) -> str:
    """A line without markdown; "" if it is a rule or a quotation."""
    if raw.startswith(">") or _RULE.fullmatch(raw):
        return ""
    line = _SPACES.sub(" ", raw.replace("’", "'"))
    line = _EMPHASIS.sub("", line).strip(" $")
    if line.startswith("|"):  # a table's row; its first cell may be a label
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        line = (": " if _SECTION.match(cells[0]) else " ").join(cells)
    line = _BRACKETED.sub(r"\1", line)
    line = _ORDINAL.sub(lambda match: "assistant 1" if match[1].lower() == "first" else "assistant 2", line)
    return _BULLET.sub("", line)


def _unquoted(line: str) -> str:
    """The line without text in quotation marks. Backticks around bare numbers are only style and are kept."""
    return _QUOTED.sub(lambda match: match[1] if match[1] and not re.search(r"[a-z]", match[1], re.I) else "", line)


def _written(lines: Sequence[str]) -> tuple[list[_Score], list[_Score]]:
    """The announced scores (rule 3) and the bare labels before any announcement (rule 5), in the order of the text."""
    scores: list[_Score] = []
    bare: list[_Score] = []
    section, judged, announced = 0, False, False
    for index, raw in enumerate(lines):
        line = _unquoted(raw)
        above = lines[index - 1] if index else ""
        last = index == len(lines) - 1
        if match := _SECTION.match(line):
            section = int(match[1])
        judged = judged or "assistant" in above.lower()
        found = list(_labelled(line))
        if found:
            announced = announced or bool(_ANNOUNCES.search(line))
            (scores if announced else bare).extend(found)
        elif match := _UNREADABLE.match(line):
            scores.append((int(match[1] or match[2]), float("nan")))
        elif (match := _LABEL_ABOVE.match(above)) and (number := _LONE.fullmatch(line)):
            scores.append((int(match[1] or match[2]), float(number[1])))
        elif section and (match := _SECTION_SCORE.match(line)):
            scores.append((section, float(match[1])))
        elif match := _ANNOUNCED.search(line):
            scores += [(1, float(match[1])), (2, float(match[2]))]
        elif match := _pair_alone(line, above, judged, last):
            scores += [(1, float(match[2])), (2, float(match[3]))]
        elif '"' in raw and (keyed := _json_scores(raw + ("" if last else lines[index + 1][:1]))):
            scores += keyed
        elif _HEADING.search(line) and not _LABEL_ABOVE.match(line) and not _ATTRIBUTES.search(line[-200:]):
            # The verdict starts here: labels above were about something else and must not count if the text is cut off.
            announced = True
            scores.clear()
            bare.clear()
    return scores, bare


def _labelled(line: str) -> Iterator[_Score]:
    """Scores after an assistant's name, if the line begins with a name or announces scores."""
    chained = False
    for match in _LABEL.finditer(line):
        before = line[: match.start()]
        if before and not (
            chained or re.search(rf"\b{_MARK}\b|\bassistant 1\b|\bscale\b|\bverdict\b", before[-200:], re.I)
        ):
            return
        # Once a label begins the line, further labels count.
        chained = True
        yield int(match[1] or match[2]), float(match[3])


def _pair_alone(line: str, above: str, judged: bool, last: bool) -> re.Match[str] | None:
    """A line of two numbers that can be a verdict: under "scores", or after the assistants were `judged`.

    The same line in a derivation (the point ``(10, 4)``) is not a verdict.
    """
    match = _BARE_PAIR.fullmatch(line)
    if match is None or (_ABOUT_POINTS.search(above) and not match[1]):
        return None
    if match[1] or re.search(rf"\b{_MARK}\b", above, re.I):
        return match
    return match if judged and (last or line[0] in "([") else None


def _json_scores(text: str) -> list[_Score]:
    # By key rather than with a JSON parser: judges also leave brackets open or put text around the object.
    return [(n, float(match[1])) for n, key in enumerate(_KEYS, 1) for match in key.finditer(text)]


def _told(lines: Sequence[str]) -> list[_Score]:
    """Scores in running text (rule 4), in the order of the text."""
    scores: list[_Score] = []
    for raw in lines:
        line = _unquoted(raw)
        found: list[tuple[int, _Score]] = []
        collect: list[tuple[re.Pattern[str], Callable[[re.Match[str]], list[_Score]]]] = [
            (_THEIRS, lambda match: [(1, float(match[1])), (2, float(match[2]))]),
            (_BOTH, lambda match: [(1, float(match[1])), (2, float(match[1]))]),
            (_GIVEN, lambda match: [(int(match[1]), float(match[2]))]),
            (_RATED, lambda match: [(int(match[1]), float(match[2]))]),
            (_GIVES, lambda match: [(int(match[2]), float(match[1]))]),
        ]
        for pattern, read in collect:
            found += [(match.end(), score) for match in pattern.finditer(line) for score in read(match)]
        scores += [score for _, score in sorted(found, key=lambda item: item[0])]
    return scores


def _last_of_each(scores: Sequence[_Score], *, cut_off: bool) -> Pair | None:
    """The last score of each assistant. With `cut_off`, None if the text seems to end inside a second verdict."""
    last = dict(scores)
    if not last.keys() >= {1, 2}:
        return None
    final = scores[-1][0]
    earlier = [value for who, value in scores[:-1] if who == final]
    if cut_off and final == 1 and earlier and earlier[-1] != last[1]:
        return None
    return _checked(last[1], last[2])


def _checked(first: float, second: float) -> Pair | None:
    """The pair if both scores are in 0..10, else None."""
    return (first, second) if 0 <= first <= HIGHEST and 0 <= second <= HIGHEST else None
