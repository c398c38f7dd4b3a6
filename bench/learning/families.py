"""The families of synthetic tasks: each writes unlimited instances, whose answers follow from the instruction's text.

Invariants:
- An instance depends only on the random generator, and the answer only on the instruction.
- No instruction belongs to two families.
- Instructions pass the generator's filter unchanged: at least four words, and no heading or quotation marks.

Families differ in their difficulty for a small student: some copy (JSON, titles), some calculate, some need a word's
letters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random

Fields = Mapping[str, str]


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


WORDS = _words(
    "apple bag ball bank bean bed bell bird boat book box bread bridge brush cake camp candle card castle cat",
    "chair cheese circle city clock cloud coat coin corn cup desk dog door dream drum duck eagle egg engine farm",
    "field fire fish flag flower forest fork game garden gate glass goat gold grape grass hammer hat hill honey",
    "horse house island jacket kettle key king kite ladder lake lamp leaf lemon letter light lion map market milk",
    "mirror moon mountain mouse needle nest night ocean onion orange paper pencil piano picture planet plate",
    "pocket pond potato queen rabbit rain ribbon ring river road rocket roof rope rose salt sand school sea ship",
    "shoe silver sky snow spoon star stone storm street sugar summer sun table tent tiger tower train tree turtle",
    "valley village wagon wall water wheel whistle wind window winter wolf",
)
NAMES = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina Victor"
)
CITIES = _words("Athens Berlin Cairo Dublin Florence Geneva Hanoi Lima Madrid Nairobi Oslo Paris Quito Rome Tokyo")
MONTHS = _words("January February March April May June July August September October November December")
SMALL = _words(
    "zero one two three four five six seven eight nine ten",
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
)
TENS = _words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")
UNITS = {
    ("kilometres", "metres"): 1000,
    ("kilograms", "grams"): 1000,
    ("metres", "centimetres"): 100,
    ("hours", "minutes"): 60,
    ("weeks", "days"): 7,
    ("feet", "inches"): 12,
    ("pairs", "pieces"): 2,
}
ROMAN = (
    (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One kind of task."""

    name: str
    wordings: tuple[str, ...]
    """Templates with a ``{field}`` for each variable part."""
    draw: Callable[[Random], dict[str, str]]
    """The fields of an instance."""
    solve: Callable[[Fields], str]
    """The right answer, from the fields in a wording."""

    def write(self, rng: Random) -> str:
        """A new instance's instruction."""
        fields = self.draw(rng)
        return rng.choice(self.wordings).format(**fields)

    def read(self, instruction: str) -> str | None:
        """The right answer to an instruction of this family; None for other instructions."""
        for pattern in self._patterns:
            if match := pattern.fullmatch(instruction):
                return self.solve(match.groupdict())
        return None

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(wording) for wording in self.wordings]


def _pattern(wording: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", wording)
    return re.compile("".join(f"(?P<{one}>[^:?\\n]+)" if at % 2 else re.escape(one) for at, one in enumerate(parts)))


def in_words(number: int) -> str:
    """A number below 100 in English."""
    if number < len(SMALL):
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{SMALL[ones]}" if ones else "")


def from_words(words: str) -> int:
    """The inverse of `in_words`."""
    return next(number for number in range(100) if in_words(number) == words)


def roman(number: int) -> str:
    written = ""
    for value, letters in ROMAN:
        times, number = divmod(number, value)
        written += letters * times
    return written


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _draw_date(rng: Random) -> dict[str, str]:
    return {"date": f"{rng.randint(1950, 2049)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"}


def _date(fields: Fields) -> str:
    year, month, day = fields["date"].split("-")
    return f"{int(day)} {MONTHS[int(month) - 1]} {year}"


def _draw_units(rng: Random) -> dict[str, str]:
    large, small = rng.choice(list(UNITS))
    return {"large": large, "small": small, "number": str(rng.randint(2, 30))}


def _units(fields: Fields) -> str:
    return f"{int(fields['number']) * UNITS[fields['large'], fields['small']]} {fields['small']}"


def _draw_word(rng: Random) -> dict[str, str]:
    return {"word": rng.choice([word for word in WORDS if len(word) <= 5])}


def _draw_list(rng: Random) -> dict[str, str]:
    return {"words": _listed(rng.sample(WORDS, rng.randint(3, 4)))}


def _draw_person(rng: Random) -> dict[str, str]:
    return {"name": rng.choice(NAMES), "age": str(rng.randint(18, 80)), "city": rng.choice(CITIES)}


def _person(fields: Fields) -> str:
    return json.dumps({"name": fields["name"], "age": int(fields["age"]), "city": fields["city"]})


def _draw_sum(rng: Random) -> dict[str, str]:
    return {"one": in_words(rng.randint(1, 30)), "other": in_words(rng.randint(1, 30))}


def _draw_code(rng: Random) -> dict[str, str]:
    word = rng.choice(WORDS)
    return {"word": word, "times": str(rng.randint(2, 3)), "at": str(rng.randint(0, 2)), "upper": word}


def _code(fields: Fields) -> str:
    if "upper" in fields:
        return fields["upper"].upper()
    return fields["word"] * int(fields["times"]) if "times" in fields else fields["word"][int(fields["at"])]


def _draw_letter(rng: Random) -> dict[str, str]:
    word = rng.choice([word for word in WORDS if len(word) >= 5])
    return {"word": word, "letter": rng.choice(word)}


def _draw_sequence(rng: Random) -> dict[str, str]:
    start, step = rng.randint(1, 30), rng.randint(2, 12)
    return {"numbers": _listed([str(start + step * place) for place in range(4)])}


def _sequence(fields: Fields) -> str:
    *_, before, last = (int(one) for one in fields["numbers"].split(", "))
    return str(2 * last - before)


def _draw_pair(rng: Random) -> dict[str, str]:
    one, other = rng.sample(range(100, 1000), 2)
    return {"one": str(one), "other": str(other)}


def _draw_title(rng: Random) -> dict[str, str]:
    first, second, third = rng.sample(WORDS, 3)
    title = rng.choice((f"the {first} and the {second}", f"a {first} of {second}", f"{first} {second} {third}"))
    return {"title": title}


def _draw_filter(rng: Random) -> dict[str, str]:
    letter = rng.choice("bcfglmprs")
    kept = rng.sample([word for word in WORDS if word[0] == letter], rng.randint(1, 2))
    words = kept + rng.sample([word for word in WORDS if word[0] != letter], 2)
    rng.shuffle(words)
    return {"letter": letter, "words": _listed(words)}


def _filter(fields: Fields) -> str:
    return _listed([word for word in fields["words"].split(", ") if word[0] == fields["letter"]])


FAMILIES = (
    Family("date", ("Write the date {date} in words.", "Spell out this date: {date}"), _draw_date, _date),
    Family("units", ("How many {small} are {number} {large}?",), _draw_units, _units),
    Family("backwards", ("Write the word {word} backwards.",), _draw_word, lambda fields: fields["word"][::-1]),
    Family(
        "sort",
        ("Sort these words by the alphabet: {words}", "Put into alphabetical order: {words}"),
        _draw_list,
        lambda fields: _listed(sorted(fields["words"].split(", "))),
    ),
    Family(
        "reorder",
        ("List these words from last to first: {words}",),
        _draw_list,
        lambda fields: _listed(fields["words"].split(", ")[::-1]),
    ),
    Family(
        "json",
        ("Give this as JSON: {name} is {age} and lives in {city}.", "Make JSON of this: {name}, {age}, from {city}."),
        _draw_person,
        _person,
    ),
    Family(
        "sum",
        ("What is {one} plus {other}, in words?",),
        _draw_sum,
        lambda fields: in_words(from_words(fields["one"]) + from_words(fields["other"])),
    ),
    Family(
        "code",
        (
            'What does this Python line print? print("{word}" * {times})',
            'What does this Python line print? print("{word}"[{at}])',
            'What does this Python line print? print("{upper}".upper())',
        ),
        _draw_code,
        _code,
    ),
    Family(
        "letters",
        ("How often does the letter {letter} occur in {word}?",),
        _draw_letter,
        lambda fields: str(fields["word"].count(fields["letter"])),
    ),
    Family("sequence", ("Which number comes next: {numbers}",), _draw_sequence, _sequence),
    Family(
        "larger",
        ("Which number is larger, {one} or {other}?",),
        _draw_pair,
        lambda fields: str(max(int(fields["one"]), int(fields["other"]))),
    ),
    Family(
        "title",
        ("Write every word with a capital: {title}",),
        _draw_title,
        lambda fields: " ".join(word.capitalize() for word in fields["title"].split()),
    ),
    Family(
        "acronym",
        ("Form an acronym of these words: {words}",),
        _draw_list,
        lambda fields: "".join(word[0].upper() for word in fields["words"].split(", ")),
    ),
    Family("filter", ("Keep the words that start with {letter}: {words}",), _draw_filter, _filter),
    Family(
        "roman",
        ("Write the number {number} in Roman numerals.",),
        lambda rng: {"number": str(rng.randint(1, 120))},
        lambda fields: roman(int(fields["number"])),
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}
