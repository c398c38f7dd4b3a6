"""Interprets the failure of a whole batch: which calls caused it, or what else.

Source: the `errors` of OpenAI's batch object; lines count from 1. This module only reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lion_ray.gateway.wire import REJECTED, Refused, Rejected, shorten

if TYPE_CHECKING:
    from openai.types import Batch

_QUOTA = {"billing_hard_limit_reached", "billing_not_active", "insufficient_quota"}
_NO_ROOM = {"token_limit_exceeded", "too_many_tasks"}


@dataclass(frozen=True)
class Verdict:
    """The cause is one of `rejected`, `refused` and `no_room`; with none of them another batch may succeed."""

    detail: str
    rejected: dict[str, Rejected] = field(default_factory=dict)
    """Calls whose lines the endpoint named as faulty."""
    refused: Refused | None = None
    """The endpoint would refuse any batch."""
    no_room: bool = False
    """The account's queue at the endpoint is full: wait, or send a smaller batch."""


def verdict_of(batch: Batch, keys: Sequence[str]) -> Verdict:
    """Why a batch of these keys, in the order of its lines, is `failed`."""
    errors = (batch.errors.data if batch.errors else None) or []
    detail = "; ".join(f"{error.code}: {error.message}" for error in errors[:3]) or "the endpoint does not say why"
    detail = shorten(f"batch {batch.id}: {detail}")
    codes = {str(error.code) for error in errors}
    if codes & _QUOTA:
        return Verdict(detail, refused=Refused("quota", detail))
    if "model_not_found" in codes:
        # Even if it names lines: all of them request the same model.
        return Verdict(detail, refused=Refused("model", detail))
    if codes & _NO_ROOM or any("enqueued token limit" in (error.message or "").lower() for error in errors):
        return Verdict(detail, no_room=True)
    named = {error.line: error for error in errors if error.line is not None and 1 <= error.line <= len(keys)}
    rejected = {
        keys[line - 1]: Rejected(REJECTED, shorten(f"line {line} of a batch: {error.code}: {error.message}"))
        for line, error in named.items()
    }
    return Verdict(detail, rejected=rejected)
