"""The synthetic tasks: drawing them by seed, checking answers, and simulating a teacher's errors and a judge's scores.

Invariants:
- Functions are pure: the same seed gives the same tasks, the same instruction the same error, and the same pair of
  texts the same noise.
- Held-out tasks are drawn first and are the same for every seed; no training task is among them.
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
"""The maximum score of a wrong answer."""


class Task(NamedTuple):
    """An instruction and its right answer."""

    family: str
    instruction: str
    answer: str


def rng_of(*parts: object) -> Random:
    """A random generator that depends only on `parts`."""
    return Random(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest())


def read(instruction: str) -> Task | None:
    """The task with this instruction; None if it is not a synthetic task."""
    for family in FAMILIES:
        if (answer := family.read(instruction)) is not None:
            return Task(family.name, instruction, answer)
    return None


def tasks(rng: Random, family: str | None = None, known: Collection[str] = ()) -> Iterator[Task]:
    """Yields distinct tasks endlessly, of one family or of all in random order; none of `known`."""
    seen = set(known)
    while True:
        names = [family] if family else rng.sample(list(BY_NAME), len(BY_NAME))
        for name in names:
            for _ in range(1000):
                instruction = BY_NAME[name].write(rng)
                if instruction not in seen:
                    break
            else:
                raise ValueError(f"{name}: hardly any new tasks are left")
            seen.add(instruction)
            task = read(instruction)
            assert task is not None
            yield task


def heldout(per_family: int) -> list[Task]:
    """The held-out tasks, family by family."""
    found = []
    for name in BY_NAME:
        drawn = tasks(rng_of("held out", name), name)
        found += [next(drawn) for _ in range(per_family)]
    return found


def pool(rows: int, seed: int, known: Collection[str]) -> list[Task]:
    """The user's seed tasks, balanced over the families."""
    drawn = tasks(rng_of("pool", seed), known=known)
    return [next(drawn) for _ in range(rows)]


def normalised(text: str) -> str:
    """A text without outer and repeated spaces and without a final full stop."""
    return re.sub(r"\s+", " ", text).strip().removesuffix(".").rstrip()


def is_right(answer: str, truth: str) -> bool:
    return normalised(answer) == normalised(truth)


def slip(task: Task, rng: Random) -> str:
    """A plausible wrong answer: with a changed digit, a missing or repeated letter, or two words swapped."""
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
        answer = apart.join(changed)
        if answer.strip() and not is_right(answer, task.answer):
            return answer
    raise ValueError(f"no wrong answer found for {task.answer!r}")


def taught(task: Task, error: float, seed: int) -> str:
    """The answer of a teacher who is wrong in a fixed share `error` of the tasks."""
    rng = rng_of("teacher", seed, task.instruction)
    return slip(task, rng) if rng.random() < error else task.answer


def score(task: Task, answer: str) -> float:
    """A judge's score without noise: the maximum for a right answer, else by text similarity."""
    if is_right(answer, task.answer):
        return BEST
    near = difflib.SequenceMatcher(None, normalised(answer), normalised(task.answer), autojunk=False).ratio()
    return min(NEARLY, WORST + (BEST - WORST) * near)


def judged(task: Task, answers: tuple[str, str], noise: float, seed: int) -> tuple[float, float]:
    """Both answers' scores with Gaussian noise of this deviation, clipped to the scale and rounded to one decimal."""
    rng = rng_of("judge", seed, task.instruction, *answers)
    one, other = (min(BEST, max(WORST, score(task, text) + rng.gauss(0, noise))) for text in answers)
    return round(one, 1), round(other, 1)
