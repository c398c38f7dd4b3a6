"""Estimate tokens, dollars and time of calls from the pool's real lengths: expected and worst case.

Invariants:
- Lengths of instructions are measured on the pool: with the student's tokenizer if it is on this machine, else at four
  characters per token. Lengths of answers are unknown in advance: `EXPECTED` is assumed, and the worst case is the
  role's own limit.
- It knows prices and limits, and sends nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lion_ray.config import EndpointConfig, RunConfig
from lion_ray.gateway.ledger import cost
from lion_ray.prompts.messages import empty_length, is_file, load_template

CHARACTERS_PER_TOKEN = 4
FRAME_TOKENS = {"teacher": 60, "referee": 200, "generator": 180, "rubricator": 280, "verifier": 220}
"""Approximate tokens that the built-in templates add to a call."""
EXPECTED = {"teacher": 160, "referee": 150, "generator": 40, "student": 160, "rubricator": 250, "verifier": 250}
"""Approximate tokens of an answer: gpt-3.5-turbo's to Alpaca's instructions, a verdict with reasons, an instruction."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens in the pool's instructions."""

    rows: int
    mean: float
    median: float
    longest: int


@dataclass(frozen=True, slots=True)
class Calls:
    """A stage's calls to one endpoint. Tokens are totals over all calls."""

    calls: int
    prompt: int
    """Expected: measured instructions, usual answers."""
    prompt_worst: int
    """Worst case: every judged answer has its maximum length."""
    completion: int
    completion_worst: int
    usd: float | None
    """None if the endpoint has no prices."""
    usd_worst: float | None
    seconds: float | None
    """At the endpoint's configured limits; None if none is configured."""


def usual_answer(config: RunConfig, role: str) -> int:
    """Tokens of a usual answer of the teacher or the student."""
    limit: int = getattr(config, role).max_tokens
    return min(EXPECTED[role], limit)


def frame_tokens(config: RunConfig, role: str, base_dir: Path) -> int:
    """Approximate tokens that a role's template adds to a call; measured for a user's template.

    Raises:
        ConfigError: the template cannot be used.
    """
    section = getattr(config, role)
    names = (section.hard_prompt, section.easy_prompt) if role == "generator" else (section.prompt,)
    found = [
        empty_length(load_template(name, role, base_dir)) // CHARACTERS_PER_TOKEN
        if is_file(name)
        else FRAME_TOKENS[role]
        for name in names
    ]
    return sum(found) // len(found)


def measure(texts: Iterable[Sequence[str]], model: str, base_dir: Path) -> Lengths:
    """Token lengths of `texts`, which come in batches that fit in memory."""
    counts = _tokens(texts, model, base_dir)
    if not counts:
        return Lengths(0, 0.0, 0.0, 0)
    return Lengths(len(counts), statistics.fmean(counts), statistics.median(counts), max(counts))


def _tokens(texts: Iterable[Sequence[str]], model: str, base_dir: Path) -> list[int]:
    from lion_ray.models.resolve import local_model

    folder = local_model(model, base_dir=base_dir)
    file = None if folder is None else Path(folder) / "tokenizer.json"
    if file is None or not file.is_file():
        return [max(1, round(len(text) / CHARACTERS_PER_TOKEN)) for batch in texts for text in batch]
    from tokenizers import Tokenizer  # counts a million rows in seconds, without torch or transformers

    tokenizer = Tokenizer.from_file(str(file))
    return [len(encoding.ids) for batch in texts for encoding in tokenizer.encode_batch(list(batch))]


def calls(
    config: RunConfig, base_dir: Path, role: str, count: int, instruction: float, answers: float | None = None
) -> Calls:
    """Estimate `count` calls of a role; `instruction` is the mean number of tokens of an instruction.

    `answers`: tokens of both answers in a referee's prompt, if known.
    """
    section = getattr(config, role)
    endpoint = config.endpoints[section.endpoint]
    prompt = prompt_worst = instruction + frame_tokens(config, role, base_dir)
    worst = section.max_tokens if role != "generator" else _child_limit(config, instruction)
    usual = min(EXPECTED[role], worst)
    if answers is not None:
        prompt, prompt_worst = prompt + answers, prompt_worst + answers
    elif role == "referee":
        teacher, student = config.teacher.max_tokens, config.student.max_tokens
        prompt += usual_answer(config, "teacher") + usual_answer(config, "student")
        prompt_worst += teacher + student
    elif role == "rubricator":
        prompt += usual_answer(config, "teacher")
        prompt_worst += config.teacher.max_tokens
    elif role == "verifier" and (rounds := config.on_policy) is not None:
        longest = rounds.max_tokens or config.student.max_tokens
        prompt += EXPECTED["rubricator"] + rounds.samples * min(EXPECTED["student"], longest)
        prompt_worst += config.rubricator.max_tokens + rounds.samples * longest
    prompts, prompts_worst, completions, completions_worst = (
        round(count * each) for each in (prompt, prompt_worst, usual, worst)
    )
    batch = section.mode == "batch"
    prices = endpoint.prices
    return Calls(
        count,
        prompts,
        prompts_worst,
        completions,
        completions_worst,
        usd=None if prices is None else cost(prices, prompts, 0, completions, batch=batch),
        usd_worst=None if prices is None else cost(prices, prompts_worst, 0, completions_worst, batch=batch),
        seconds=None if batch else _seconds(endpoint, count, prompts, completions),
    )


def _child_limit(config: RunConfig, instruction: float) -> int:
    # A word is about 1.3 tokens.
    return max(config.generator.min_tokens, round(config.generator.tokens_per_word * instruction / 1.3))


def _seconds(endpoint: EndpointConfig, count: int, prompt: int, completion: int) -> float | None:
    limits = endpoint.limits
    per_minute = (
        (count, limits.requests_per_minute),
        (prompt + completion, limits.tokens_per_minute),
        (prompt, limits.input_tokens_per_minute),
        (completion, limits.output_tokens_per_minute),
    )
    times = [60 * amount / (limit * limits.share) for amount, limit in per_minute if limit is not None]
    return max(times) if times else None
