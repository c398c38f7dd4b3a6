"""Reads a configuration file and reports its mistakes.

Invariants:
- Every mistake is one line that names the file, the line (or the override), the key and what to do. Several mistakes
  are several lines of one `ConfigError`, in the file's order.
- A duplicate key, an unknown key and a value of the wrong type are errors, never guessed at. The only conversion is of
  a whole number to a number.
- A value that could be a secret is not repeated in a message.

`config` defines the keys; this module only walks its models. It does not know what a run does.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lion_ray.config import EndpointConfig, RunConfig, Section
from lion_ray.config.keys import (
    KeyDoc,
    KeyPath,
    choices,
    describe,
    differences,
    is_list,
    section_of,
    variants_of,
    wanted,
)
from lion_ray.core.errors import ConfigError, one_line

__all__ = ["KeyDoc", "LoadedConfig", "describe", "differences", "load_config", "load_values"]

_LISTED_KEYS = 12
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and its origin."""

    config: RunConfig
    base_dir: Path
    """The config file's folder: data files, templates and model folders are found relative to it."""
    source: str
    """The config file's path as given."""

    def endpoint(self, name: str) -> EndpointConfig:
        """The endpoint of this name. Raises ConfigError if there is none."""
        if name not in self.config.endpoints:
            known = ", ".join(self.config.endpoints)
            raise ConfigError(f"{self.source}: no endpoint is called '{name}' (there is {known})")
        return self.config.endpoints[name]


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load the YAML file `path`, changed by `overrides` such as ``imitation.epochs=2``.

    Raises ConfigError, one line per mistake.
    """
    tree = _Tree(str(path))
    tree.read(Path(path))
    return _loaded(tree, overrides, Path(path).resolve().parent)


def load_values(values: Mapping[str, Any], base_dir: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Like `load_config`, from a program's plain values; the files that they name are relative to `base_dir`."""
    tree = _Tree("the configuration", json.loads(json.dumps(values, default=str)))
    return _loaded(tree, overrides, base_dir.absolute())


def _loaded(tree: _Tree, overrides: Sequence[str], base_dir: Path) -> LoadedConfig:
    for override in overrides:
        tree.override(override)
    tree.refuse_endless_numbers()
    tree.stop_at_problems()
    config = _validated(tree, RunConfig)
    for name, endpoint in config.endpoints.items():
        # A key pasted instead of the variable's name would be shown wherever the name is shown.
        if endpoint.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", endpoint.api_key_env):
            key = ("endpoints", name, "api_key_env")
            tree.problem(key, "wanted the name of an environment variable that holds the key, never the key itself")
    tree.stop_at_problems()
    return LoadedConfig(config, base_dir, tree.source)


def load_section(path: Path, model: type[S]) -> S:
    """Load a YAML file of one section, such as an evaluation suite. Raises ConfigError, one line per mistake."""
    tree = _Tree(str(path))
    tree.read(path)
    tree.refuse_endless_numbers()
    tree.stop_at_problems()
    return _validated(tree, model)


def _validated(tree: _Tree, model: type[S]) -> S:
    try:
        # Through JSON, where strict validation still accepts a list as a tuple.
        return model.model_validate_json(json.dumps(tree.data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(tree, error, model))) from None


# ---- the file -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Resolves null, booleans and numbers. Dates stay text, and 2e-5 is a number, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$",
        re.I,
    ),
    list("-+0123456789."),
)


MOST_NODES = 100_000
"""The most values in a file. A few lines of nested aliases can expand to a billion."""


@dataclass
class _Tree:
    """A file's plain data, and the line or override that set each key."""

    source: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    checked: set[int] = field(default_factory=set)
    nodes: int = 0

    def read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ConfigError(f"{self.source}: no such file; give the path of a .yaml configuration") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.source}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            raise ConfigError(f"{self.source}: cannot be read: {error.strerror}") from None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is None:
                raise ConfigError(f"{self.source}: the file is empty; start from configs/demo.yaml")
            value = self._plain(loader, node, (), self.lines, ())
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.source}{_yaml_problem(error)}") from None
        except RecursionError:
            raise ConfigError(f"{self.source}: nested too deeply; correct it") from None
        if not isinstance(value, dict):
            raise ConfigError(
                f"{self.source}:{node.start_mark.line + 1}: wanted keys with values, such as run_name: demo"
            )
        self.data = value

    def override(self, text: str) -> None:
        """Apply one ``key.sub=value``; the value is YAML."""
        key, equals, written = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals:
            raise ConfigError(f"override {text!r}: wanted key=value, such as imitation.epochs=2")
        if not all(path):
            raise ConfigError(f"override {key}: wanted key=value, such as imitation.epochs=2")
        if not written.strip():
            raise ConfigError(f"override {key}: the value is empty; write {key}=null or {key}='\"\"'")
        try:
            loader = _Loader(written)
            node = loader.get_single_node()
            aside = _Tree(f"override {key}")
            value = None if node is None else aside._plain(loader, node, path, {}, ())
            self.problems += aside.problems
        except yaml.YAMLError as error:
            raise ConfigError(f"override {key}: not YAML{_yaml_problem(error, line=False)}") from None
        except RecursionError:
            raise ConfigError(f"override {key}: nested too deeply; correct it") from None
        here = self.data
        for depth, name in enumerate(path[:-1], start=1):
            if here.get(name) is None:  # absent, or null as optional sections are
                here[name] = {}
                self.overridden[path[:depth]] = key
            here = here[name]
            if not isinstance(here, dict):
                outer = ".".join(path[:depth])
                raise ConfigError(f"override {key}: {outer} is {_given(here)}, not a section")
        here[path[-1]] = value
        self.lines = {known: line for known, line in self.lines.items() if known[: len(path)] != path}
        self.overridden[path] = key

    def refuse_endless_numbers(self) -> None:
        """Report each .nan, .inf and number too large for a float, at any key: no setting accepts one."""
        # With a stack instead of recursion, because a file may be nested deeply.
        left: list[tuple[KeyPath, Any]] = [((), self.data)]
        while left:
            path, value = left.pop()
            if isinstance(value, dict):
                left += [((*path, str(key)), below) for key, below in value.items()]
            elif isinstance(value, list):
                left += [((*path, str(number)), below) for number, below in enumerate(value)]
            elif isinstance(value, float) and not math.isfinite(value):
                self.problem(path, f"given the number {value}; wanted a finite number")
            elif isinstance(value, int) and abs(value) > sys.float_info.max:
                self.problem(path, f"given a number of {len(hex(value)) * 1.2:.0f} digits; wanted a smaller one")

    def where(self, path: KeyPath) -> tuple[int, str]:
        """Where `path`, or else its nearest section, was set: (sort order, description)."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return 1_000_000, f"{self.source}, override {self.overridden[path[:length]]}"
            if path[:length] in self.lines:
                line = self.lines[path[:length]]
                return line, f"{self.source}:{line}"
        return 0, self.source

    def problem(self, path: KeyPath, what: str) -> None:
        order, where = self.where(path)
        key = "" if not path or self.overridden.get(path) == ".".join(path) else f"{'.'.join(path)}: "
        self.problems.append((order, f"{where}: {key}{what}"))

    def stop_at_problems(self) -> None:
        if self.problems:
            raise ConfigError("\n".join(dict.fromkeys(text for _, text in sorted(self.problems, key=lambda p: p[0]))))

    def _plain(
        self, loader: _Loader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], inside: tuple[int, ...]
    ) -> Any:
        """A node as dicts, lists and scalars; adds each key's line to `lines`."""
        if id(node) in inside:
            raise ConfigError(f"{self.source}:{node.start_mark.line + 1}: an anchor contains its own alias; remove it")
        inside = (*inside, id(node))
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise ConfigError(f"{self.source}: more than {MOST_NODES:,} values, including aliases; write fewer")
        if isinstance(node, yaml.SequenceNode):
            result = []
            for number, item in enumerate(node.value):
                lines[(*path, str(number))] = item.start_mark.line + 1
                result.append(self._plain(loader, item, (*path, str(number)), lines, inside))
            return result
        if not isinstance(node, yaml.MappingNode):
            try:
                return loader.construct_object(node)
            except ValueError as error:
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"{self.source}:{line}: {'.'.join(path)}: cannot be read ({one_line(error)})"
                ) from None
        seen: dict[str, int] = {}
        # An alias visits its anchored section again, with the merged keys: these are not duplicates.
        for key_node, _ in node.value if id(node) not in self.checked else ():
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self.source}:{line}: a key must be text")
            if key_node.value in seen:
                first = seen[key_node.value]
                text = f"{'.'.join((*path, key_node.value))}: written twice, first in line {first}; keep one"
                self.problems.append((line, f"{self.source}:{line}: {text}"))
            seen[key_node.value] = line
        self.checked.add(id(node))
        loader.flatten_mapping(node)  # `<<: *anchor`
        plain = {}
        for key_node, value_node in node.value:
            below = (*path, key_node.value)
            lines[below] = key_node.start_mark.line + 1
            plain[key_node.value] = self._plain(loader, value_node, below, lines, inside)
        return plain


def _yaml_problem(error: yaml.YAMLError, *, line: bool = True) -> str:
    """An error of the YAML parser as `:LINE: what`."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    hint = "; indent with spaces, not tabs" if "\\t" in problem else ""
    if "mapping values are not allowed" in problem:
        hint = "; a text that holds ': ' needs quotes"
    return (f":{mark.line + 1}" if mark is not None and line else "") + f": {problem}{hint}".replace("\n", " ")


# ---- mistakes -------------------------------------------------------------------------------------------------------


def _explain(tree: _Tree, error: ValidationError, model: type[Section]) -> list[str]:
    """The validation errors, one line each, in the file's order."""
    for mistake in error.errors(include_url=False):
        path, section, info = _locate(mistake["loc"], model)
        if mistake["type"] in ("union_tag_invalid", "union_tag_not_found"):
            tree.problem(path, _unknown_variant(_value_at(tree.data, path), info))
        elif mistake["type"] == "extra_forbidden":
            tree.problem(path, _unknown(path[-1], section))
        elif mistake["type"] == "missing":
            tree.problem(path, f"missing; {_missing(info)}")
        elif mistake["type"] == "value_error":
            text = str(mistake["ctx"]["error"])
            # A validator of several sections begins its message with the key at fault.
            named = re.match(r"([\w.]+): ", text)
            if named and (not path or named[1] in section.model_fields):
                tree.problem((*path, *named[1].split(".")), text[named.end() :])
            else:
                tree.problem(path, text)
        elif mistake["type"] == "too_short":
            tree.problem(path, "empty; add at least one")
        elif info is None:
            tree.problem(path, f"given {_given(mistake['input'])}; wanted a section of keys")
        elif path[-1] == "api_key_env":
            tree.problem(path, f"wanted {wanted(info)}")
        else:
            # A union reports an error for each of its members; they all become the same line.
            value = _value_at(tree.data, path)
            tree.problem(path, f"given {_given(value)}; wanted {wanted(info)}{_nearest_choice(value, info)}")
    return list(dict.fromkeys(text for _, text in sorted(tree.problems, key=lambda p: p[0])))


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


def _unknown_variant(given: Any, info: FieldInfo | None) -> str:
    """The mistake in a section that should be chosen by its `type`."""
    variants = variants_of(info.annotation) if info is not None else {}
    kinds = [tag for tag, section in variants.items() if "type" in section.model_fields]
    if not isinstance(given, dict):
        return f"given {_given(given)}; wanted a section with a type, one of {', '.join(kinds)}"
    if "type" not in given:
        return f"type: missing; add it, one of {', '.join(kinds)}, or {' or '.join(set(variants) - set(kinds))}"
    kind = given["type"]
    near = difflib.get_close_matches(kind, kinds, n=1, cutoff=0.5) if isinstance(kind, str) else []
    nearest = f"; did you mean {near[0]}?" if near else ""
    return f"type: given {_given(kind)}; wanted one of {', '.join(kinds)}{nearest}"


def _missing(info: FieldInfo | None) -> str:
    if info is None:
        return "add it"
    section, named = section_of(info.annotation)
    if section is None:
        return f"add it, {wanted(info)}: {info.description}"
    needed = [name for name, below in section.model_fields.items() if below.is_required()]
    inside = f"NAME: {{{', '.join(needed)}}}" if named else ", ".join(needed)
    return f"add this section with at least {inside}"


def _given(value: Any) -> str:
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
