"""What each step of reading a verdict makes of a text: words, numbers and JSON, one at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lion_ray.discrimination.score_json import MOST_OBJECTS, NO_VERDICT, first_pair, pair_of_json
from lion_ray.discrimination.score_parser import parse_scores
from lion_ray.discrimination.score_words import on_another_scale, plain_text, usual_numbers, usual_words


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a<br>b<BR />c", "a\nb\nc"),
        ("８：４ ٣", "8:4 3"),
        ("（８／１０）．［１］｜２＝３％＃４－５，６；", "(8/10).[1]|2=3%#4-5,6;"),
        ("８٫٥،", "8.5,"),
        ("é 8", "é 8"),
    ],
)
def test_plain_digits_and_signs(text: str, plain: str) -> None:
    assert plain_text(text) == plain


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("on a scale of 5", True),
        ("on a scale of 10", False),
        ("on a scale of 1 to ten", False),
        ("on a Scale from One to FIVE", True),
        ("a five-point scale", True),
        ("a scale of 5, then 8/10", False),
        ("a scale of 5, then 8 out of 10", False),
        ("a scale of 10 and a scale of 100", True),
        ("满分5分", True),
        ("5分制", True),
        ("maximum score is 20", True),
        ("no scale", False),
    ],
)
def test_another_scale(text: str, other: bool) -> None:
    assert on_another_scale(text) is other


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("[[8]] and [[4.5]]", "8 and 4.5"),
        ("a: 8,5 b:4,5", "a: 8.5 b:4.5"),
        ("a: 8,50 b 4,5", "a: 8,50 b 4,5"),
        ("Assistant 1: Eight, a score of TEN.", "Assistant 1: 8, a score of 10."),
        ("a: zero", "a: 0"),
        ("a: one two three", "a: one two three"),
        ("eight", "eight"),
    ],
)
def test_usual_numbers(text: str, usual: str) -> None:
    assert usual_numbers(text) == usual


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("$\\boxed{8, 4}$", "8, 4"),
        ("八分, 零分", "8, 0"),
        ("满分10分，8", "，8"),
        ("10点満点中 8", " 8"),
        ("Response A: 8, Response C: 3 (八分)", "Response A: 8, Response C: 3 (8分)"),
        ("Response A / answer (b) / model #1 / 助手二", "Assistant 1 / answer (b) / Assistant 1 / Assistant 2"),
        ("AI Assistant [B]", "Assistant 2"),
        ("The first AI response and the 2nd answer", "Assistant 1 and Assistant 2"),
        ("the second response", "Assistant 2"),
        ("第一个助手, 第2位助手", "Assistant 1, Assistant 2"),
        ("A: 8\nB: 4", "Assistant 1: 8\nAssistant 2: 4"),
        ("Score A: 8, (B) = 4", "Assistant 1: 8, Assistant 2 = 4"),
        ("#1: 8, Score 2: 4", "Assistant 1: 8, Assistant 2: 4"),
        ("8 sur 10, 4 von 10", "8/10, 4/10"),
        ("Assistant 1 (8/10)", "Assistant 1: 8/10"),
        ("8 Punkte, 4点", "8, 4"),
        ("Punktzahl: 8", " score: 8"),
        ("Punktzahl von Assistent 1: 8", " score of Assistant 1: 8"),
        ("助手1的得分：8", "Assistant 1 score：8"),
        ("Assistent 1 erhält 8", "Assistant 1: 8"),
        ("助手1得8分", "Assistant 1: 8"),
        ("Assistant 1: eight", "Assistant 1: 8"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_usual_words(text: str, usual: str) -> None:
    assert usual_words(text) == usual


NONE = NO_VERDICT


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("8 4", None),
        ("x {}", None),
        ("{", None),
        ("{}", NONE),
        ("[8, 4]", (8, 4)),
        (" \t\r\n,;[8, 4] rest", (8, 4)),
        ("[8, 4,]", (8, 4)),
        ('{"a": 8, "b": 4,}', (8, 4)),
        ('{"a": 8}\n, {"b": 4};', (8, 4)),
        ('{"a": 8} x {"b": 4}', NONE),
        ("[8]", NONE),
        ("[8, 4, 2]", NONE),
        ('["8/10", "4 points"]', (8, 4)),
        ('["8,5", "4.25 out of 10"]', (8.5, 4.25)),
        ('["8 ", true]', NONE),
        ("[1000, 4]", NONE),
        ("[999, -4]", (999, -4)),
        ('{"one": 8, "two": 4}', (8, 4)),
        ('{"first": 8, "second": 4}', (8, 4)),
        ('{"1": 8, "2": 4}', (8, 4)),
        ('{"b": 4, "a": 8}', (8, 4)),
        ('{"The Score of the AI Assistant 1\'s": 8, "--assistant-2--": 4}', (8, 4)),
        ('{"assistant_1": 8, "assistant_2": 4, "assistant_3": 1}', NONE),
        ('{"assistant_1": 8, "score_1": 8, "assistant_2": 4}', (8, 4)),
        ('{"assistant_1": 8, "score_1": 7, "assistant_2": 4}', NONE),
        ('{"assistant_1": 8, "score_1": 7}', NONE),
        ('{"assistant_1": 8, "scores": [8, 4]}', (8, 4)),
        ('{"scores": [8, 4]}', (8, 4)),
        ('{"tuple": [8, 4]}', (8, 4)),
        ('{"output": [8, 4]}', (8, 4)),
        ('{"verdict": [8, 4]}', (8, 4)),
        ('{"final_score": [8, 4], "points": [8, 4]}', (8, 4)),
        ('{"final_score": [8, 4], "points": [8, 5]}', NONE),
        ('{"numbers": [8, 4]}', (8, 4)),
        ('{"numbers": [8, 4], "others": [1, 2]}', NONE),
        ('{"deep": {"er": {"a": 8, "b": 4}}}', (8, 4)),
        ('{"a": {"score": 8}, "b": {"rating": "4/10"}}', (8, 4)),
        ('{"a": {"score": 8, "rating": 7}, "b": 4}', NONE),
        ('{"a": {"score": 8, "rating": 8}, "b": 4}', (8, 4)),
        ('[{"a": 8}, {"b": 4}]', (8, 4)),
        ('[{"a": 8}, {"a": 4}]', NONE),
        ('[{"score": 8}, {"score": 4}]', (8, 4)),
        ('[{"id": 1, "score": 8}, {"id": 2, "score": 4}]', (8, 4)),
        ('[{"id": 0, "score": 8}, {"id": 1, "score": 4}]', (8, 4)),
        ('[{"id": "2", "score": 4}, {"id": "1", "score": 8}]', (8, 4)),
        ('[{"id": 1, "score": 4}, {"id": "0", "score": 8}]', (8, 4)),
        ('[{"id": 1, "score": 8}, {"id": 1, "score": 4}]', NONE),
        ('[{"id": 1, "score": 8}, {"score": 4}]', NONE),
        ('[{"id": 1, "score": 8}, {"id": "x", "score": 4}]', NONE),
        ('[{"id": true, "score": 8}, {"id": true, "score": 4}]', (8, 4)),
        ('[{"answer": "a long text", "score": 8}, {"answer": "another", "score": 4}]', (8, 4)),
        ('[{"response": "Assistant B", "score": 4}, {"response": "Assistant A", "score": 8}]', (8, 4)),
        ('{"a": 8, "b": 4, "scale": 10}', (8, 4)),
        ('{"a": 8, "b": 4, "scale": "1-10"}', (8, 4)),
        ('{"a": 8, "b": 4, "scale": 5}', NONE),
        ('{"a": 8, "b": 4, "scale": "1-5"}', NONE),
        ('{"a": 8, "b": 4, "scale": true}', (8, 4)),
        ('{"a": 8, "b": 4, "scale": null}', (8, 4)),
        ('{"a": 8, "b": 4, "deep": [{"max": 100}]}', NONE),
        ('{"a": 8, "a": 8, "b": 4}', NONE),
        ('{"a": NaN, "b": 4}', NONE),
        ('{"a": 8, "b": Infinity}', NONE),
        ('{"a": 8, "b": "4\u0001"}', NONE),
        ('{"x": "\u0001", "a": 8, "b": 4}', (8, 4)),
        ('{"' + "a" * 200 + '": 8, "b": 4}', NONE),
        ("[" * 100_000, None),
    ],
)  # fmt: skip
def test_scores_of_json(text: str, found: Any) -> None:
    assert pair_of_json(text) == found


def test_json_that_is_nested_too_deeply_has_no_scores() -> None:
    deep = '{"a": ' * 900 + "8" + "}" * 900
    assert pair_of_json(f"[{deep}, {deep}]") in (NO_VERDICT, None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ('So: {"a": 8, "b": 4}.', (8, 4)),
        ('So: [{"a": 8}, {"b": 4}].', (8, 4)),
        ('{"a": 8, "b": 4} and {"a": 8, "b": 4}', (8, 4)),
        ('{"a": 8, "b": 4} and {"a": 8, "b": 5}', None),
        ('{"x": 1} and {"a": 8, "b": 4}', (8, 4)),
        ('{"broken and {"a": 8, "b": 4}', (8, 4)),
        ('{"x": {"a": 8, "b": 4}}', (8, 4)),
        # Nothing is read after what must not be read.
        ('{"a": 8, "a": 9} {"a": 8, "b": 4}', None),
        ("[8, 4]", None),
        ('{"a": 8, "b": 4} ' + '{"x": 1} ' * (MOST_OBJECTS - 1), (8, 4)),
        ('{"a": 8, "b": 4} ' + '{"x": 1} ' * MOST_OBJECTS, None),
    ],
)
def test_scores_of_json_within_a_text(text: str, found: Any) -> None:
    assert first_pair(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # A pair alone, with whatever stands around it.
        ("'8 4'", (8, 4)),
        ("Final scores: 8 4.", (8, 4)),
        ("8\n4\nSo.", (8, 4)),
        ("8 points, 4 points", (8, 4)),
        ("8 4 2", None),
        # JSON, and what only begins like it.
        ("{'a': 8, 'b': 4}", (8, 4)),
        ('{\\"a\\": 8, \\"b\\": 4}', (8, 4)),
        ('{"a": 8}', None),
        ('{"a": 8}\nAssistant 1: 8\nAssistant 2: 4', None),
        ('[8]\nAssistant 1: 8\nAssistant 2: 4', (8, 4)),
        ('[Note] It is fine.\nScore of Assistant 1: 8\nScore of Assistant 2: 4', (8, 4)),
        ('{"assistant_1": 8, "assistant_2": 4, "x": oops}', (8, 4)),
        ('{"assistant_1": 8, "assistant_2": 4', None),
        ('{"assistant_1": 12, "assistant_2": 4}', None),
        ('So.\n"assistant_1": 8,\n"assistant_2": 4,\nThat is it.', (8, 4)),
        ('So.\n"assistant_1": 8\n"assistant_2": 4\n}', (8, 4)),
        ('So.\n"assistant_1": 8,\n"assistant_2": 4\n}', (8, 4)),
        # Labels, sections, headings, and pairs of their own.
        ("Assistant 1:\nScore: 8\nAssistant 2:\nScore: 4", (8, 4)),
        ("Assistant 1 is fine.\nOverall score: 8/10\nAssistant 2 is not.\nOverall rating: 4/10", (8, 4)),
        ("Score: 8\nScore: 4", None),
        ("Score of Assistant 1:\n8\nScore of Assistant 2:\n4.", (8, 4)),
        ("Assistant 1's score:\n8\nAssistant 2's score:\n4", (8, 4)),
        ("Scores of the assistants:\n8 4", (8, 4)),
        ("Scores of the assistants:\n(8, 4)\nSo it is.", (8, 4)),
        ("Assistant 1 and 2 were judged.\n8 4", (8, 4)),
        ("Assistant 1 and 2 were judged.\n8 4\nSo it is.", None),
        ("Assistant 1 and 2 were judged.\n[8, 4]\nSo it is.", (8, 4)),
        ("Assistant 1 and 2 name points.\n(8, 4)", None),
        ("Assistant 1 and 2 name points.\nScores: (8, 4)", (8, 4)),
        ("Nobody was judged.\n8 4", None),
        ("The scores are (8, 4) at last.", (8, 4)),
        ("Assistant 1 score: 8, Assistant 2 score: 4", (8, 4)),
        ("So Assistant 1: 8, Assistant 2: 4", None),
        ("So the scores: Assistant 1: 8, Assistant 2: 4", (8, 4)),
        ("My verdict: Assistant 1: 8, Assistant 2: 4", (8, 4)),
        ("Assistant 1 score: excellent\nAssistant 2 score: 4", None),
        ("Assistant 1 score: 8x\nAssistant 2 score: 4\nAssistant 1: 8\nAssistant 2: 4", (8, 4)),
        ("Assistant 1 score: 80\nAssistant 2 score: 4", None),
        # The last one counts, unless it was cut off.
        ("Assistant 1 score: 3\nAssistant 2 score: 9\nAssistant 1 score: 8\nAssistant 2 score: 4", (8, 4)),
        ("Assistant 1 score: 3\nAssistant 2 score: 9\nAssistant 1 score: 8", None),
        ("Assistant 1 score: 8\nAssistant 2 score: 4\nAssistant 1 score: 8", (8, 4)),
        ("Assistant 1 score: 8\nAssistant 2 score: 9\nAssistant 2 score: 4", (8, 4)),
        ("Assistant 1: 3\nAssistant 2: 9\nScores:\nAssistant 1: 8", None),
        ("Assistant 1 score: 3\nAssistant 2 score: 9\nHere are my scores:\nAssistant 1: 8\nAssistant 2: 4", (8, 4)),
        ("Reasons for the scores:\nAssistant 1: 8\nAssistant 2: 4", (8, 4)),
        # Running text.
        ("I give both a score of 7.", (7, 7)),
        ("I rate Assistant 1 an 8/10 and Assistant 2 a 4/10.", (8, 4)),
        ("I give a score of 8 to Assistant 1 and a score of 4 for Assistant 2.", (8, 4)),
        ("Assistant 2 gets a score of 4, and Assistant 1 a score of 8.", (8, 4)),
        ("My scores are 8 and 4 respectively.", (8, 4)),
        ("I gave both a score of 5. Then Assistant 1 gets a score of 8 and Assistant 2 gets a score of 4.", (8, 4)),
        ('It says "I give Assistant 1 a score of 8 and Assistant 2 a score of 4".', None),
        ("I give Assistant 1 a score of `8` and Assistant 2 a score of `4`.", (8, 4)),
        ("I give Assistant 1 a score of `8x` and Assistant 2 a score of `4`.", None),
        # Markdown.
        ("# Scores\n\n- **Assistant 1**: 8\n- **Assistant 2**: 4", (8, 4)),
        ("| Assistant 1 | 8 |\n| Assistant 2 | 4 |", (8, 4)),
        ("| Model | Score |\n| --- | --- |\n| Assistant 1 | 8 |\n| Assistant 2 | 4 |", (8, 4)),
        ("[Assistant 1]: 8\n[Assistant 2]: 4", (8, 4)),
        ("The first assistant: 8\nThe second assistant: 4", (8, 4)),
        ("1. Assistant 1: 8\n2. Assistant 2: 4", (8, 4)),
        ("$8 4$", (8, 4)),
        ("> Assistant 1 score: 8\n> Assistant 2 score: 4", None),
        ("Assistant 1’s score: 8\nAssistant 2’s score: 4", (8, 4)),
        # Quotations that may be the verdict, and those that are not.
        ("```\nAssistant 1 score: 8\nAssistant 2 score: 4\n```", (8, 4)),
        ("Assistant 1 score: 8\nAssistant 2 score: 4\n```\nAssistant 1 score: 8\nAssistant 2 score: 4\n```", (8, 4)),
        ("Assistant 1 score: 8\nAssistant 2 score: 4\n```\nAssistant 1 score: 1\nAssistant 2 score: 9\n```", None),
        (
            "Assistant 1 score: 1\nAssistant 2 score: 9\n```\nAssistant 1 score: 3\nAssistant 2 score: 7\n```\n"
            "Assistant 1 score: 8\nAssistant 2 score: 4",
            (8, 4),
        ),
        ("```Assistant 1 score: 8```\nAssistant 2 score: 4", None),
        ("Assistant 1 score: 8\n\n    Assistant 1 score: 1\n    Assistant 2 score: 9\nAssistant 2 score: 4", None),
        ("Assistant 1 score: 8\n    Assistant 2 score: 4", (8, 4)),
        ("<quote>\nAssistant 1 score: 8\nAssistant 2 score: 4\n</quote>", (8, 4)),
        ("It ends with:\nAssistant 1 score: 8\nAssistant 2 score: 4", None),
        ("It ends with:\n\nAssistant 1 score: 1\nAssistant 2 score: 9\n\nAssistant 1 score: 8\nAssistant 2 score: "
         "4", (8, 4)),
        ("It ends with:\nx\n\nAssistant 1 score: 8\nAssistant 2 score: 4", None),
        ("It ends with these scores:\nAssistant 1 score: 8\nAssistant 2 score: 4", (8, 4)),
        ("It says “Assistant 1 score: 8\nAssistant 2 score: 4”.", None),
        ("It says “Assistant 1 score: 1”.\nAssistant 1 score: 8\nAssistant 2 score: 4", (8, 4)),
        # Another scale, other words.
        ("On a scale of 5:\nAssistant 1: 8\nAssistant 2: 4", None),
        ("On a scale of 5, or so:\nAssistant 1: 8/10\nAssistant 2: 4/10", (8, 4)),
        ("Response A: 8\nResponse B: 4", (8, 4)),
        ("Assistant 1: 8,5\nAssistant 2: 4,5", (8.5, 4.5)),
        ("Assistant 1: [[8]]\nAssistant 2: [[4]]", (8, 4)),
        ("Assistant 1 score: eight\nAssistant 2 score: four", (8, 4)),
        ("Assistant 1 score: 10\nAssistant 2 score: 0", (10, 0)),
        ("Assistant 1 score: 10.1\nAssistant 2 score: 0", None),
        ("<think>1 9</think>8 4", (8, 4)),
    ],
)  # fmt: skip
def test_what_is_read_of_a_verdict(text: str, found: Any) -> None:
    assert parse_scores(text) == found


def test_a_verdict_of_any_length_is_read() -> None:
    long = "Both are good. " * 1000
    assert parse_scores(long + "\nScores:\n" + json.dumps({"a": 1}) + "\nAssistant 1: 8\nAssistant 2: 4") == (8, 4)
