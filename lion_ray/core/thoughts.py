"""Removes a reasoning model's thoughts from its reply.

Invariants:
- Thoughts are never an answer: they are not stored as one, trained on, judged, or parsed for a score or a letter.
- Thoughts that never end leave no answer: the text is "".
- A text without thoughts is returned unchanged. A marker that is quoted or in code is ordinary text.
- The time is linear in the text's length.

A server without a reasoning parser sends thoughts as part of the text, between its model's markers: ``<think>``
(DeepSeek R1, Qwen3 and many more), ``[THINK]`` (Magistral), ``◁think▷`` (Kimi), ``<|begin_of_thought|>``
(OpenThoughts), ``<|START_THINKING|>`` (Command A), ``<unused94>thought`` (MedGemma) and the channels of OpenAI's
harmony format; a server that removes special tokens leaves of these only the words ``analysis…assistantfinal…``. If the
chat template opens the thoughts, the reply holds only the closing marker. This module knows nothing of models or
endpoints.
"""

from __future__ import annotations

import re

_NAMES = r"(?:seed:|ant)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis|inner_monologue)"
_OPEN = re.compile(
    rf"<\|?{_NAMES}\|?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<unused94>(?:thought\b)?"
    r"|<\|inner_prefix\|>|<\|channel>thought\b",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"<\|?/{_NAMES}\|?>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<unused95>|<\|inner_suffix\|>"
    r"|<channel\|>",
    re.IGNORECASE,
)
_SURE = re.compile(r"<\|?/?think\|?>|\[/?THINK\]|◁/?think▷|<\|(?:begin|end)_of_thought\|>|<\|(?:START|END)_THINKING\|>")
"""Markers that mean thoughts anywhere; a `<reasoning>` in the middle of a text may be the answer's own XML."""
_MAYBE = re.compile(r"<(?:reasoning|reflection|scratchpad|analysis|inner_monologue)>", re.IGNORECASE)
"""Markers that mean thoughts only if they are closed."""
_HINT = re.compile(r"think|thought|reason|reflection|scratchpad|analysis|inner_|unused9|channel", re.IGNORECASE)

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]{0,200}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>")
# Harmony without its special tokens. No sentence begins with such a word joined to the next.
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[^\sa-z.,:;!?'\-])|\s*(?:assistant)?commentary(?: to=\S+)?(?=[A-Z{])")
_BARE_FINAL = re.compile(r"assistant\s?final(?=\S|\s*\n|\Z)")

_WRAPPED = re.compile(
    r"\s*(?:<(answer|response|output|solution)>(?P<tag>.*?)(?:</\1>)?"
    r"|<\|begin_of_solution\|>(?P<solution>.*?)(?:<\|end_of_solution\|>)?"
    r"|<\|START_RESPONSE\|>(?P<response>.*?)(?:<\|END_RESPONSE\|>)?)\s*",
    re.DOTALL,
)
_LATER = re.compile(
    rf"^[ \t]*(?:(?P<fence>```|~~~)|(?P<open>{_OPEN.pattern}))|(?P<close>{_CLOSE.pattern})",
    re.MULTILINE | re.IGNORECASE,
)
_MARKER = re.compile(rf"{_OPEN.pattern}|{_CLOSE.pattern}|{_MAYBE.pattern}|<\|channel\|>|<\|message\|>", re.IGNORECASE)
_QUOTES = "`'\"“”‘’«»"


def without_thoughts(text: str) -> str:
    """The answer in a reply: `text` unchanged if it holds no thoughts, "" if it holds nothing else."""
    if _HINT.search(text) is None:
        return text
    if (final := _final_channel(text)) is not None:
        return final.strip()
    answer = _after_leading(text)
    answer = _without_later(answer)
    if answer == text:
        return text
    answer = answer.strip()
    if wrapped := _WRAPPED.fullmatch(answer):
        answer = next(inner for inner in wrapped.group("tag", "solution", "response") if inner is not None).strip()
    return answer


def closing_of(prompt: str) -> str:
    """The marker that closes the thoughts that a prompt opens, such as ``</think>``; "" if it opens none."""
    opened = ""
    for match in re.finditer(f"({_OPEN.pattern})|({_CLOSE.pattern})", prompt, re.IGNORECASE):
        opened = match[1] or ""
    if not opened or opened.startswith("<unused94>"):
        return "<unused95>" if opened else ""
    if opened.startswith("<|channel>"):
        return "<channel|>"
    for begin, end in (("begin_of", "end_of"), ("START_", "END_"), ("_prefix", "_suffix")):
        if begin in opened:
            return opened.replace(begin, end)
    return re.sub(r"\A([<\[◁]\|?)", r"\1/", opened)


def defused(text: str) -> str:
    """The text with a space within each marker of thoughts, so that a reply that quotes it holds none."""
    if _HINT.search(text) is None:
        return text
    return _MARKER.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def only_thoughts(text: str) -> bool:
    """Whether a reply is not empty but holds no answer."""
    return bool(text.strip()) and not without_thoughts(text).strip()


def _final_channel(text: str) -> str | None:
    """The text of harmony's last `final` channel. Returns None if the text is not in that format."""
    channels = list(_CHANNEL.finditer(text))
    if channels and not text[: channels[0].start()].replace("<|start|>", "").replace("assistant", "").strip():
        finals = [channel for channel in channels if channel[1] == "final"]
        if not finals:
            return ""
        end = _CHANNEL_END.search(text, finals[-1].end())
        return text[finals[-1].end() : end.start() if end else len(text)]
    if _BARE_ANALYSIS.match(text):
        last = None
        for last in _BARE_FINAL.finditer(text):  # noqa: B007 - the last one is what is wanted
            pass
        return text[last.end() :] if last else ""
    return None


def _after_leading(text: str) -> str:
    """The text after the thoughts that it begins with, or that its prompt opened."""
    # (start, end, whether it opens)
    marks = [(match.start(), match.end(), True) for match in _OPEN.finditer(text)]
    marks += [(match.start(), match.end(), False) for match in _CLOSE.finditer(text) if not _is_quoted(text, match)]
    marks.sort()
    last_close = max((number for number, mark in enumerate(marks) if not mark[2]), default=-1)
    position, number = 0, 0
    while number < len(marks):
        start, end, opens = marks[number]
        if opens and not text[position:start].strip():
            # Thoughts may mention their own markers: they end at the balancing closing marker, or else at the last one.
            depth = 0
            for place in range(number, len(marks)):
                depth += 1 if marks[place][2] else -1
                if depth == 0:
                    break
            else:
                place = last_close
            if place < number:
                return text[position:] if _MAYBE.fullmatch(text, start, end) else ""
            position, number = marks[place][1], place + 1
        elif not opens and _SURE.fullmatch(text, start, end):
            position, number = end, number + 1
        else:
            break
    return text[position:]


def _without_later(text: str) -> str:
    """The text without later thoughts, which start at the beginning of a line outside code."""
    kept: list[str] = []
    position, in_code, in_thoughts = 0, False, False
    for match in _LATER.finditer(text):
        if match["fence"]:
            in_code = in_code != (not in_thoughts)
        elif in_thoughts and match["close"]:
            position, in_thoughts = match.end(), False
        elif match["open"] and not in_thoughts and not in_code and _SURE.fullmatch(match["open"]):
            kept.append(text[position : match.start()])
            in_thoughts = True
    if not kept:
        return text
    return "".join([*kept, "" if in_thoughts else text[position:]])


def _is_quoted(text: str, match: re.Match[str]) -> bool:
    """Whether a marker is only mentioned: in quotation marks or backticks."""
    before, after = text[max(match.start() - 1, 0) : match.start()], text[match.end() : match.end() + 1]
    return before != "" and before in _QUOTES and after != "" and after in _QUOTES
