"""Turns instructions and answers into token ids, in training and in inference (contract: one way to token ids).

Invariants:
- The frame around an instruction is tokenized separately, so a prompt's ids are the same in training and inference, and
  the instruction cannot change the frame.
- Instructions and answers are data: a special token's text inside them (``<|im_end|>``, ``</s>``) becomes ordinary
  tokens, never the special one.
- An answer ends with the end token if and only if it is complete. For a chat model that is the token that its template
  puts after an assistant's turn, otherwise the tokenizer's end-of-sequence token.
- The chat template decides about the beginning-of-sequence token. Text templates begin with it if the tokenizer has one
  that differs from end-of-sequence: Gemma writes nonsense without it, and some converted tokenizers never add it.

This module knows tokenizers; it does not know models, lengths or labels.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lion_ray.core.errors import ConfigError, ModelError, first_line
from lion_ray.core.records import Message
from lion_ray.core.thoughts import closing_of
from lion_ray.models.chat_template import own_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{instruction}"
INSTRUCTION_FRAME = f"### Instruction:\n{SLOT}\n\n### Response:"
"""The frame of the paper's student, without a system text."""

# Private-use characters, which templates do not contain, trim, split or escape.
_USER = "\ue0f1u\ue0f2"
_ASSISTANT = "\ue0f1a\ue0f2"
# A fixed date for templates that print today's date (Llama 3.1 and later): a prompt must not change overnight.
_TODAY = datetime.date(2024, 7, 26)
# Thinking is turned off if the template supports it: training data and judged answers hold no thoughts.
_FIXED: dict[str, Any] = {
    "date_string": "26 Jul 2024",
    "strftime_now": _TODAY.strftime,
    "enable_thinking": False,
    "thinking": False,
}

_CHANGEABLE = re.compile(r"strftime_now|date_string|think|thought|reason|<\|channel", re.IGNORECASE)
"""Matches a template that these settings affect."""


class Prompter:
    """Token ids of prompts and answers, for one tokenizer and one prompt format.

    `prompt` is ``chat`` (the tokenizer's chat template), ``instruction`` (the paper's frame) or a path to a UTF-8
    ``.txt`` file, relative to `base_dir`, that holds ``{instruction}`` exactly once and is otherwise used unchanged.
    Raises ConfigError for any other prompt, ModelError for a tokenizer that does not support it.

    `end_id` ends a complete answer; `stop_token_ids` are the ids on which generation should stop (it is among them).
    """

    @classmethod
    def load(cls, model_dir: str | Path, prompt: str, base_dir: str | Path = ".") -> Prompter:
        """Load the tokenizer in folder `model_dir`. Raises ModelError if none can be loaded."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"no tokenizer can be loaded from {model_dir}: {first_line(error)}") from error
        return cls(tokenizer, prompt, base_dir)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, base_dir: str | Path = ".") -> None:
        self.tokenizer = tokenizer
        eos = tokenizer.eos_token_id
        if prompt == "chat":
            before, after, closing = _chat_frame(tokenizer)
            start: list[int] = []
        else:
            before, after, closing = *_text_frame(prompt, Path(base_dir)), ""
            start = [tokenizer.bos_token_id] if _begins(tokenizer) else []

        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        # Ordinary text may contain characters that are unknown to the tokenizer.
        special.discard(tokenizer.unk_token_id)

        end = next((i for i in self._encode(closing, split=False) if i in special), eos)
        if end is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so an answer could never end")
        self.end_id: int = end
        self.stop_token_ids: list[int] = [end] if eos is None or eos == end else [end, eos]

        self._special = special | {end}
        texts = {str(tokenizer.convert_ids_to_tokens(i)) for i in self._special}
        self._special_text = re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)))
        self._spaced = self._adds_leading_space()
        self._start = start
        self._chats = prompt == "chat"
        self._before = start + self._encode(before, split=False)
        self._after = self._continue(after, split=False)
        self._frames: dict[tuple[str, ...], list[list[int]]] = {}

    def prompt_ids(self, instruction: str, messages: Sequence[Message] = ()) -> list[int]:
        """The ids to generate from: frame, instruction, frame. `messages` is the whole conversation if it has more than
        one turn. Raises ModelError if the template cannot render it."""
        return self.conversation_ids(instruction, messages)[0]

    def conversation_ids(
        self, instruction: str, messages: Sequence[Message]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `prompt_ids`, and the span [start, end) of each answer of the assistant, with its end token."""
        if not messages:
            return self._before + self._data(instruction) + self._after, []
        frames = self._frame_ids(tuple(one["role"] for one in messages))
        ids = list(frames[0])
        spans = []
        for message, frame in zip(messages, frames[1:], strict=True):
            began = len(ids)
            ids += self._data(message["content"])
            if message["role"] == "assistant":
                ends = frame[:1] == [self.end_id]
                spans.append((began, len(ids) + ends))
            ids += frame
        return ids, spans

    def check(self, roles: Sequence[str]) -> None:
        """Raises ModelError if a conversation of these roles cannot be rendered."""
        self._frame_ids(tuple(roles))

    def _frame_ids(self, roles: tuple[str, ...]) -> list[list[int]]:
        """The ids before, between and after the messages of a conversation."""
        if roles not in self._frames:
            if not self._chats:
                raise ModelError("a text template supports a single turn; use `student.prompt: chat` for conversations")
            first, *others = _conversation_frame(self.tokenizer, roles)
            self._frames[roles] = [
                self._start + self._encode(first, split=False),
                *(self._continue(one, split=False) for one in others),
            ]
        return self._frames[roles]

    def completion_ids(self, text: str, *, complete: bool) -> list[int]:
        """The ids of an answer, with the end token if and only if it is complete."""
        return self._data(text) + ([self.end_id] if complete else [])

    def _data(self, text: str) -> list[int]:
        ids = self._continue(text, split=True)
        if self._special.isdisjoint(ids):
            return ids
        # The tokenizer does not support split_special_tokens: cut each special text after its first character.
        cuts = [0, *(match.start() + 1 for match in self._special_text.finditer(text)), len(text)]
        ids = [i for a, b in itertools.pairwise(cuts) for i in self._continue(text[a:b], split=True)]
        if not self._special.isdisjoint(ids):
            raise ModelError("the tokenizer cannot write a special token's text as ordinary tokens")
        return ids

    def _encode(self, text: str, *, split: bool) -> list[int]:
        # `split` is passed every time because fast tokenizers remember the last value.
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"])

    def _continue(self, text: str, *, split: bool) -> list[int]:
        """Encode text that follows other text.

        SentencePiece-like tokenizers (Llama 2) put a space before their input. With a newline before the text, the
        space goes before the newline, and the newline's ids can be removed.
        """
        if self._spaced and text:
            lead = self._encode("\n", split=split)
            ids = self._encode("\n" + text, split=split)
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        return self._encode(text, split=split)

    def _adds_leading_space(self) -> bool:
        lead, both = self._encode("\n", split=False), self._encode("\na", split=False)
        return both[: len(lead)] == lead and both[len(lead) :] != self._encode("a", split=False)


def _chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """The template's texts before and after a user's message, and after an assistant's message."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError("the model has no chat template: use `student.prompt: instruction`, or a template file")
    user = {"role": "user", "content": _USER}
    assistant = {"role": "assistant", "content": _ASSISTANT}
    try:
        opened = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True, **_FIXED)
        closed = tokenizer.apply_chat_template([user, assistant], tokenize=False, **_FIXED)
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelError(f"the model's chat template fails on one user turn: {first_line(error)}") from error
    parts = str(opened).split(_USER)
    if len(parts) != 2:
        raise ModelError(f"the model's chat template writes the user's message {len(parts) - 1} times, not once")
    written, _, ending = str(closed).rpartition(_ASSISTANT)
    return parts[0], _answers_after(parts[1], written.rpartition(_USER)[2]), ending


def _conversation_frame(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> list[str]:
    """The template's texts before, between and after the messages of a conversation that ends with the user's."""
    from jinja2 import TemplateError

    marks = [f"\ue0f1{number}\ue0f2" for number in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    named = ", ".join(roles)
    try:
        opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **_FIXED)
        answered = [*messages, {"role": "assistant", "content": _ASSISTANT}]
        closed = tokenizer.apply_chat_template(answered, tokenize=False, **_FIXED)
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelError(f"the model's chat template refuses a conversation of {named}: {first_line(error)}") from error
    texts, rest = [], str(opened)
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise ModelError(f"the model's chat template does not write a conversation of {named} once and in order")
        texts.append(before)
    written = str(closed).rpartition(_ASSISTANT)[0].rpartition(marks[-1])[2]
    return [*texts, _answers_after(rest, written)]


def _answers_after(opened: str, written: str) -> str:
    """The text between the user's message and an answer without thoughts.

    `opened` is the template's text there as a generation prompt, `written` its text before a given answer.
    """
    if written.startswith(opened) and (closing_of(opened) or "<|channel|>" in written[len(opened) :]):
        opened = written  # with empty thoughts, or in the channel of answers
    if closing := closing_of(opened):
        opened = f"{opened.rstrip()}\n\n{closing}\n\n"
    return opened


def _begins(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text template must begin with the beginning-of-sequence token."""
    return tokenizer.bos_token_id not in (None, tokenizer.eos_token_id)


def frame_template(model_dir: str | Path, prompt: str, base_dir: str | Path = ".") -> str | None:
    """A chat template (Jinja) that renders the last message like `prompt`. Returns None if the model's own does.

    The model's own does not if it prints today's date or opens thoughts: `Prompter` has a fixed date and closed
    thoughts. For servers, which support only chat templates. Raises as `Prompter`.
    """
    if prompt == "chat":
        own = own_template(Path(model_dir))
        # Most templates do neither, and loading a tokenizer takes seconds.
        if own is None or _CHANGEABLE.search(own) is None:
            return None
        return _fixed_template(Prompter.load(model_dir, prompt, base_dir).tokenizer)
    before, after = _text_frame(prompt, Path(base_dir))
    tokenizer = Prompter.load(model_dir, prompt, base_dir).tokenizer
    start = tokenizer.bos_token if _begins(tokenizer) else ""
    parts = (json.dumps(f"{start}{before}"), "messages[-1]['content']", json.dumps(after))
    return "".join(f"{{{{ {part} }}}}" for part in parts)


def _fixed_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template with the `_FIXED` settings and closed thoughts. Returns None if that changes nothing."""
    own = str(tokenizer.get_chat_template())
    user = {"role": "user", "content": _USER}
    plain = str(tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True, **_FIXED))
    before, after, _ = _chat_frame(tokenizer)
    closing = (before + _USER + after).removeprefix(plain)
    today = r"strftime_now\(\s*(['\"])(.*?)\1\s*\)"
    dated = re.sub(today, lambda match: json.dumps(_TODAY.strftime(match[2])), own, flags=re.DOTALL)
    default = tokenizer.apply_chat_template([user], chat_template=dated, tokenize=False, add_generation_prompt=True)
    if not closing and dated == own and default == plain:
        return None
    names = [name for name in ("enable_thinking", "thinking", "date_string") if re.search(rf"\b{name}\b", own)]
    fixed = "".join(f"{{% set {name} = {json.dumps(_FIXED[name])} %}}" for name in names)
    closed = f"{{% if add_generation_prompt %}}{{{{ {json.dumps(closing)} }}}}{{% endif %}}" if closing else ""
    return f"{fixed}{dated.removesuffix(chr(10))}{closed}"


def _text_frame(prompt: str, base_dir: Path) -> tuple[str, str]:
    if prompt == "instruction":
        text = INSTRUCTION_FRAME
    elif prompt.endswith(".txt"):
        path = base_dir / prompt
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the prompt template {path} cannot be read: {first_line(error)}") from error
    else:
        raise ConfigError(f"prompt: '{prompt}' is neither chat, instruction nor a .txt file; give one of them")
    if text.count(SLOT) != 1:
        raise ConfigError(f"the prompt template {prompt} must hold {SLOT} exactly once, not {text.count(SLOT)} times")
    before, _, after = text.partition(SLOT)
    return before, after
