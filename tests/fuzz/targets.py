"""All targets."""

from __future__ import annotations

from tests.fuzz import answers, files, journals, texts
from tests.fuzz.target import TARGETS, Target

__all__ = ["TARGETS", "Target", "answers", "files", "journals", "texts"]
