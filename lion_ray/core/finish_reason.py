"""How a model's text ended, whatever its service calls it.

Invariants:
- Only a name that is known to mean so counts as complete. One that nobody knows may be a cut or an error by another
  name, and half an answer that is learnt as a whole one teaches to stop in mid-sentence.
- The members' values are the canonical names (OpenAI's, where it has one), and stand in a run's rows.

Sources: the API references of OpenAI, Azure, Anthropic, Bedrock, Gemini, Mistral, Cohere, DeepSeek, Zhipu, watsonx,
Hugging Face's TGI, vLLM, SGLang, LM Studio. This module knows nothing of calls, rows or prompts.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Ending(StrEnum):
    """A text's end, by its canonical name."""

    COMPLETE = "stop"
    CUT = "length"
    """By the length limit, the context's end, or because it went round in circles."""
    FILTERED = "content_filter"
    """Withheld or cut by a filter, or refused by the model itself."""
    TOOL = "tool_calls"
    """The model broke off to call a tool."""
    FAILED = "error"
    """Something broke at the endpoint: asked again, there may be an answer."""
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
# What no table will ever hold in full. None of these endings is taken for complete, so a wrong guess is a safe one.
_LIKELY = (
    (Ending.FILTERED, r"filter|safety|block|moderat|sensitiv|prohibit|guardrail|polic|refus|toxic|censor|flagged"),
    (Ending.TOOL, r"tool|function"),
    (Ending.FAILED, r"error|fail|abort|cancel|timeout|interrupt|resource|malformed|unavailable|exception"),
    (Ending.CUT, r"max|length|limit|context|trunc|exceed|budget"),
)


def ending(reason: str | None) -> Ending:
    """What a finish reason means, by any service's name for it; None and "" are `UNKNOWN`."""
    # "content_filter: PROHIBITED_CONTENT" and "FinishReason.MAX_TOKENS" say more than the name; camelCase is one too.
    name = re.split(r"[:;,(\s]", (reason or "").strip(), maxsplit=1)[0].rpartition(".")[2]
    name = re.sub(r"[^a-z]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")
    if name in _EXACT:
        return _EXACT[name]
    return next((ending for ending, words in _LIKELY if re.search(words, name)), Ending.UNKNOWN)
