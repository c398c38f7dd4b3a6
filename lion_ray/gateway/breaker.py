"""Whether an endpoint is down: then nothing but a probe is sent, so that an outage costs time and no retries.

Invariants:
- Closed, every call goes. After `failures` errors in a row, with no answer between them, it opens.
- Open, one call at a time goes, after a pause that doubles from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`. An answer closes
  the breaker, the probe's or another's; of the errors only the probe's own lets the next probe go. Those of calls that
  were out before are told apart by number.
- An endpoint that has never answered does not open it: nobody there, or a wrong address, is told at once.

A state machine without a clock of its own. This module knows nothing of HTTP or of calls.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Breaker:
    """The circuit breaker of one endpoint."""

    def __init__(self, failures: int, *, clock: Callable[[], float]) -> None:
        self._failures = failures
        self._clock = clock
        self._row = 0
        self._answered = False
        self._opened_at: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._probe_at = 0.0
        self._probes = 0
        self.probe = 0
        """The number of the probe that is out; 0 for none. Whoever `wait_s` lets go reads here whether it is one."""
        self.last_error = ""

    @property
    def open(self) -> bool:
        return self._opened_at is not None

    @property
    def down_s(self) -> float:
        """How long the endpoint has been down; 0 where it is not."""
        return 0.0 if self._opened_at is None else self._clock() - self._opened_at

    def wait_s(self) -> float:
        """0 where a call may go now (if open: as the probe, which it then is), else seconds to wait at least."""
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
        """The endpoint answered: also a refusal or a 429 is an answer."""
        self._answered = True
        self._row = 0
        self._opened_at, self.probe = None, 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, error: str, probe: int) -> None:
        """An attempt, the `probe` of that number or none (0), ended in an error that may pass."""
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
        """A call that was let go was not sent, or nobody knows what came of it."""
        if self._is_out(probe):
            self.probe = 0

    def _is_out(self, probe: int) -> bool:
        return probe != 0 and probe == self.probe
