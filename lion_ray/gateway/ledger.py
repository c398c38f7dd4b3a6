"""The costs of calls, and a budget with a hard cap.

Invariants:
- The worst case of a call is reserved before it is sent. It is settled by the most expensive reading of the endpoint's
  usage (`usage`). So spent + reserved exceeds the budget only by what an endpoint bills beyond its limits.
- An answer that exceeds its reservation raises the reservations of all later calls of its endpoint (`Excess`), so only
  calls in flight at that time can exceed theirs too. `wave` limits their number.
- A call of unknown outcome (timeout, lost connection) may have been billed: its worst case counts against the budget as
  if it were spent, and is shown as `uncertain`.
- At the cap a call first waits for money that calls in flight may release. It is refused with a BudgetError only if
  there is nothing to wait for.
- The run has one Budget. Each proxy's Ledger leases parts of it, so that a call needs no message. A proxy without calls
  holds no lease.

Amounts are US dollars. This module knows nothing of HTTP, of Ray or of files.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lion_ray.config import PricesConfig
from lion_ray.core.errors import BudgetError
from lion_ray.gateway.usage import Bounds, Settled

T = TypeVar("T")
MILLION = 1_000_000
LEASE_SHARE = 0.02
"""A lease is this share of the rest, so that several proxies approach the cap together."""
ROUNDING = 1e-9


def cost(prices: PricesConfig, prompt: int, cached: int, completion: int, *, batch: bool = False) -> float:
    """The cost of a call with this usage, in US dollars."""
    cached = min(cached, prompt)
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    dollars = ((prompt - cached) * prices.input + cached * cached_price + completion * prices.output) / MILLION
    return dollars * (prices.batch if batch else 1.0)


class _Beyond:
    """How far one kind of tokens has exceeded what calls allowed."""

    def __init__(self) -> None:
        self.extra, self.ratio, self.seen = 0, 1.0, 0

    def raised(self, asked: int) -> int:
        more = asked + self.extra
        # Beyond the largest call seen, the excess may grow in proportion to the call.
        return more if asked <= self.seen else max(more, math.ceil(asked * self.ratio))

    def learn(self, asked: int, most: int, used: int) -> None:
        if used == most:
            return  # equal to the reservation, which is also the settlement if an answer reports no usage
        self.seen = max(self.seen, asked)
        self.extra = max(self.extra, used - asked)
        self.ratio = max(self.ratio, used / max(1, asked))

    def join(self, other: _Beyond) -> None:
        self.seen, self.extra = max(self.seen, other.seen), max(self.extra, other.extra)
        self.ratio = max(self.ratio, other.ratio)


class Excess:
    """How far an endpoint's usage has exceeded what calls allow.

    For example because of thoughts that `max_tokens` does not limit, or a prompt that the endpoint adds.
    """

    def __init__(self) -> None:
        self._prompt, self._completion = _Beyond(), _Beyond()

    def raised(self, asked: Bounds) -> Bounds:
        """The tokens to reserve for a call that allows `asked`."""
        return Bounds(self._prompt.raised(asked.prompt), self._completion.raised(asked.completion))

    def learn(self, asked: Bounds, most: Bounds, used: Settled) -> bool:
        """Learn from the answer to a call that allowed `asked` and reserved `most`; whether it exceeded `most`."""
        self._prompt.learn(asked.prompt, most.prompt, used.prompt)
        self._completion.learn(asked.completion, most.completion, used.completion)
        return used.prompt > most.prompt or used.completion > most.completion

    def join(self, other: Excess) -> None:
        """Merge the excess that another proxy of the endpoint has seen."""
        self._prompt.join(other._prompt)
        self._completion.join(other._completion)


@dataclass
class Budget:
    """The run's budget, in one place. `cap` None: no limit, only totals."""

    cap: float | None
    spent: float = 0.0
    """What was billed or may have been billed."""
    leases: dict[str, float] = field(default_factory=dict)

    def opened(self, proxy: str, spent_on_disk: float) -> None:
        """A proxy starts or restarts: its leases are released, and the journal's total counts as spent."""
        self.leases[proxy] = 0.0
        self.spent = max(self.spent, spent_on_disk)

    def lease(self, proxy: str, wanted: float) -> float | None:
        """Lease at least `wanted`. Returns 0.0 if other proxies hold leases, None if the budget is exhausted."""
        if self.cap is None:
            return wanted
        left = self.cap - self.spent - sum(self.leases.values())
        if left + ROUNDING < wanted:
            return 0.0 if any(held > ROUNDING for name, held in self.leases.items() if name != proxy) else None
        granted = min(left, max(wanted, LEASE_SHARE * left))
        self.leases[proxy] = self.leases.get(proxy, 0.0) + granted
        return granted

    def report(self, proxy: str, spent: float, returned: float) -> None:
        """A proxy spent `spent`, and returns `returned` of its lease; negative if it spent more than its lease."""
        self.spent += spent
        self.leases[proxy] = max(0.0, self.leases.get(proxy, 0.0) - spent - returned)


Lease = Callable[[float], Awaitable[float | None]]
Report = Callable[[float, float], Awaitable[None]]


class Ledger:
    """One proxy's accounts. Without prices every call is free; without a lease there is no cap."""

    def __init__(
        self,
        prices: PricesConfig | None = None,
        *,
        lease: Lease | None = None,
        report: Report | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.prices = prices
        self._lease, self._report, self._sleep = lease, report, sleep
        self._free = 0.0  # leased, not reserved
        self._unreported = 0.0
        self._over = 0.0  # spent beyond reservations, and not reported
        self._reserved = 0.0
        self.excess = Excess()
        self.spent = 0.0
        self.uncertain = 0.0
        """What calls of unknown outcome may have cost, in addition to `spent`."""
        self._settled = asyncio.Event()
        self._asking = asyncio.Lock()
        self._messages: dict[asyncio.Future[Any], None] = {}

    @property
    def capped(self) -> bool:
        """Whether a call may be refused because of its cost."""
        return self._lease is not None and self.prices is not None

    def worst(self, most: Bounds, *, batch: bool = False) -> float:
        """The amount to reserve for a call that may use `most`, in US dollars."""
        return self.price(Settled(most.prompt, 0, most.completion), batch=batch) or 0.0

    def price(self, used: Settled, *, batch: bool = False) -> float | None:
        """The cost of a call, in US dollars. Returns None if no price is known."""
        return None if self.prices is None else cost(self.prices, *used, batch=batch)

    async def reserve(self, amount: float) -> None:
        """Reserve `amount`. Waits while calls in flight may release money.

        Raises:
            BudgetError: the budget has no room for it.
        """
        if self._lease is None or not amount:
            self._reserved += amount
            return
        async with self._asking:  # first come, first served
            while self._free + ROUNDING < amount:
                self._settled.clear()
                granted = await self._whole(self._lease(amount - self._free), self._unwanted)
                if granted:
                    self._free += granted
                elif self._settled.is_set():
                    continue  # money was released meanwhile
                elif self._reserved > ROUNDING:
                    await self._settled.wait()
                    await self._tell(0.0)
                elif granted is None:
                    await self._tell(self._free)
                    raise BudgetError(f"the budget has no room for another call, which may cost up to ${amount:.4f}")
                else:
                    await self._tell(self._free)
                    await self._sleep(0.5)  # another proxy's calls are in flight
            self._free -= amount
            self._reserved += amount

    async def settle(self, reserved: float, spent: float) -> None:
        """End a reservation: `spent` was spent, and the rest is released."""
        self._reserved -= reserved
        self.spent += spent
        self._unreported += spent
        self._free += max(0.0, reserved - spent)
        self._over += max(0.0, spent - reserved)
        self._settled.set()
        # Reported in larger steps, because a message per call would take longer than the call; an excess at once.
        if self._report is not None and (self._over or self._unreported > 0.005 + 0.001 * self.spent):
            await self._tell(0.0)

    def lose(self, reserved: float) -> None:
        """End the reservation of a call of unknown outcome, which counts as billed."""
        self._reserved -= reserved
        self.uncertain += reserved
        self._unreported += reserved
        self._settled.set()

    async def rest(self) -> None:
        """Return the lease while no call is in flight: otherwise another proxy would wait for it for ever."""
        if self._free > ROUNDING or self._unreported or self._over:
            await self._tell(self._free)

    async def close(self) -> None:
        """Report what was spent and return the rest of the lease."""
        await asyncio.gather(*self._messages, return_exceptions=True)
        await self._tell(self._free)

    async def _whole(self, message: Awaitable[T], late: Callable[[asyncio.Future[T]], None] | None = None) -> T:
        """Await a message to the budget, which completes even if the caller is cancelled: otherwise only one side
        would know the result. `late` is then called when it completes."""
        sent = asyncio.ensure_future(message)
        self._messages[sent] = None  # a task without a reference may be garbage-collected
        sent.add_done_callback(self._forget)
        try:
            return await asyncio.shield(sent)
        except asyncio.CancelledError:
            if late is not None:
                sent.add_done_callback(late)
            raise

    def _forget(self, message: asyncio.Future[Any]) -> None:
        self._messages.pop(message, None)

    def _unwanted(self, lease: asyncio.Future[float | None]) -> None:
        """Handle a lease whose call was cancelled meanwhile."""
        if lease.cancelled() or lease.exception() is not None or not (granted := lease.result()):
            return
        self._free += granted
        self._settled.set()
        if self._reserved <= ROUNDING and not self._asking.locked():
            resting = asyncio.ensure_future(self.rest())
            self._messages[resting] = None
            resting.add_done_callback(self._forget)

    async def _tell(self, returned: float) -> None:
        if self._report is None or self._lease is None:
            return
        spent, self._unreported = self._unreported, 0.0
        over, self._over = self._over, 0.0
        self._free -= returned
        await self._whole(self._report(spent, max(0.0, returned) - over))
