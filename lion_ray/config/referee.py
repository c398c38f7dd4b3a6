"""The configuration of the judge: its prompt, the orders it is asked in, and the canaries that detect its drift."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lion_ray.config.plugins import JudgeConfig, PairwiseJudgeConfig
from lion_ray.config.section import Mode, Section, operational


class RefereeConfig(Section):
    """The judge of teacher against student (paper, section 3.2)."""

    endpoint: str = "default"
    """The name of the endpoint that judges."""
    mode: Mode = operational("live")
    """live calls, or batch: the endpoint's Batch API, cheaper, within a day."""
    replicas: int = operational(1, ge=1)
    """Referee actors, which make the prompts and read the verdicts; more than one pays off for millions of rows."""
    prompt: str = "explain"
    """The template: explain (reasons, then scores), scores (two numbers only, for small judges), or a .yaml file."""
    judge: JudgeConfig = PairwiseJudgeConfig()
    """How it reaches a verdict: pairwise (two scores, in both orders), or your own class."""
    temperature: float = Field(0.2, ge=0, le=2)
    """Sampling temperature."""
    max_tokens: int = Field(512, ge=1)
    """The longest verdict, in the judge's tokens."""
    parse_retries: int = Field(2, ge=0)
    """Retries of a verdict without readable scores before its row is quarantined."""
    second_order: Literal["always", "near_threshold"] = "always"
    """Judge the Cache Pool in both orders, or in the second only if the first is near tau; held-out: always both."""
    second_order_margin: float = Field(1.0, ge=0)
    """near_threshold: ask the second order if the first one's score difference is at most this far from tau."""
    weighted: bool = False
    """Weight each possible score by the judge's probability of it; needs an endpoint with log-probabilities."""
    canaries: str | None = operational(None)
    """Canary pairs that detect judge drift: a .jsonl file with instruction, good and poor; null: the built-in ones."""
    canary_pairs: int = operational(8, ge=0)
    """How many canary pairs are judged again, in both orders, in every iteration; 0: none, so drift is not detected."""
