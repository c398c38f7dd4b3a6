"""The base of all sections of the configuration."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

AUTO: Literal["auto"] = "auto"
NumberType = Literal["float32", "float16", "bfloat16"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""A number type, or `auto`: on a CPU the fastest one (see `models.machine`), on a GPU the field's own default."""
Precision = Literal["auto", "bf16", "fp32"]
AttentionKernel = Literal["auto", "flash_attn_3", "flash_attn", "varlen", "flex", "sdpa"]
Mode = Literal["live", "batch"]


DURATION = r"^[0-9]+(\.[0-9]+)?(s|min|h)$"


def seconds_of(duration: str) -> float:
    """The seconds in a text that matches `DURATION`, such as 30s, 10min or 1.5h."""
    number, unit = re.fullmatch(r"([0-9.]+)([a-z]+)", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


def operational(default: Any = ..., **constraints: Any) -> Any:
    """A field that may differ between the attempts of one run."""
    return Field(default, json_schema_extra={"operational": True}, **constraints)


def by_machine() -> Any:
    """A field whose default is `auto`, so that attempts on different machines still belong to one run."""
    return Field(AUTO, json_schema_extra={"by_machine": True})


def compiles(pattern: str | None) -> str | None:
    """Validates a field that holds a regular expression (Python's `re`). Raises ValueError if it does not compile."""
    if pattern is not None:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}; correct it") from None
    return pattern


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
