"""Maps every service's finish reasons to one set of names.

Invariants:
- Only a name that is known to mean "complete" counts as complete. An unknown name may mean a truncated answer or an
  error, and training on truncated answers teaches a student to stop in mid-sentence.
- The members' values are the canonical names (OpenAI's, if it has one); a run's rows hold them.

Sources: the API references of OpenAI, Azure, Anthropic, Bedrock, Gemini, Mistral, Cohere, DeepSeek, Zhipu, watsonx,
Hugging Face's TGI, vLLM, SGLang, LM Studio. This module does not know calls, rows or prompts.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Ending(StrEnum):
    """Why a text ended; the value is its canonical name."""

    COMPLETE = "stop"
    CUT = "length"
    """Truncated by the length limit or the end of the context, or stopped because the model repeated itself."""
    FILTERED = "content_filter"
    """Withheld or truncated by a filter, or refused by the model itself."""
    TOOL = "tool_calls"
    """The model broke off to call a tool."""
    FAILED = "error"
    """The endpoint failed; a retry may succeed."""
    UNKNOWN = "unknown"


_KNOWN = {
    Ending.COMPLETE: "stop stopped stop_sequence stop_string stop_string_found stop_token end end_turn end_of_turn "
    "end_of_text endoftext eos eos_token eos_found eot eot_token complete completed finish finished done",
    Ending.CUT: "length max_tokens max_length model_length token_limit context pause_turn incomplete not_finished "
    "truncated repetition",
    Ending.FILTERED: "content_filter refusal safety recitation blocklist spii sensitive error_toxic language jailbreak",
    Ending.TOOL: "tool_calls tool_call tool_use function_call tool",
    Ending.FAILED: "error abort aborted cancelled canceled user_cancel user_stopped timeout time_limit timed_out "
    "unload model_unloaded failed interrupted disconnected overloaded error_limit",
}
_EXACT = {name: ending for ending, names in _KNOWN.items() for name in names.split()}
# For names that the table lacks. None of these endings counts as complete, so a wrong guess is safe.
_LIKELY = (
    (Ending.FILTERED, r"filter|safety|block|moderat|sensitiv|prohibit|guardrail|polic|refus|toxic|censor|flagged"),
    (Ending.TOOL, r"tool|function"),
    (Ending.FAILED, r"error|fail|abort|cancel|timeout|interrupt|resource|malformed|unavailable|exception"),
    (Ending.CUT, r"max|length|limit|context|trunc|exceed|budget"),
)


def ending(reason: str | None) -> Ending:
    """The meaning of any service's finish reason; None and "" are `UNKNOWN`."""
    # Take the name out of "content_filter: PROHIBITED_CONTENT" or "FinishReason.MAX_TOKENS"; split camelCase.
    name = re.split(r"[:;,(\s]", (reason or "").strip(), maxsplit=1)[0].rpartition(".")[2]
    name = re.sub(r"[^a-z]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")
    if name in _EXACT:
        return _EXACT[name]
    return next((ending for ending, words in _LIKELY if re.search(words, name)), Ending.UNKNOWN)
