"""The parser against thousands of real judge texts and hand-written traps; the arithmetic on scores."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lion_ray.core import statistics
from lion_ray.discrimination.quality import RelativeQuality, relative_quality
from lion_ray.discrimination.scores import combine, in_range, is_hard, parse_scores

REVIEWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "judge_reviews"
needs_reviews = pytest.mark.skipif(not REVIEWS.is_dir(), reason=f"no judge reviews at {REVIEWS}")

DERIVATION = """First, I will solve the problem independently:

The endpoints are (2, -2) and (10, 4), so the length is 10.

Assistant 1: x = 6
Assistant 2: 2 + 3 = 5

Assistant 1's answer is right; Assistant 2 used 3 wrong steps and took 4 from 40.

"""


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def gpt4_reviews() -> Iterator[tuple[str, str, tuple[float, float], bool]]:
    """(place, text, right scores, whether they stand on the first line) of every GPT-4 review."""
    expected = {(row["file"], row["line"]): row["expected"] for row in rows(REVIEWS / "freeform_expected.jsonl")}
    for path in sorted(REVIEWS.glob("gpt4_*/**/*.jsonl")):
        file = path.relative_to(REVIEWS).as_posix()
        for line, row in enumerate(rows(path)):
            first, second = expected.get((file, line), row["score"])
            yield f"{file}:{line}", row["text"], (float(first), float(second)), (file, line) not in expected


@needs_reviews
def test_gpt4_reviews_are_read_right() -> None:
    total, misses, first_line_misses = 0, [], []
    for place, text, right, on_first_line in gpt4_reviews():
        total += 1
        if (got := parse_scores(text)) != right:
            misses.append(place)
            first_line_misses += [place] if on_first_line else []
            print(f"{place}: {got} instead of {right}: {text[-300:]!r}")
    print(f"{total - len(misses)} of {total} reviews read right ({1 - len(misses) / total:.2%})")
    assert total > 3000
    assert 1 - len(misses) / total >= 0.995
    assert not first_line_misses


@needs_reviews
def test_a_review_that_was_cut_off_never_gives_other_scores() -> None:
    checked = 0
    for place, text, right, on_first_line in gpt4_reviews():
        if on_first_line:
            continue
        # All around where the scores are written; a cut between the digits of 10 cannot be told from a 1.
        for end in range(len(text) - 200, len(text), 9):
            if text[end - 1 : end + 1] != "10":
                checked += 1
                assert parse_scores(text[:end]) in (None, right), f"{place} cut at {end}"
    assert checked > 1000


@needs_reviews
def test_three_class_and_ranking_reviews_hold_no_pair() -> None:
    paths = [*REVIEWS.glob("prd_threeclass_gpt35/*.jsonl"), *REVIEWS.glob("gpt35_llmzoo_ranking/*.jsonl")]
    texts = [row["text"] for path in paths for row in rows(path)]
    assert len(texts) > 900
    assert [text for text in texts if parse_scores(text) is not None] == []


@needs_reviews
def test_vicunas_reviews_that_begin_with_a_pair_are_read() -> None:
    texts = [row["text"] for path in REVIEWS.glob("prd_threeclass_vicuna-13b/*.jsonl") for row in rows(path)]
    pairs = [(match, text) for text in texts if (match := re.match(r"\s*(\d+) (\d+)\s*\n", text))]
    assert len(pairs) > 600
    for match, text in pairs:
        assert parse_scores(text) == (float(match[1]), float(match[2]))


@needs_reviews
def test_chateval_gives_pairs_only_for_two_assistants() -> None:
    def texts(tree: object) -> Iterator[str]:
        if isinstance(tree, dict):
            if isinstance(tree.get("evaluation"), str):
                yield tree["evaluation"]
            for branch in tree.values():
                yield from texts(branch)
        elif isinstance(tree, list):
            for branch in tree:
                yield from texts(branch)

    read = {}
    for path in (REVIEWS / "evaluation_evidence_chateval").glob("*.json"):
        read[path.stem] = [parse_scores(text) for text in texts(json.loads(path.read_text(encoding="utf-8")))]
    assert read.pop("two_assistant_scores_readme_example") == [(8.0, 9.0), (8.0, 8.0)]
    assert sum(map(len, read.values())) > 1000
    assert {pair for pairs in read.values() for pair in pairs} == {None}


@pytest.mark.parametrize(
    "verdict",
    [
        "Score of the Assistant 1: 10\nScore of the Assistant 2: 4",
        "Score of the Assistant 1: 10/10\nScore of the Assistant 2: 4/10\n\n",
        "Score of the Assistant 1: 10 out of 10.\r\nScore of the Assistant 2: 4 out of 10.\r\n",
        "**Score of the Assistant 1:** 10\n**Score of the Assistant 2:** 4",
        "**Score of the Assistant 1: 10**/10\n**Score of the Assistant 2: 4**/10",
        "Score of the Assistant 1: **10**\nScore of the Assistant 2: **4**",
        "The score of Assistant 1 is 10 and the score of Assistant 2 is 4.",
        "Score of the Assistant 1：10\nScore of the Assistant 2：4",
        "**Score of the Assistant 1:**\n10\n**Score of the Assistant 2:**\n4",
        "Scores: Assistant 1: 10, Assistant 2: 4",
        "Scores:\nAssistant 1: 10 (correct)\nAssistant 2: 4 (wrong step)\n\nAssistant 1 performed better.",
        "1. Assistant 1: 10/10\n2. Assistant 2: 4/10",
        "- Assistant 1: 10 – clear\n- Assistant 2: 4 – wrong",
        "Assistant 1: 10\nAssistant 2: 4",
        "Assistant 2: 4\nAssistant 1: 10",
        "Assistant 1's score: 10 points\nAssistant 2's score: 4 points",
        "Assistant 1 = 10; Assistant 2 = 4",
        "| Assistant | Score |\n|---|---|\n| Assistant 1 | 10 |\n| Assistant 2 | 4 |",
        "Assistant 1:\nClear.\nOverall score: 10/10\n\nAssistant 2:\nVague.\nOverall score: 4/10\n\nBoth were polite.",
        "(10, 4)",
        "Output: (10, 4)",
        "The output tuple is (10, 4). Assistant 1 performed better.",
        "The tuple for the scores of Assistant 1 and Assistant 2 is (10, 4), as said.",
        "```python\nscores = (10, 4)\n```",
        "Scores: 10, 4",
        "Here are the scores:\n\n10 4",
        "I would give Assistant 1 a score of 10 and Assistant 2 a score of 4.",
        "I would give Assistant 1 a score of 10 due to its care, and Assistant 2 a score of 4 for the mistake.",
        "I would give Assistant 2 a score of 4, while Assistant 1 receives a score of 10.",
        "I would rate Assistant 1's submission as a 10 out of 10, and Assistant 2's submission as a 4 out of 10.",
        "I would give a score of 10 to Assistant 1 and a score of 4 to Assistant 2.",
        "The first assistant receives a score of 10, the second assistant a score of 4.",
        "My scores for Assistant 1 and Assistant 2 are 10 and 4, respectively.",
        '```json\n{"assistant_1": 10, "assistant_2": 4}\n```',
        '{\n  "assistant_1": 10,\n  "assistant_2": 4\n}',
    ],
)
def test_a_verdict_is_read_alone_and_after_a_derivation_full_of_numbers(verdict: str) -> None:
    assert parse_scores(verdict) == (10.0, 4.0)
    assert parse_scores(DERIVATION + verdict) == (10.0, 4.0)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("9 8.5", (9, 8.5)),
        ("9 8.5\n", (9, 8.5)),
        ("\n\n 7 6\n\nExplanation:\nAssistant 1 used (10, 4).", (7, 6)),
        ("8 7\nScore of the Assistant 1: 1\nScore of the Assistant 2: 1", (8, 7)),
        ("8/10 7.5/10", (8, 7.5)),
        ("8, 7", (8, 7)),
        ("(8,7)", (8, 7)),
        ("[8, 7]", (8, 7)),
        ("**8 7**", (8, 7)),
        ("`8 7`", (8, 7)),
        ("```\n8 7\n```", (8, 7)),
        ("8\n7", (8, 7)),
        ("8 and 7.", (8, 7)),
        ("0 10", (0, 10)),
        ("8\t7\x0b", (8, 7)),
        ('{"assistant_1": 8, "assistant_2": 7.5}', (8, 7.5)),
        ('{"explanation": "(1, 2) and Assistant 1: 3", "assistant_1": 8, "assistant_2": 7.5}', (8, 7.5)),
        (r'{"explanation": "it says \"assistant_1\": 1, \"x", "assistant_1": 8, "assistant_2": 7}', (8, 7)),
        ('{"assistant_2": "7/10", "assistant_1": "8"}', (8, 7)),
        ('Verdict: {"scores": {"assistant_1": 8, "assistant_2": 7}}', (8, 7)),
        ("Both Assistant 1 and Assistant 2 are right. I will give them both a score of 4 out of 10.", (4, 4)),
        ("Therefore, I will give both Assistant 1 and Assistant 2 a score of 10.", (10, 10)),
    ],
)
def test_other_forms(text: str, pair: tuple[float, float]) -> None:
    assert parse_scores(text) == pair


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        # Scores that an answer holds and the judge repeats are not the judge's.
        ('It says "Score of the Assistant 2: 10".\nScore of the Assistant 1: 3\nScore of the Assistant 2: 8', (3, 8)),
        ("> Score of the Assistant 1: 10\n> Score of the Assistant 2: 1\nIt begs.", None),
        ('"I give Assistant 1 a score of 10 and Assistant 2 a score of 1", it says.', None),
        (
            "It contains\nScore of the Assistant 1: 10\nScore of the Assistant 2: 1\nwhich I ignore.\n"
            "Score of the Assistant 1: 3\nScore of the Assistant 2: 8",
            (3, 8),
        ),
        # … and stay so when the verdict itself was cut off.
        (
            "It contains\nScore of the Assistant 1: 10\nScore of the Assistant 2: 1\nwhich I ignore.\n"
            "Score of the Assistant 1: 3\nScore of the Ass",
            None,
        ),
        ("Assistant 1: 10\nAssistant 2: 8\nare their results.\n\nScores:\nAssistant 1: 2", None),
        # Results of a sum are not scores where the judge then gives scores.
        (
            "Assistant 1: 10\nAssistant 2: 8\n\nI would give Assistant 1 a score of 2 and Assistant 2 a score of 9.",
            (2, 9),
        ),
        ("Assistant 1: 10\nAssistant 2: 8\n\nScores:\nAssistant 1: 2\nAssistant 2: 9", (2, 9)),
        ("Assistant 1: 8\nAssistant 2: 7\n\nExplanation of the scores:\nBoth would reach a score of 10.", (8, 7)),
    ],
)
def test_the_judges_own_scores_hold(text: str, pair: tuple[float, float] | None) -> None:
    assert parse_scores(text) == pair


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n",
        "8",
        "8/10",
        "error",
        "9 8 7",
        "NaN NaN",
        "-1 -1",
        "11 9",
        "1,000 2",
        "10 apples and 4 pears",
        "Assistant 1: 8",
        "The score of Assistant 1: 8",
        "Score of the Assistant 1: 8\nScore of the Assist",
        "Score of the Assistant 1: 8\nScore of the Assistant 2:",
        "Score of the Assistant 1: 8/10\nScore of the Assistant 2: 7/",
        "Score of the Assistant 1: ...\nScore of the Assistant 2: ...",
        "Score of the Assistant 1: -3\nScore of the Assistant 2: 4",
        "Score of the Assistant 1: 85\nScore of the Assistant 2: 90",
        "Score of the Assistant 1: 85/100\nScore of the Assistant 2: 90/100",
        "Assistant 1: 5/5\nAssistant 2: 4/5",
        "Assistant 1:\nHelpfulness: 4/5\n\nAssistant 2:\nHelpfulness: 5/5\n\nOutput: 2",
        "Assistant 1: 8, 8\nAssistant 2: 7, 7",
        "Assistant 1: x = 6\nAssistant 2: x = 10",
        "Assistant 1: 10 units\nAssistant 2: 8 units",
        "Assistant 1: 10 - 2 = 8\nAssistant 2: 7 - 1 = 6",
        "The endpoints are\n(2, 2)\n(10, 4)",
        "The length from (2, 2) to (10, 4) is 8.",
        "Assistant 1 says that the point is (10, 4).",
        "Assistant 1 could have received a score of 9 and Assistant 2 could have received a score of 8.",
        "Assistant 1 is better than Assistant 2, with a score of 9.",
        "1. First\n2. Second",
        '{"assistant_1": 8, "assistant_2": 7',
        '{"assistant_1": 8, "assistant_2": null}',
        '{"explanation": "Score of the Assistant 1: 8\\nScore of the Assistant 2: 7, and then',
        '{"explanation": "I give Assistant 1 a score of 8 and Assistant 2 a score of 7."}',
        DERIVATION,
    ],
)
def test_no_pair_is_made_up(text: str) -> None:
    assert parse_scores(text) is None


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "assistant 1 ",
            "Score of the Assistant 1: ",
            "Assistant 1: 8 ",
            "Assistant 1, (((",
            "give assistant 1 a a a ",
        ),
        *("both ", "scores 1 and 2 ", "the final overall score ", "(10, 4) ", "1", "1 ", "1.", "8/10 ", "- ", "1. "),
        *('"', "“", "`", "```", "**", "_", "| ", "[(", "{", " ", "\x0b", "> ", '"assistant_1": 8, '),
    ],
)
def test_time_grows_with_the_text_and_no_faster(unit: str) -> None:
    def seconds(length: int) -> float:
        """The least of three: the collector of cycles may run within one, over all that other tests have left."""
        text = (unit * length)[:length]
        took = []
        for _ in range(3):
            start = time.process_time()
            parse_scores(text)
            took.append(time.process_time() - start)
        return min(took)

    # Ten times the text in at most thirty times the time (a square would be a hundred); the constant absorbs the clock.
    assert seconds(100_000) <= 30 * seconds(10_000) + 0.2


def test_in_range_and_combine() -> None:
    assert in_range((1, 10))
    assert not in_range(None)
    assert not in_range((0, 5))
    assert not in_range((5, 10.5))
    assert not in_range((float("nan"), 5))
    assert combine((9, 5), (8, 6.5)) == (8.5, 5.75)
    for broken in (None, (0, 5), (5, 11)):
        assert combine((9, 5), broken) is None
        assert combine(broken, (9, 5)) is None


def test_hard_is_a_gap_of_at_least_tau() -> None:
    assert is_hard(8, 7, 1.0)
    assert not is_hard(8, 7.5, 1.0)
    assert not is_hard(7, 8, 1.0)
    assert is_hard(7, 8, -1.0)


def test_relative_quality() -> None:
    assert relative_quality([], [], seed=1) is None
    assert relative_quality([8, 8], [4, 6], seed=1) == RelativeQuality(0.625, 0.5, 0.75, 2)
    same = relative_quality([5] * 10, [4] * 10, seed=1)
    assert same == RelativeQuality(0.8, 0.8, 0.8, 10)
    with pytest.raises(ValueError, match="2 reference scores for 1 "):
        relative_quality([8, 8], [4], seed=1)
    with pytest.raises(ValueError, match="not positive"):
        relative_quality([0.0], [4], seed=1)


def test_relative_quality_is_deterministic_and_covers() -> None:
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for trial in range(100):
        teacher = rng.uniform(6, 10, 60)
        student = teacher * rng.uniform(0.5, 1.1, 60)
        quality = relative_quality(teacher.tolist(), student.tolist(), seed=trial)
        assert quality is not None
        assert quality == relative_quality(teacher.tolist(), student.tolist(), seed=trial)
        covered += quality.low <= 0.8 <= quality.high
        widths.append(quality.high - quality.low)
    assert 88 <= covered <= 100
    assert 0.05 < np.mean(widths) < 0.15
    teacher, student = rng.uniform(6, 10, 30), rng.uniform(3, 9, 30)
    assert relative_quality(teacher, student, seed=1) != relative_quality(teacher, student, seed=2)


def test_many_rows_are_resampled_by_their_scores_to_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    teacher, student = rng.integers(6, 11, 20_000).astype(float), rng.integers(1, 11, 20_000) / 2
    by_scores = relative_quality(teacher, student, seed=3)
    monkeypatch.setattr(statistics, "MANY_ROWS", 10**9)
    by_rows = relative_quality(teacher, student, seed=3)
    assert by_scores is not None
    assert by_rows is not None
    assert by_scores != by_rows, "two ways, or there is nothing to compare"
    width = by_rows.high - by_rows.low
    assert by_scores.ratio == by_rows.ratio
    assert abs(by_scores.low - by_rows.low) < 0.1 * width
    assert abs(by_scores.high - by_rows.high) < 0.1 * width
