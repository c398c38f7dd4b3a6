"""The configuration of on-policy training: the student learns from its own answers, each with a reward.

Invariant: what rewards an answer never measures the student (`RunConfig._independent_judge`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from lion_ray.config.plugins import by_kind
from lion_ray.config.section import Mode, Section, operational


class RubricatorConfig(Section):
    """The writer of rubrics: yes/no criteria for an instruction, from the teacher's answer to it."""

    endpoint: str = "default"
    """The name of the endpoint that writes rubrics."""
    mode: Mode = operational("live")
    """live calls, or batch: the endpoint's Batch API, cheaper, within a day."""
    prompt: str = "criteria"
    """The template: criteria, or a .yaml file."""
    temperature: float = Field(0.2, ge=0, le=2)
    """Sampling temperature."""
    max_tokens: int = Field(1024, ge=1)
    """The longest rubric, in the endpoint's tokens."""
    parse_retries: int = Field(2, ge=0)
    """Retries of a reply without a readable rubric before its instruction is left out."""


class VerifierConfig(Section):
    """The judge of the student's own answers: which criteria of a rubric each of them meets."""

    endpoint: str = "default"
    """The name of the endpoint that checks answers; its model may not also be the referee's (allow_same_judge)."""
    mode: Mode = operational("live")
    """live calls, or batch: the endpoint's Batch API, cheaper, within a day."""
    prompt: str = "check"
    """The template: check, or a .yaml file."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature."""
    max_tokens: int = Field(512, ge=1)
    """The longest reply, in the endpoint's tokens."""
    parse_retries: int = Field(2, ge=0)
    """Retries of a reply that does not decide every criterion before its instruction is left out of the round."""


class RubricRewardConfig(Section):
    """Rubrics (ROPD, arXiv 2605.07396): the share of the points of the criteria that an answer meets."""

    type: Literal["rubric"] = "rubric"
    """Criteria by `rubricator`, checked by `verifier`."""
    leave_out: Literal["untelling", "fulfilled"] = "untelling"
    """Criteria that later rounds do not ask again: those that all or none of the answers met, or only those all met."""


class DiscriminatorRewardConfig(Section):
    """A discriminator (GAD, arXiv 2511.10643): a copy of the student with a scalar head that learns, round by round, to
    tell the teacher's answers from the student's. It needs no calls, and memory for another student."""

    type: Literal["discriminator"]
    """A discriminator that is trained along with the student."""
    learning_rate: float = Field(1e-6, gt=0)
    """AdamW's learning rate."""
    epochs: int = Field(1, ge=1)
    """Passes over a round's answers."""
    warmup_epochs: int = Field(2, ge=1)
    """Passes over the first round's answers, when it cannot tell anything yet."""
    batch: int = Field(8, ge=1)
    """Instructions in an optimizer step, each with the teacher's answer and all of the student's."""


RewardConfig = Annotated[
    Annotated[RubricRewardConfig, Tag("rubric")] | Annotated[DiscriminatorRewardConfig, Tag("discriminator")], by_kind
]
"""What rewards the student's answers."""


class OnPolicyConfig(Section):
    """Rounds after each imitation: the student answers, its answers are rewarded, and it learns from the rewards.

    A round samples `samples` answers to each of `prompts` instructions of the Train Pool, and takes `steps` optimizer
    steps on the clipped policy gradient with group-relative advantages. Each round is committed and can be resumed.
    """

    reward: RewardConfig = RubricRewardConfig()
    """What rewards an answer."""
    rounds: int = Field(4, ge=1)
    """Rounds after each imitation."""
    prompts: int = Field(32, ge=1)
    """Instructions in a round."""
    samples: int = Field(8, ge=2)
    """The student's answers to each of them."""
    temperature: float = Field(1.0, gt=0, le=2)
    """Sampling temperature of these answers; 1 samples from the student that is trained."""
    max_tokens: int | None = Field(None, ge=1)
    """The longest of these answers, in the student's tokens; null: student.max_tokens."""
    steps: int = Field(1, ge=1)
    """Optimizer steps in a round; with more than one, later steps learn from answers of the round's first student."""
    learning_rate: float = Field(1e-6, gt=0)
    """AdamW's learning rate in the rounds, constant."""
    clip: float = Field(0.2, gt=0, lt=1)
    """A token whose probability changed by more than this share since the round began no longer counts (PPO)."""
    importance_cap: float = Field(2.0, ge=1)
    """Upper limit of a token's weight for the difference between the trainer's and the engine's probability of it."""
    allow_same_judge: bool = False
    """Let the model that rewards answers also be the judge of the held-out answers, so that it measures itself."""
