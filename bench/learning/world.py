"""The world: its tasks by seed, the truth about an answer, a teacher's slips and a judge's scores. Pure.

Invariants:
- Everything follows from its arguments: the same seed gives the same tasks, the same instruction the same slip, and the
  same pair of texts the same noise.
- What is held out is drawn first and is the same for every seed of training; no training task is one of it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterator
from random import Random
from typing import NamedTuple

from bench.learning.families import BY_NAME, FAMILIES

BEST, WORST = 10.0, 1.0
NEARLY = 9.5
"""What a wrong answer gets at most."""


class Task(NamedTuple):
    """An instruction of the world, and its right answer."""

    family: str
    instruction: str
    answer: str


def rng_of(*parts: object) -> Random:
    """A random generator that depends on `parts` alone."""
    return Random(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest())


def read(instruction: str) -> Task | None:
    """The task that an instruction is; None for one of another world."""
    for family in FAMILIES:
        if (answer := family.read(instruction)) is not None:
            return Task(family.name, instruction, answer)
    return None


def tasks(rng: Random, family: str | None = None, known: Collection[str] = ()) -> Iterator[Task]:
    """Different tasks without end, of one family or of all in turn, in random order; none of `known`."""
    seen = set(known)
    while True:
        names = [family] if family else rng.sample(list(BY_NAME), len(BY_NAME))
        for name in names:
            for _ in range(1000):
                instruction = BY_NAME[name].write(rng)
                if instruction not in seen:
                    break
            else:
                raise ValueError(f"{name}: there are hardly any other tasks left")
            seen.add(instruction)
            task = read(instruction)
            assert task is not None
            yield task


def heldout(per_family: int) -> list[Task]:
    """What nobody trains on, family by family."""
    found = []
    for name in BY_NAME:
        drawn = tasks(rng_of("held out", name), name)
        found += [next(drawn) for _ in range(per_family)]
    return found


def pool(rows: int, seed: int, known: Collection[str]) -> list[Task]:
    """The user's own tasks: as many of each family as can be."""
    drawn = tasks(rng_of("pool", seed), known=known)
    return [next(drawn) for _ in range(rows)]


def normalised(text: str) -> str:
    """A text without what is no part of an answer: outer and repeated spaces, a full stop at the end."""
    return re.sub(r"\s+", " ", text).strip().removesuffix(".").rstrip()


def is_right(answer: str, truth: str) -> bool:
    return normalised(answer) == normalised(truth)


def slip(task: Task, rng: Random) -> str:
    """A wrong answer as somebody might give it: a digit, a letter or two words that are not as they should be."""
    apart = ", " if ", " in task.answer else " "
    words = task.answer.split(apart)
    for _ in range(100):
        changed = list(words)
        if digits := [at for at, word in enumerate(words) if any(map(str.isdigit, word))]:
            at = rng.choice(digits)
            place = rng.choice([place for place, letter in enumerate(words[at]) if letter.isdigit()])
            changed[at] = words[at][:place] + rng.choice("123456789") + words[at][place + 1 :]
        elif len(words) > 1:
            at = rng.randrange(len(words) - 1)
            changed[at : at + 2] = words[at + 1], words[at]
        else:
            at = rng.randrange(len(words))
            word, place = words[at], rng.randrange(len(words[at]))
            changed[at] = rng.choice((word[:place] + word[place + 1 :], word[: place + 1] + word[place:]))
        said = apart.join(changed)
        if said.strip() and not is_right(said, task.answer):
            return said
    raise ValueError(f"{task.answer!r} cannot be mistaken")


def taught(task: Task, error: float, seed: int) -> str:
    """What a teacher answers who is wrong in a share `error` of the tasks: always in the same."""
    rng = rng_of("teacher", seed, task.instruction)
    return slip(task, rng) if rng.random() < error else task.answer


def score(task: Task, answer: str) -> float:
    """A judge's points for an answer: all for a right one, for another the more the nearer its text is."""
    if is_right(answer, task.answer):
        return BEST
    near = difflib.SequenceMatcher(None, normalised(answer), normalised(task.answer), autojunk=False).ratio()
    return min(NEARLY, WORST + (BEST - WORST) * near)


def judged(task: Task, answers: tuple[str, str], noise: float, seed: int) -> tuple[float, float]:
    """Both answers' points, each with Gaussian noise of this deviation, within the scale and to one decimal."""
    rng = rng_of("judge", seed, task.instruction, *answers)
    one, other = (min(BEST, max(WORST, score(task, text) + rng.gauss(0, noise))) for text in answers)
    return round(one, 1), round(other, 1)
