"""Properties of the score parser: whatever a judge writes, it answers with two scores of 0 to 10 or with none."""

from __future__ import annotations

import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lion_ray.discrimination.scores import parse_scores

settings.register_profile("quick", deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.load_profile("quick")

SCORES = st.integers(0, 100).map(lambda tenths: tenths / 10)
PIECES = st.sampled_from(
    (
        "Assistant 1", "Assistant 2", "assistant #1's", "score", "Scores:", "Rating", ": ", " = ", "8", "9.5", "10",
        "(8, 4)", "8 4", "8\n4", "I would give", "both", " a score of ", "\n", "\n\n", "> ", '"', "{", "}", "/10",
        '"assistant_1": 7',
        "| 8 | 4 |", "**", "100", "-3", "1e9", "NaN", "٣", "８", "\x00", "\x0b", "if", "and", ".", ", ",
    )
)  # fmt: skip
JUDGED = st.lists(PIECES | st.text(max_size=10), max_size=30).map("".join)


@given(st.text() | JUDGED)
def test_any_text_gives_two_scores_of_ten_or_none(text: str) -> None:
    found = parse_scores(text)
    if found is not None:
        assert len(found) == 2
        assert all(math.isfinite(score) and 0 <= score <= 10 for score in found)


@given(SCORES, SCORES, st.sampled_from((" ", ", ", "\n")))
def test_a_pair_alone_is_the_verdict(first: float, second: float, between: str) -> None:
    assert parse_scores(f"{first:g}{between}{second:g}") == (first, second)


@given(SCORES, SCORES, st.sampled_from(("Assistant {}: {}/10", "Score of Assistant {}: {}", "Assistant {} Score: {}")))
def test_labelled_scores_are_the_verdict(first: float, second: float, form: str) -> None:
    lines = [form.format(who, f"{score:g}") for who, score in ((1, first), (2, second))]
    assert parse_scores("Both are considered.\n\n" + "\n".join(lines)) == (first, second)


@given(SCORES, SCORES)
def test_a_number_is_never_made_up(first: float, second: float) -> None:
    """What stands in the text is all that can be a score."""
    text = f"Assistant 1 did well. Scores: ({first:g}, {second:g})"
    found = parse_scores(text)
    assert found in ((first, second), None)
