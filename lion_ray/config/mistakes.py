"""Explains the errors that pydantic reports about a configuration: which key is at fault, and what to do.

Invariant: a value that could be a secret is not repeated in a message.

This module knows neither files nor overrides: `config.file` says where a key was set.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lion_ray.config import Section
from lion_ray.config.keys import KeyPath, choices, describe, is_list, section_of, variants_of, wanted

_LISTED_KEYS = 12


def mistakes(error: ValidationError, model: type[Section], data: Any) -> Iterator[tuple[KeyPath, str]]:
    """The key and the message of each validation error of `data`, as pydantic orders them."""
    for mistake in error.errors(include_url=False):
        path, section, info = _locate(mistake["loc"], model)
        if mistake["type"] in ("union_tag_invalid", "union_tag_not_found"):
            yield path, _unknown_variant(_value_at(data, path), info)
        elif mistake["type"] == "extra_forbidden":
            yield path, _unknown(path[-1], section)
        elif mistake["type"] == "missing":
            yield path, f"missing; {_missing(info)}"
        elif mistake["type"] == "value_error":
            text = str(mistake["ctx"]["error"])
            # A validator of several sections begins its message with the key at fault.
            named = re.match(r"([\w.]+): ", text)
            if named and (not path or named[1] in section.model_fields):
                yield (*path, *named[1].split(".")), text[named.end() :]
            else:
                yield path, text
        elif mistake["type"] == "too_short":
            yield path, "empty; add at least one"
        elif info is None:
            yield path, f"given {given(mistake['input'])}; wanted a section of keys"
        elif path[-1] == "api_key_env":
            yield path, f"wanted {wanted(info)}"
        else:
            # A union reports an error for each of its members; they all become the same line.
            value = _value_at(data, path)
            yield path, f"given {given(value)}; wanted {wanted(info)}{_nearest_choice(value, info)}"


def _locate(location: tuple[int | str, ...], section: type[Section]) -> tuple[KeyPath, type[Section], FieldInfo | None]:
    """The key that a validator's location in a `section` refers to, the section that holds it, and its field (None if
    unknown)."""
    path: KeyPath = ()
    info: FieldInfo | None = None
    parts = iter(str(part) for part in location)
    for part in parts:
        path = (*path, part)
        info = section.model_fields.get(part) or next(
            (field for field in section.model_fields.values() if field.alias == part), None
        )
        if info is None:
            return path, section, None
        if variants := variants_of(info.annotation):
            number = next(parts, None) if is_list(info.annotation) else None
            path = path if number is None else (*path, number)
            tag = next(parts, None)
            if tag not in variants:
                break
            section, info = variants[tag], None
            continue
        below, named = section_of(info.annotation)
        if below is None:
            break  # what follows names a union's member or an item of a list
        if named:
            name = next(parts, None)
            if name is None:
                break
            path = (*path, name)
            info = None
        section = below
    return path, section, info


def _value_at(data: Any, path: KeyPath) -> Any:
    for name in path:
        data = data[int(name)] if isinstance(data, list) else data[name]
    return data


def _unknown(name: str, section: type[Section]) -> str:
    names = list(section.model_fields)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    elsewhere = [doc.key for doc in describe() if doc.key.split(".")[-1] == name]
    if elsewhere:
        return f"unknown key here; there is {' and '.join(elsewhere)}"
    if len(names) <= _LISTED_KEYS:
        return f"unknown key; the keys here are {', '.join(names)}"
    return "unknown key; remove it"


def _unknown_variant(value: Any, info: FieldInfo | None) -> str:
    """The mistake in a section that should be chosen by its `type`."""
    variants = variants_of(info.annotation) if info is not None else {}
    kinds = [tag for tag, section in variants.items() if "type" in section.model_fields]
    if not isinstance(value, dict):
        return f"given {given(value)}; wanted a section with a type, one of {', '.join(kinds)}"
    if "type" not in value:
        return f"type: missing; add it, one of {', '.join(kinds)}, or {' or '.join(set(variants) - set(kinds))}"
    kind = value["type"]
    near = difflib.get_close_matches(kind, kinds, n=1, cutoff=0.5) if isinstance(kind, str) else []
    nearest = f"; did you mean {near[0]}?" if near else ""
    return f"type: given {given(kind)}; wanted one of {', '.join(kinds)}{nearest}"


def _missing(info: FieldInfo | None) -> str:
    if info is None:
        return "add it"
    section, named = section_of(info.annotation)
    if section is None:
        return f"add it, {wanted(info)}: {info.description}"
    needed = [name for name, below in section.model_fields.items() if below.is_required()]
    inside = f"NAME: {{{', '.join(needed)}}}" if named else ", ".join(needed)
    return f"add this section with at least {inside}"


def given(value: Any) -> str:
    """A value as the user wrote it, shortened."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        shown = value if len(value) <= 40 else value[:37] + "..."
        return f"the text {json.dumps(shown, ensure_ascii=False)}"
    return "a list" if isinstance(value, list) else "a section"


def _nearest_choice(value: Any, info: FieldInfo) -> str:
    near = difflib.get_close_matches(value, choices(info.annotation), n=1, cutoff=0.5) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""
