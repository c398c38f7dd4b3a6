"""How long to wait for an endpoint that answers 429, and when to give up.

Invariants:
- A pause that the endpoint requests is waited in full, up to `max_retry_after_s`. A longer one is logged instead;
  repeated requests for a longer one are an EndpointError.
- An endpoint that has answered only 429, many times, for longer than `outage_timeout_s` is an EndpointError, because an
  exhausted account is not always reported as such. A few long pauses that it requests do not count as many times.

A state machine whose times, in seconds, are passed in. This module knows nothing of calls.
"""

from __future__ import annotations

from collections.abc import Callable

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import EndpointError
from lion_ray.gateway.wire import RateLimited, in_words

TOO_LONG_IN_ROW = 3
"""How many overlong pauses are tolerated without an answer between them; one may be a mistake."""
LIMITS_IN_ROW = 30
"""The least number of consecutive 429s before giving up."""


class Patience:
    """The 429s of one endpoint since its last answer."""

    def __init__(self, name: str, address: str, config: EndpointConfig, say: Callable[[str], object]) -> None:
        self._name, self._config, self._say = name, config, say
        self._who = f"endpoint {name} ({address})"
        self.answered()

    def answered(self) -> None:
        """The endpoint answered: start counting anew."""
        self._since: float | None = None
        self._in_row = self._too_long = 0
        self._last_at = 0.0

    def pause(self, limit: RateLimited, sent_at: float, now: float, backoff_s: float) -> float:
        """How long to send nothing: the endpoint's pause, else `backoff_s`. Raises EndpointError to give up."""
        if self._since is None:
            self._since, self._last_at = now, sent_at
        fresh = sent_at >= self._last_at  # not in flight together with the last one
        if fresh:
            self._in_row += 1
            self._last_at = now
        asked_s = limit.retry_after_s
        if asked_s is not None and asked_s > self._config.max_retry_after_s:
            return self._too_long_pause(limit, asked_s, backoff_s, fresh=fresh)
        silent_s = now - self._since
        if silent_s > self._config.outage_timeout_s and self._in_row >= LIMITS_IN_ROW:
            raise EndpointError(
                f"{self._who} has answered every request with 429 for {in_words(silent_s)}: the account's quota may be "
                f"used up; run the same command later, or raise endpoints.{self._name}.outage_timeout_s "
                f"[{limit.detail}]"
            )
        return asked_s or backoff_s

    def _too_long_pause(self, limit: RateLimited, asked_s: float, backoff_s: float, *, fresh: bool) -> float:
        self._too_long += fresh
        if self._too_long > TOO_LONG_IN_ROW:
            raise EndpointError(
                f"{self._who} asks repeatedly to wait {in_words(asked_s)}: more than endpoints.{self._name}."
                f"max_retry_after_s ({self._config.max_retry_after_s:g} s); run the same command later, or raise it "
                f"[{limit.detail}]"
            )
        pause = max(backoff_s, self._config.max_backoff_s)
        if fresh:
            self._say(f"it asks to wait {in_words(asked_s)}, too long for a rate limit: retry in {pause:.0f} s")
        return pause
