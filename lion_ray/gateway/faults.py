"""Classifies a refusal by its codes and message: a fault of the endpoint, which affects every call, or of one request.

Invariants:
- A refusal about one request (its length, its content) never counts as the endpoint's fault.
- Services report the same fault with different statuses, codes and messages, so the message decides if the codes do
  not. A message may quote the request, so `fault_of` is only a guess, and `suspects` waits for a second refusal.

Sources: error texts of OpenAI, Azure, Anthropic, Gemini, Mistral, DeepSeek, Moonshot, Zhipu, DashScope, OpenRouter,
LiteLLM, vLLM, SGLang, TGI. This module knows no exceptions and no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

Fault = Literal["key", "model", "address", "quota", "parameter", "system"]

MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
FIELDS = (
    *MAX_TOKENS_FIELDS,
    "temperature",
    "top_p",
    "seed",
    "logprobs",
    "top_logprobs",
    "response_format",
    "json_schema",
    "stream",
    "enable_thinking",
    "thinking",
    "reasoning_effort",
)
"""Request fields that this package sends, or that services require by name."""

_QUOTA_CODES = re.compile(
    r"(?i)insufficient_(user_)?quota|exceeded_current_quota|billing|insufficient_(balance|credits?|funds)|arrear|"
    r"account_(suspended|deactivated|disabled)|payment_required|^1113$"
)
_QUOTA = re.compile(
    r"(?i)insufficient[ _-]?(account[ _-])?(balance|credits?|funds|quota)"
    r"|\b(balance|credits?|funds)\b.{0,40}\b(too low|insufficient|not enough|exhausted|used up|depleted|negative)"
    r"|\b(not enough|no (more|remaining)|out of|used (up )?all( of)?( your)?) (credits?|balance|funds|quota)\b"
    r"|exceeded (your|the) (current|monthly|total|account|spending|usage|billing)\b.{0,20}\b(quota|limit|budget)"
    r"|(monthly|spending|spend|billing|usage|hard) (hard )?(limit|cap|budget|quota) (has been |was |is )?"
    r"(reached|exceed)"
    r"|quota (has been |is |was )?(exhausted|used up|depleted|insufficient)"
    r"|arrear|overdue|(top[ -]?up|recharge) (your|the|account)|add (more )?(credits|funds|a payment)"
    r"|payment (method|requ)"
    r"|\b(account|organi[sz]ation|subscription|project|team)\b.{0,40}\b(suspended|deactivated|disabled|frozen|banned|"
    r"terminated|expired|delinquent|closed|in good standing|not active|inactive)"
    r"|billing (details|account|is not|has not|not)|余额不足|欠费|额度不足|额度已|充值"
)
_RENEWS = re.compile(
    r"(?i)(per|a|each) (second|minute|hour|day)|/ ?(s|min|h|day)\b|\b[rt]p[smhd]\b|retry in|try again in"
)
_KEY = re.compile(
    r"(?i)(api|access|auth|subscription)[ _-]?(key|token).{0,40}(invalid|not valid|incorrect|missing|expired"
    r"|not found|required|malformed)|(invalid|incorrect|missing|wrong|no) (api|access|auth)[ _-]?(key|token)"
    r"|API_KEY_INVALID|unauthorized|unauthenticated|authentication (failed|required|error)"
)
_MODEL_CODES = re.compile(r"(?i)model_?(not_?found|not_?exist|not_?supported|not_?available)|(invalid|unknown)_model")
_MODEL = re.compile(
    r"(?i)\b(unknown|invalid|unsupported|unrecogni[sz]ed|no such|non-?existent|wrong|missing) model\b"
    r"|not a valid model|\bmodel\b[^.;]{0,120}?\b(not|n't|never) (be )?(exist|found|available|valid|recogni|known|"
    r"loaded|served|deployed|a valid|accessible|have access|configured|supported\b(?! by))"
    r"|\bmodel\b[^.;]{0,80}\b(deprecated|retired|decommissioned|discontinued|removed|is invalid|unavailable)"
    r"|(no|not have) access to( the)? model|invalid model|模型不存在|no endpoints found for"
)
_SYSTEM = re.compile(
    r"(?i)\b(system|developer)\b.{0,30}\b(role|message|instruction|prompt)s?\b|\broles? .{0,40}(system|developer)\b"
    r"|roles must alternate|only (the )?user and (assistant|model)|['\"`]system['\"`]|role.{0,60}'user' or 'assistant'"
)
_COMPLAINS = re.compile(
    r"(?i)unsupported|unrecogni|unknown|unexpected|invalid|deprecated|(not|n't|never|only|must|cannot|may|no longer) "
    r"(\w+ ){0,3}(support|permit|allow|enabl|accept|be\b|alternate|specif|use|available|recogni|implement|set)|"
    r"extra inputs|only (the )?(default|user|supports?)|incompatible|mutually exclusive|too (large|high|big|small|low)|"
    r"exceed|at most|out of range|between|greater than|less than|(input )?should be|required|remove"
)
_ABOUT_A_FIELD = re.compile(r"(?i)\b(parameters?|arguments?|fields?|propert(y|ies)|extra inputs|keyword)\b|stream mode")
_ONE_REQUEST_CODES = re.compile(
    r"(?i)context_length|content_?(filter|policy)|string_above_max|data_?inspection|moderation|responsibleai|safety|"
    r"sensitive|prompt_too_long|request_too_large"
)
_ONE_REQUEST = re.compile(
    r"(?i)context (length|window|size)|maximum (context|input|prompt)|(prompt|input|message|text|request)s?\b.{0,20}"
    r"\b(is|are) too (long|large)|too many (input |prompt )?tokens|reduce (the|your) (length|prompt|input|message)|"
    r"(prompt|input) (length|tokens?)\b.{0,30}(exceed|longer|greater|larger|more)|request too large|content[ _-]filter|"
    r"content management policy|content policy|moderation|flagged|safety (system|filter|polic|reason)|inappropriate|"
    r"harmful|sensitive (content|words|information)|usage polic"
)


def is_one_requests(codes: Collection[str], message: str) -> bool:
    """Whether a refusal is about the length or the content of one request."""
    return any(map(_ONE_REQUEST_CODES.search, codes)) or _ONE_REQUEST.search(message) is not None


def is_quota(codes: Collection[str], message: str) -> bool:
    """Whether the account is out of credit or closed, so that waiting does not help; False for a limit that renews."""
    if any(map(_QUOTA_CODES.search, codes)):
        return True
    return _QUOTA.search(message) is not None and _RENEWS.search(message) is None


def is_model(codes: Collection[str], message: str) -> bool:
    """Whether the endpoint does not know the requested model, or denies access to it."""
    return any(map(_MODEL_CODES.search, codes)) or _MODEL.search(message) is not None


def fault_of(codes: Collection[str], message: str, param: str = "") -> Fault | None:
    """The fault that affects every call, by the message of a 4xx. Returns None if it shows none. `param`: the field
    that an error in OpenAI's format names."""
    if is_quota(codes, message):
        return "quota"
    if _KEY.search(message):
        return "key"
    complains = _COMPLAINS.search(message) is not None
    if _SYSTEM.search(message) and complains:
        return "system"
    about_a_field = param in FIELDS or bool(named_fields(message)) or _ABOUT_A_FIELD.search(message) is not None
    if any("parameter" in code or "unsupported_value" in code for code in codes) or (complains and about_a_field):
        # LiteLLM's "Invalid model name passed in model=m" names a field too.
        return "model" if not named_fields(message) and is_model(codes, message) else "parameter"
    return "model" if is_model(codes, message) else None


def named_fields(message: str, param: str = "") -> tuple[str, ...]:
    """The request fields that a message names, in FIELDS' order."""
    words = set(re.findall(r"[A-Za-z_]+", message)) | {param}
    return tuple(name for name in FIELDS if name in words)


def refuses_field(message: str, name: str) -> bool:
    """Whether a message says that the endpoint does not know the field `name`, rather than that its value is wrong."""
    return (
        name in named_fields(message)
        and re.search(r"(?i)too (large|high|big|small|low)|at most|between|exceed|greater|less", message) is None
    )
