"""Reads a configuration file and reports its mistakes.

Invariants:
- Every mistake is one line that names the file, the line (or the override), the key and what to do. Several mistakes
  are several lines of one `ConfigError`, in the file's order.
- A duplicate key, an unknown key and a value of the wrong type are errors, never guessed at. The only conversion is of
  a whole number to a number.
- A value that could be a secret is not repeated in a message (`mistakes`).

`config` defines the keys; this module only walks its models. It does not know what a run does.
"""

from __future__ import annotations

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

from lion_ray.config import EndpointConfig, RunConfig, Section
from lion_ray.config.keys import KeyDoc, KeyPath, describe, differences
from lion_ray.config.mistakes import given, mistakes
from lion_ray.core.errors import ConfigError, one_line

__all__ = ["KeyDoc", "LoadedConfig", "describe", "differences", "load_config", "load_values"]

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
        for path, what in mistakes(error, model, tree.data):
            tree.problem(path, what)
        raise tree.problems_as_error() from None


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
                raise ConfigError(f"override {key}: {outer} is {given(here)}, not a section")
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
            raise self.problems_as_error()

    def problems_as_error(self) -> ConfigError:
        return ConfigError("\n".join(dict.fromkeys(text for _, text in sorted(self.problems, key=lambda p: p[0]))))

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
