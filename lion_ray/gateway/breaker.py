"""The circuit breaker: while an endpoint is down only probes are sent, so that an outage costs time but no retries.

Invariants:
- Closed: every call is sent. `failures` consecutive errors, without an answer between them, open the breaker.
- Open: one call at a time is sent as a probe, after a backoff that doubles from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`.
  Any answer, the probe's or another's, closes the breaker. Only an error of the probe itself allows the next probe;
  probes have numbers, so that errors of calls sent earlier are not confused with it.
- An endpoint that has never answered does not open the breaker: a missing server or a wrong address is reported at
  once.

A state machine whose clock is passed in. This module knows nothing of HTTP or of calls.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Breaker:
    """The circuit breaker of one endpoint."""

    def __init__(self, failures: int, *, clock: Callable[[], float], answered: bool = False) -> None:
        """`answered`: the endpoint is known to have answered before."""
        self._failures = failures
        self._clock = clock
        self._row = 0
        self._answered = answered
        self._opened_at: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._probe_at = 0.0
        self._probes = 0
        self.probe = 0
        """The number of the probe in flight, or 0. After `wait_s` returned 0, the caller's call is this probe."""
        self.last_error = ""

    @property
    def open(self) -> bool:
        return self._opened_at is not None

    @property
    def down_s(self) -> float:
        """How long the endpoint has been down, in seconds; 0 if it is not down."""
        return 0.0 if self._opened_at is None else self._clock() - self._opened_at

    def wait_s(self) -> float:
        """Returns 0 if a call may be sent now (if open: as the probe), else the least number of seconds to wait."""
        if self._opened_at is None:
            return 0.0
        if self.probe:
            return 0.1  # until the probe is back
        wait = self._probe_at - self._clock()
        if wait > 0:
            return wait
        self._probes += 1
        self.probe = self._probes
        return 0.0

    def succeeded(self) -> None:
        """The endpoint answered; a refusal or a 429 is an answer too."""
        self._answered = True
        self._row = 0
        self._opened_at, self.probe = None, 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, error: str, probe: int) -> None:
        """An attempt failed with a transient error; `probe` is its number as a probe, or 0."""
        self.last_error = error
        self._row += 1
        if self._opened_at is not None:
            if self._is_out(probe):
                self.probe = 0
                self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
                self._probe_at = self._clock() + self._pause_s
        elif self._answered and self._row >= self._failures:
            self._opened_at = self._clock()
            self._probe_at = self._opened_at + self._pause_s

    def abandoned(self, probe: int) -> None:
        """A permitted call was not sent, or its outcome is unknown."""
        if self._is_out(probe):
            self.probe = 0

    def _is_out(self, probe: int) -> bool:
        return probe != 0 and probe == self.probe
