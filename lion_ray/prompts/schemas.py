"""The JSON schemas of the replies to templates, for endpoints that enforce one."""

from __future__ import annotations

from typing import Any

_SCORE = {"type": "number", "minimum": 1, "maximum": 10}
REFEREE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"assistant_1": _SCORE, "assistant_2": _SCORE},
    "required": ["assistant_1", "assistant_2"],
    "additionalProperties": False,
}
"""Two scores; `score_parser` parses replies in this schema."""
REFEREE_EXPLAIN_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "assistant_1": _SCORE, "assistant_2": _SCORE},
    "required": ["explanation", "assistant_1", "assistant_2"],
    "additionalProperties": False,
}
"""Two scores after their explanation, so that the scores follow from the reasons."""
RUBRIC_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "criteria": {
            "type": "array",
            "minItems": 1,
            "maxItems": 12,
            "items": {
                "type": "object",
                "properties": {
                    "criterion": {"type": "string"},
                    "points": {"type": "integer", "minimum": 1, "maximum": 5},
                },
                "required": ["criterion", "points"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["criteria"],
    "additionalProperties": False,
}
"""Weighted yes/no criteria (`discrimination.rubric`)."""
CHECKS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "answers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "answer": {"type": "integer"},
                    "met": {"type": "array", "items": {"type": "boolean"}},
                },
                "required": ["answer", "met"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["answers"],
    "additionalProperties": False,
}
"""For each answer, which criteria it meets, in the criteria's order."""
SCHEMAS: dict[str, dict[str, dict[str, Any]]] = {
    "referee": {"scores": REFEREE_SCHEMA, "explain": REFEREE_EXPLAIN_SCHEMA},
    "rubricator": {"criteria": RUBRIC_SCHEMA},
    "verifier": {"checks": CHECKS_SCHEMA},
}
"""By kind of template, the schemas that it may name."""
