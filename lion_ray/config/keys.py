"""Walks the configuration's keys: describes each, and finds the keys in which two runs differ.

Invariants:
- Nothing is listed by hand: names, types, ranges, defaults and descriptions come from `config`'s models.
- Every section is walked, including optional ones and those under names that the user chooses.

This module knows nothing of files and validation errors; `config.file` does.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import Tag
from pydantic.fields import FieldInfo

from lion_ray.config import RunConfig, Section
from lion_ray.config.section import AUTO, DURATION

KeyPath = tuple[str, ...]

_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "text of letters, digits, '.', '_' and '-' that starts with a letter or a digit",
    r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$": "text of letters, digits, spaces, '.', '_' and '-'",
    r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$": "package.module:name",
    DURATION: "a duration such as 30s, 10min or 1.5h",
}
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class KeyDoc(NamedTuple):
    """The description of one configuration key."""

    key: str
    """Dotted; `NAME` stands for a name that the user chooses."""
    type: str
    default: str
    """As YAML; `required` if there is none."""
    description: str


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose difference makes two dumped configurations (`RunConfig.model_dump`) different runs.

    Operational fields may differ, and so may a `by_machine` field that is `auto` in one dump. A key that one dump lacks
    (an older version's) counts as its default.
    """
    return list(_differences(RunConfig, a, b, ()))


def describe() -> list[KeyDoc]:
    """Describes every configuration key, in the models' order."""
    return list(_describe(RunConfig, ()))


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a field holds (None if it holds none), and whether it holds several by name."""
    if isinstance(annotation, type) and not get_args(annotation):
        return (annotation, False) if issubclass(annotation, Section) else (None, False)
    if get_origin(annotation) is dict:
        return section_of(get_args(annotation)[1])[0], True
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            section, named = section_of(member)
            if section is not None:
                return section, named
    return None, False


def variants_of(annotation: Any) -> dict[str, type[Section]]:
    """The sections among which a tag (`type:`) chooses for a field or a list's item, by tag; empty for other fields."""
    if is_list(annotation):
        annotation = get_args(annotation)[0]
        if get_origin(annotation) is not Annotated:
            return {}
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return {}
    found = {}
    for member in get_args(annotation):
        tag = next((one.tag for one in get_args(member)[1:] if isinstance(one, Tag)), None)
        if tag is not None:
            found[tag] = get_args(member)[0]
    return found


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of an enumeration; empty for other types."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def wanted(info: FieldInfo) -> str:
    """A field's accepted type and range, as text."""
    return _type_words(info.annotation, _bounds(info))


def _bounds(info: FieldInfo) -> str:
    pattern = next((item.pattern for item in info.metadata if getattr(item, "pattern", None)), None)
    if pattern is not None:
        return _PATTERNS.get(pattern, f"text that matches {pattern}")
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [f"{words[name]} {getattr(item, name):g}" for item in info.metadata for name in words if hasattr(item, name)]
    return " and ".join(said)


def _type_words(annotation: Any, bounds: str) -> str:
    if found := choices(annotation):
        return str(found[0]) if len(found) == 1 else f"one of {', '.join(map(str, found))}"
    if not is_list(annotation) and (variants := variants_of(annotation)):
        return f"a section with {_tags(variants)}"
    if get_origin(annotation) in (Union, types.UnionType):
        members = [_type_words(member, bounds) for member in get_args(annotation) if member is not type(None)]
        return " or ".join([*members, "null"] if type(None) in get_args(annotation) else members)
    if variants := variants_of(annotation):
        return f"a list of sections, each with {_tags(variants)}"
    section, named = section_of(annotation)
    if section is not None:
        return "sections, each under a name of your choice" if named else "a section"
    if get_origin(annotation) is tuple:
        return f"a list of {_type_words(get_args(annotation)[0], '')}"
    if get_origin(annotation) is dict:
        return "a section of any keys"
    if annotation is str:
        return bounds or _WORDS[str]
    return f"{_WORDS[annotation]} {bounds}".rstrip()


def _tags(variants: Mapping[str, type[Section]]) -> str:
    typed = [tag for tag, section in variants.items() if "type" in section.model_fields]
    others = [f"an {tag}" for tag in variants if tag not in typed]
    return f"a type ({', '.join(typed)}) or {' or '.join(others)}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    if isinstance(default, Section):
        return str(getattr(default, "type", ""))
    return default if isinstance(default, str) else json.dumps(default)


def _describe(section: type[Section], path: KeyPath) -> Iterator[KeyDoc]:
    for field, info in section.model_fields.items():
        name = info.alias or field
        here = (*path, name)
        yield KeyDoc(".".join(here), wanted(info), _default(info), info.description or "")
        below, named = section_of(info.annotation)
        if below is not None:
            yield from _describe(below, (*here, "NAME") if named else here)
        for tag, variant in variants_of(info.annotation).items():
            yield from _describe(variant, (*path, f"{name}[{tag}]" if is_list(info.annotation) else f"{name}({tag})"))


def _differences(section: type[Section], a: Mapping[str, Any], b: Mapping[str, Any], path: KeyPath) -> Iterator[str]:
    for name, info in section.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("operational"):
            continue
        here = (*path, name)
        below, named = section_of(info.annotation)
        one, other = (_plain_value(dump[name]) if name in dump else _plain_default(info) for dump in (a, b))
        if below is None or not isinstance(one, dict) or not isinstance(other, dict):
            if one != other and not (isinstance(extra, dict) and extra.get("by_machine") and AUTO in (one, other)):
                yield ".".join(here)
        elif not named:
            yield from _differences(below, one, other, here)
        else:
            for key in dict.fromkeys([*one, *other]):
                if key in one and key in other:
                    yield from _differences(below, one[key], other[key], (*here, key))
                else:
                    yield ".".join((*here, key))
    for name in dict.fromkeys([*a, *b]):
        if name not in section.model_fields:
            yield ".".join((*path, name))


def _plain_default(info: FieldInfo) -> Any:
    return None if info.is_required() else _plain_value(info.get_default(call_default_factory=True))


def _plain_value(value: Any) -> Any:
    """A value as it is after a round trip through JSON or YAML."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def reference() -> str:
    """The reference of all keys as a Markdown page, with a table per section."""
    lines = [
        "# Configuration",
        "",
        "All keys of a run's YAML file, generated by `python -m lion_ray.config`. A section such as",
        "`judge(import_path)`, or `filters[length]` in a list, is one of several, chosen by `type:` or `import_path:`.",
        "`NAME` stands for a name that you choose. On the command line, write a key as `section.key=value`.",
    ]
    sections: dict[str, list[KeyDoc]] = {}
    for doc in describe():
        sections.setdefault(doc.key.rpartition(".")[0], []).append(doc)
    for section, docs in sections.items():
        title = f"`{section}`" if section else "Top level"
        lines += ["", f"## {title}", "", "| key | takes | default | |", "| --- | --- | --- | --- |"]
        for doc in docs:
            default = f"`{doc.default}`" if doc.default else ""
            cells = (f"`{doc.key.rpartition('.')[2]}`", doc.type, default, doc.description)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
