"""Escapes chat templates for servers, so that no message can inject the model's control tokens.

Invariants:
- A server renders messages into one text and parses control tokens in it, so a text such as ``<|im_start|>`` in an
  instruction would begin a turn. The escaping template puts an invisible character (U+200B) after the first character
  of each such text in a message; the template's own control tokens stay. For training and engines `prompter` does the
  same with token ids (contract: one way to token ids).
- Otherwise the model's template treats messages as before.

Reads only the files in a model's folder; loads neither transformers nor vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BREAK = "\u200b"
"""Inserted into the text of a control token: invisible, and in no tokenizer's control tokens."""

_MARKER = re.compile(r"<\|.+\|?>|<(?:start|end)_of_\w+>|<\|?\w*turn\w*\|?>|<｜.+｜>")
"""Added tokens that mark turns and the like although their tokenizer does not mark them as special."""
_SPECIAL_KEY = re.compile(r"(?:bos|eos|pad|sep|cls|mask|unk|eot|eom|additional_special|extra_special)_tokens?")
_LISTS_ONLY = re.compile(r"for\s+\w+\s+in\s+\w+(?:\.content|\[['\"]content['\"]\])")


def escaping_template(model_dir: Path, template: str | None = None) -> str | None:
    """`template`, or the model's own, with code that first breaks the control tokens in every message.

    A message's content may be a text or a list of parts with a `text` each. Returns None if there is no template or no
    control token.
    """
    template = own_template(model_dir) if template is None else template
    tokens = control_tokens(model_dir)
    if template is None or not tokens:
        return None
    broken = "".join(f" | replace({_quoted(token)}, {_quoted(_broken(token))})" for token in tokens)
    parts = (
        "{% set safe.parts = [] %}{% for part in message['content'] %}"
        "{% if part is mapping and part['text'] is string %}"
        f"{{% set safe.parts = safe.parts + [dict(part, text=part['text']{broken})] %}}"
        "{% else %}{% set safe.parts = safe.parts + [part] %}{% endif %}{% endfor %}"
        "{% set safe.messages = safe.messages + [dict(message, content=safe.parts)] %}"
    )
    # In one line, so that nothing is printed before the model's own template.
    return (
        "{% set safe = namespace(messages=[], parts=[]) %}{% for message in messages %}"
        "{% if message['content'] is string %}"
        f"{{% set safe.messages = safe.messages + [dict(message, content=message['content']{broken})] %}}"
        f"{{% elif message['content'] is iterable %}}{parts}"
        "{% else %}{% set safe.messages = safe.messages + [message] %}{% endif %}{% endfor %}"
        "{% set messages = safe.messages %}" + template
    )


def takes_texts(template: str) -> bool:
    """Whether a template accepts text as a message's content; some (of vision models) accept only lists of parts."""
    return _LISTS_ONLY.search(template) is None or "is string" in template


def control_tokens(model_dir: Path) -> list[str]:
    """The texts that the tokenizer in a folder parses as control tokens, longest first."""
    found = {token for token in _named_tokens(model_dir) if len(token) > 1 and token.strip()}
    # Longest first: <|im_start|>assistant must be replaced before its prefix <|im_start|>.
    return sorted(found, key=lambda token: (-len(token), token))


def _named_tokens(model_dir: Path) -> Iterator[str]:
    configured = _read(model_dir / "tokenizer_config.json")
    listed = _read(model_dir / "tokenizer.json").get("added_tokens") or []
    listed = [*listed, *(configured.get("added_tokens_decoder") or {}).values()]
    for one in listed:
        text = one.get("content") if isinstance(one, dict) else None
        if isinstance(text, str) and (one.get("special") or _MARKER.fullmatch(text)):
            yield text
    for file in (configured, _read(model_dir / "special_tokens_map.json")):
        for key, value in file.items():
            if _SPECIAL_KEY.fullmatch(key):
                values = value if isinstance(value, list) else value.values() if _is_named(value) else [value]
                for one in values:
                    text = one.get("content") if isinstance(one, dict) else one
                    if isinstance(text, str):
                        yield text


def _is_named(value: Any) -> bool:
    """Whether a value maps names to tokens, instead of being one token with its settings."""
    return isinstance(value, dict) and "content" not in value


def own_template(model_dir: Path) -> str | None:
    """The chat template (Jinja) in a model's folder. Returns None if there is none."""
    try:
        return (model_dir / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _read(model_dir / name).get("chat_template")
        if isinstance(template, list):  # named templates
            named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # the server reports what is wrong with it
    return found if isinstance(found, dict) else {}


def _broken(token: str) -> str:
    return token[0] + BREAK + token[1:]


def _quoted(text: str) -> str:
    """A text as a Jinja string; Jinja supports Python's escapes, not all of JSON's."""
    return json.dumps(text, ensure_ascii=True).replace("\\/", "/")
