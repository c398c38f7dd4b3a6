"""Draws, filters, cleaning and the size of waves: all pure."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest

from lion_ray.core.records import INSTRUCTION, instruction_id, table
from lion_ray.generation import sampling
from lion_ray.generation.sampling import clean_candidate, draw_seed, filter_candidate, wave_size


def pool_of(*texts: str) -> pa.Table:
    rows = [{"id": instruction_id(text), "text": text, "source": "seed", "iteration": 0} for text in texts]
    return table(rows, INSTRUCTION)


def test_a_draw_depends_on_what_it_is_for_and_nothing_else() -> None:
    pool = pool_of(*(f"text {number}" for number in range(1000)))

    def draws(seed: int = 1, iteration: int = 1, kind: str = "hard") -> list[str]:
        return [
            draw_seed(pool, seed=seed, iteration=iteration, kind=kind, request=request)["id"] for request in range(20)
        ]

    first = draws()
    assert draws() == first
    assert draw_seed(pool, seed=1, iteration=1, kind="hard", request=7)["id"] == first[7], "not of earlier draws"
    assert len({tuple(first), tuple(draws(seed=2)), tuple(draws(iteration=2)), tuple(draws(kind="easy"))}) == 4


def test_draws_are_uniform_and_with_replacement() -> None:
    pool = pool_of("a", "b", "c", "d")
    counts = Counter(draw_seed(pool, seed=0, iteration=1, kind="easy", request=n)["text"] for n in range(4000))
    assert sorted(counts) == ["a", "b", "c", "d"]
    # 1,000 expected of each, standard deviation 27.
    assert all(860 < count < 1140 for count in counts.values())


def test_a_draw_is_a_whole_row_and_an_empty_pool_has_none() -> None:
    row = draw_seed(pool_of("only"), seed=0, iteration=1, kind="hard", request=3)
    assert row == {"id": instruction_id("only"), "text": "only", "source": "seed", "parent": None, "iteration": 0} | {
        "reference": None
    }
    with pytest.raises(ValueError, match="no hard"):
        draw_seed(pool_of(), seed=0, iteration=1, kind="hard", request=0)


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("Name three rivers in Africa", "stop", None),
        ("Write it: 写一首诗", "stop", None),
        ("3 apples cost 2 euros; what does one cost?", "stop", None),
        ("", "stop", "empty"),
        (" \n", "stop", "empty"),
        ("Name three rivers in", "length", "cut off at the length limit"),
        ("Name three rivers in", "content_filter", "cut off by the endpoint's content filter"),
        ("Follow the Instructions on the box", "stop", "mentions 'instruction'"),
        ("Name three rivers", "stop", "fewer than 4 words"),
        ("don't-do it's", "stop", "fewer than 4 words"),
        ("A: 写诗", "stop", "fewer than 4 words"),
        ("(optional) name three rivers", "stop", "starts with punctuation"),
        ("写一首关于秋天的诗", "stop", None),
        ("Назови три реки в Африке", "stop", None),
        ("Überlege dir drei Flüsse", "stop", None),
        ("¿Qué río cruza Sevilla?", "stop", None),
        ("اذكر ثلاثة أنهار في أفريقيا", "stop", None),
        ("अफ़्रीका की तीन नदियाँ बताओ", "stop", None),
        ("٣ تفاحات بيورو ما ثمن واحدة", "stop", None),
        ("“Name” is a word: define it", "stop", "starts with punctuation"),
        ("（可选）写一首关于秋天的诗", "stop", "starts with punctuation"),
        ("→ name three rivers here", "stop", "starts with a symbol"),
        ("\U0001f30a name three rivers here", "stop", "starts with a symbol"),
    ],
)
def test_filters(text: str, finish_reason: str, reason: str | None) -> None:
    assert filter_candidate(text, finish_reason, min_words=4) == reason


def test_the_least_number_of_words_is_the_callers() -> None:
    assert filter_candidate("Name three rivers", "stop", min_words=3) is None
    assert filter_candidate("Name three rivers here now", "stop", min_words=6) == "fewer than 6 words"


@pytest.mark.parametrize(
    "wrapped",
    [
        "  Name a river.\n",
        '"Name a river."',
        "“Name a river.”",
        "'Name a river.'",
        "**Name a river.**",
        "Instruction: Name a river.",
        "New Instruction:\nName a river.",
        "**New instruction:** Name a river.",
        "**New instruction**: Name a river.",
        "### Instruction:\nName a river.",
        "### Instruction\n\nName a river.",
        "#Created Prompt#:\nName a river.",
        "Instruction 2: Name a river.",
        "1. Name a river.",
        "- Name a river.",
        '1. "Instruction: Name a river."',
        "Sure! Here is a new instruction:\n\nName a river.",
        "Sure, here's a brand-new question from the same field:\nName a river.",
        "Brand new task: Name a river.",
        "<think>\nA short one.\n</think>\n\nName a river.",
        "[THINK]short[/THINK]New task: Name a river.",
        "<think>short</think>\n```\nName a river.\n```",
        "Certainly! Below is a new task in the same domain.\n\nName a river.",
        "Sure!\n\nName a river.",
        "Of course, I can do that.\n\n**New task:** Name a river.",
        "I have created a new question of the same kind:\nName a river.",
        "```\nName a river.\n```",
        "```text\nName a river.\n```",
        "[New Task]: Name a river.",
        "[New Question]\nName a river.",
        "#Rewritten Prompt#\nName a river.",
        "#Rewritten Prompt#: Name a river.",
        "**New task**\n\nName a river.",
        "## More difficult question\nName a river.",
    ],
)
def test_formatting_is_taken_off(wrapped: str) -> None:
    assert clean_candidate(wrapped) == "Name a river."


@pytest.mark.parametrize(
    "text",
    [
        '"Stop" or "halt": which is stronger?',
        "'Stop' or 'halt'",
        "**Bold** and **brave**",
        "1. Boil the water.\n2. Add the tea.\nWhich step is missing?",
        "- red\n- blue\nMix these colours.",
        "-5 plus 3 is what?",
        "1.5 litres of milk cost 2 euros. What does one cost?",
        "2024 was a leap year. When is the next?",
        "Question the claim that cats are solitary.",
        "Here is a task list: buy milk, call Bob. Put it in order.",
        "Task: ",
        "```python\nprint(1)\n```",
        "Mend this:\n```\nx = (1\n```",
        "```\na\n```\nand\n```\nb\n```",
        "Sure, cats are cute. Why?\n\nExplain.",
        "Below is a list of tasks. Put it in order:\n\n- wash\n- dry",
        "Rewrite the prompt `<think>` in plain words.",
        "Fill in {0} and {name}.\x0bThen stop.",
        "",
    ],
)
def test_the_text_itself_is_left_alone(text: str) -> None:
    assert clean_candidate(text) == text.strip()


def test_thoughts_that_were_cut_off_are_no_candidate() -> None:
    cut = clean_candidate("<think>\nThe user wants a new task about rivers. Name a")
    assert (cut, filter_candidate(cut, "stop", min_words=4)) == ("", "empty")


def test_an_apostrophe_does_not_keep_quotation_marks_on() -> None:
    assert clean_candidate("'Explain why it isn't raining.'") == "Explain why it isn't raining."


def simulate(wanted: int, max_attempts: int, one_in: int, ceiling: int = 64) -> tuple[int, int, list[int]]:
    accepted = attempted = 0
    waves = []
    while size := wave_size(
        wanted=wanted, accepted=accepted, attempted=attempted, max_attempts=max_attempts, ceiling=ceiling
    ):
        waves.append(size)
        accepted += sum(number % one_in == 0 for number in range(attempted, attempted + size))
        attempted += size
    return accepted, attempted, waves


def test_waves_end_with_enough_or_at_the_limit() -> None:
    accepted, attempted, waves = simulate(wanted=100, max_attempts=1000, one_in=3)
    assert accepted >= 100
    assert attempted <= 300 + 3 * 8, "no more than needed, but for the last wave"
    assert max(waves) <= 64
    assert simulate(wanted=100, max_attempts=130, one_in=50)[1] == 130


def test_nothing_beyond_what_is_wanted_before_a_rejection_was_seen() -> None:
    assert wave_size(wanted=30, accepted=0, attempted=0, max_attempts=300, ceiling=1000) == 30
    assert wave_size(wanted=30, accepted=9, attempted=9, max_attempts=300, ceiling=1000) == 21


@pytest.mark.parametrize(
    ("state", "size"),
    [
        ({"wanted": 10, "accepted": 10, "attempted": 20}, 0),
        ({"wanted": 10, "accepted": 12, "attempted": 20}, 0),
        ({"wanted": 10, "accepted": 0, "attempted": 100}, 0),
        ({"wanted": 0, "accepted": 0, "attempted": 0}, 0),
        ({"wanted": 10, "accepted": 9, "attempted": 9}, 8),  # the floor
        ({"wanted": 10, "accepted": 9, "attempted": 97}, 3),  # what the limit leaves
        ({"wanted": 10, "accepted": 4, "attempted": 9}, 12),  # 6 missing at a rate of 5 in 10
        ({"wanted": 10, "accepted": 0, "attempted": 40}, 50),  # the ceiling
    ],
)
def test_wave_sizes(state: dict[str, int], size: int) -> None:
    assert wave_size(**state, max_attempts=100, ceiling=50) == size


def test_a_wave_without_room_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="ceiling"):
        wave_size(wanted=1, accepted=0, attempted=0, max_attempts=1, ceiling=0)


@pytest.mark.parametrize("finish_reason", ["tool_calls", "error", "of a kind that is not known"])
def test_what_did_not_end_by_itself_is_rejected(finish_reason: str) -> None:
    text = "Name the longest river of each continent."
    assert sampling.filter_candidate(text, "stop", min_words=3) is None
    assert sampling.filter_candidate(text, finish_reason, min_words=3) == sampling.UNFINISHED


def test_quotation_marks_around_one_letter_are_taken_off() -> None:
    assert sampling.clean_candidate('"x"') == "x"


def test_a_ceiling_of_one_is_allowed_and_of_none_is_not() -> None:
    known = {"wanted": 5, "accepted": 0, "attempted": 0, "max_attempts": 9}
    assert sampling.wave_size(**known, ceiling=1) == 1
    with pytest.raises(ValueError, match="ceiling must be at least 1"):
        sampling.wave_size(**known, ceiling=0)
