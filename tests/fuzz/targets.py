"""All targets."""

from __future__ import annotations

from tests.fuzz import answers, checkpoints, files, journals, texts
from tests.fuzz.target import TARGETS, Target

__all__ = ["TARGETS", "Target", "answers", "checkpoints", "files", "journals", "texts"]
