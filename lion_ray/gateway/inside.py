"""Errors inside an HTTP 200, mapped to the status that they should have had.

Sources: OpenRouter's errors ({"error": {"code": 429}}, also on a choice), Google's (status names), MiniMax's
(base_resp), Baidu's (error_code), vLLM's ({"object": "error"}). This module knows nothing of answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lion_ray.gateway.wire import Refused, TransportError, error_of, message_of

_STATUSES = (
    (429, r"rate_?limit|too_?many|throttl|resource_?exhausted|quota|qps"),
    (401, r"invalid_?api_?key|authentication|unauthori[sz]ed|unauthenticated"),
    (403, r"permission|forbidden"),
    (404, r"not_?found|model_?not|not_?exist"),
    (400, r"invalid_?request|invalid_?argument|bad_?request|context_?length|unsupported|content_?filter"),
    (503, r"unavailable|overload|capacity|busy"),
    (504, r"time_?d?_?out|deadline"),
    (500, r"internal|server_?error|api_?error|bad_?gateway"),
)


def error_inside(
    body: Mapping[str, Any], choice: Any, headers: Mapping[str, str] | None, *, whole: bool
) -> TransportError | None:
    """The error in an answer's body. Returns None if there is none, or if its status is unclear. `whole`: the answer is
    complete, so that only an error of its own choice counts."""
    found: Any = choice.get("error") if isinstance(choice, dict) else None
    if not found and not whole:
        found = body.get("error")
    if not found and not isinstance(choice, dict):
        found = body.get("base_resp") or body
    if not isinstance(found, Mapping):
        found = {"message": found} if isinstance(found, str) else {}
    status = _status(found)
    if status is None:
        return None
    error = error_of(status, headers or {}, {"error": dict(found)})
    if isinstance(error, Refused) and error.fault not in ("key", "quota"):
        error.sure = False
    error.detail = f"inside an HTTP 200: {error.detail}"
    return error


def _status(error: Mapping[str, Any]) -> int | None:
    names = []
    for field in ("code", "status", "status_code", "http_status", "error_code", "type"):
        value = error.get(field)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
        if isinstance(value, str):
            names.append(value[:100])
    # Names first, because they are less ambiguous than the message.
    for text in (" ".join(names), message_of(error)):
        flat = re.sub(r"[^a-z]+", "_", text.lower())
        for status, words in _STATUSES:
            if re.search(words, flat):
                return status
    return None
