"""The judge: how it is asked, how sure it must be, and how it is watched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lion_ray.config.plugins import JudgeConfig, PairwiseJudgeConfig
from lion_ray.config.section import Mode, Section, operational


class RefereeConfig(Section):
    """The judge of teacher against student (paper, section 3.2)."""

    endpoint: str = "default"
    """Which of `endpoints` judges."""
    mode: Mode = operational("live")
    """live calls, or the endpoint's Batch API: cheaper, within a day."""
    prompt: str = "explain"
    """The template: explain (reasons, then scores), scores (two numbers only, for small judges), or a .yaml file."""
    judge: JudgeConfig = PairwiseJudgeConfig()
    """How it comes to a verdict: pairwise (two scores, in both orders), or a class of your own."""
    temperature: float = Field(0.2, ge=0, le=2)
    """Sampling temperature."""
    max_tokens: int = Field(512, ge=1)
    """The longest verdict, in the judge's tokens."""
    parse_retries: int = Field(2, ge=0)
    """How often a verdict without readable scores is asked again before its row is quarantined."""
    second_order: Literal["always", "near_threshold"] = "always"
    """Judge the Cache Pool in both orders, or a row's second order only where the first is near tau; held-out: both."""
    second_order_margin: float = Field(1.0, ge=0)
    """near_threshold: the second order is asked where the first one's score difference is within so much of tau."""
    weighted: bool = False
    """A score is the mean over the numbers that the judge might have said; needs an endpoint with log-probabilities."""
    canaries: str | None = operational(None)
    """Decided pairs to watch the judge with: a .jsonl file of instruction, good and poor; null: the built-in ones."""
    canary_pairs: int = operational(8, ge=0)
    """How many of them are judged anew, in both orders, in every iteration; 0: none, and drift goes unseen."""
