"""One call's way to its outcome, step by step: a transport that answers by a script, and a time that sleeping moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from lion_ray.config import EndpointConfig, PricesConfig
from lion_ray.core.errors import EndpointError, InfrastructureError
from lion_ray.gateway.batch import NotDone
from lion_ray.gateway.calls import Call, Completion, Failure, TokenChoice
from lion_ray.gateway.ledger import Ledger
from lion_ray.gateway.limits import ReportedLimit
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.sender import DOWN, Attempt, Sender
from lion_ray.gateway.stats import Event, Stats
from lion_ray.gateway.usage import Usage
from lion_ray.gateway.wire import Elsewhere, RateLimited, Refused, Rejected, Transient, Unreachable

CALL = Call(({"role": "user", "content": "ä" * 42},), 1000, role="teacher")
GOOD = Reply("so", "stop", "m-1", Usage(50, 500))
ADDRESS = "https://api.test/v1"


class Highest(random.Random):
    """No chance: the longest backoff."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Bench:
    """A sender with everything around it."""

    def __init__(self, *script: Any, batches: Any = None, bought_before: Any = None, **changes: Any) -> None:
        self.script, self.asked, self.now = list(script), [], 100.0  # type: ignore[var-annotated]
        self.slept: list[float] = []
        self.events: list[Event] = []
        self.said: list[str] = []
        self.kept: list[Completion] = []
        self.lost: list[float] = []
        self.stats = Stats()
        self.ledger = Ledger(PricesConfig(input=1.0, output=2.0, batch=0.5))
        self.takes = 0.25
        self.during: Callable[[], None] = lambda: None
        known: dict[str, Any] = {"model": "m", "api_key_env": None, "max_attempts": 3}
        self.sender = Sender(
            "e",
            EndpointConfig(**(known | changes)),
            self,  # type: ignore[arg-type]
            address=ADDRESS,
            ledger=self.ledger,
            batches=batches,
            bought_before=bought_before,
            stats=self.stats,
            on_event=self.events.append,
            say=self.said.append,
            clock=lambda: self.now,
            sleep=self.sleep,
            rng=Highest(),
        )
        self.attempt = Attempt(lose=self.lose)

    async def chat(self, body: dict[str, Any]) -> Reply:
        self.asked.append(dict(body))
        assert self.attempt.committed
        assert self.stats.in_flight == 1
        self.now += self.takes
        self.during()
        result = self.script.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def keep(self, completion: Completion) -> None:
        self.kept.append(completion)

    async def lose(self, usd: float) -> None:
        self.lost.append(usd)

    async def buy(self, call: Call = CALL, key: str = "k") -> Any:
        found = await self.sender.buy(key, call, self.attempt, self.keep)
        assert self.stats.in_flight == 0
        return found

    async def fails(self, kind: type[Exception] = EndpointError, call: Call = CALL) -> str:
        with pytest.raises(kind) as caught:
            await self.buy(call)
        return str(caught.value)


def bought(reply: Reply = GOOD, seconds: float = 0.25, usd: float = 0.00105, **more: Any) -> Completion:
    return Completion(
        "k",
        reply.text,
        reply.finish_reason,
        reply.model or "m",
        "e",
        **({"prompt_tokens": 50, "completion_tokens": 500, "seconds": seconds, "cost_usd": usd} | more),
    )


WORST = (84 + 16) / 1e6 + 1000 * 2 / 1e6

# -- answers ----------------------------------------------------------------------------------------------------------


async def test_every_field_of_what_is_bought() -> None:
    bench = Bench(GOOD)
    found = await bench.buy()
    assert found == bought(usd=pytest.approx(0.00105))  # type: ignore[arg-type]
    assert bench.kept == [found]
    assert bench.asked == [
        {"model": "m", "messages": list(CALL.messages), "max_tokens": 1000, "temperature": 1.0, "top_p": 1.0}
    ]
    assert (bench.stats.sent, bench.stats.retried, bench.stats.rate_limited, bench.slept) == (1, 0, 0, [])
    assert bench.ledger.spent == pytest.approx(0.00105)
    assert bench.attempt.committed
    choices = (TokenChoice(0, "8", (("8", -0.5),)),)
    bench = Bench(Reply("so", "length", "", Usage(50, 500, cached=20), logprobs=choices))
    bench.takes = 0.123456
    found = await bench.buy()
    assert (found.model, found.cached_tokens, found.logprobs, found.seconds) == ("m", 20, choices, 0.1235)
    assert found.finish_reason == "length"


async def test_a_schema_counts_with_its_size() -> None:
    schema = {"type": "object"}
    for call, extra in ((CALL, 0), (Call(CALL.messages, 1000, json_schema=schema), len(str(schema)))):
        bench = Bench(Reply("so", "stop", "m"))
        found = await bench.buy(call)
        assert found.cost_usd == pytest.approx(WORST + extra / 1e6), "no usage: the worst case"
        assert (found.prompt_tokens, found.completion_tokens) == (0, 0)


# -- retries ----------------------------------------------------------------------------------------------------------


async def test_errors_are_retried_with_growing_pauses() -> None:
    bench = Bench(
        Transient("server error", "one", status=500),
        Transient("server error", "two", 1.75, status=500),
        GOOD,
    )
    assert await bench.buy() == bought(usd=pytest.approx(0.00105))  # type: ignore[arg-type]
    assert bench.slept == [0.5, 1.75]
    assert bench.events == [
        Event("retried", "k", "teacher", "server error: one", 0.5),
        Event("retried", "k", "teacher", "server error: two", 1.75),
    ]
    assert (bench.stats.sent, bench.stats.retried) == (3, 2)
    assert bench.lost == []
    assert bench.ledger.spent == pytest.approx(0.00105)


async def test_pauses_grow_up_to_the_longest() -> None:
    errors = [Transient("server error", "x", 5.0 if number == 1 else None, status=500) for number in range(7)]
    bench = Bench(*errors, GOOD, max_attempts=9, max_backoff_s=6.0, max_retry_after_s=4.0)
    await bench.buy()
    assert bench.slept == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0, 6.0], "a pause beyond what may be asked for is not waited"


async def test_the_last_attempts_error_is_the_failure() -> None:
    bench = Bench(*(Transient("timed out", f"number {number}") for number in range(3)))
    assert await bench.buy() == Failure("k", "timed out", "number 2 (attempt 3 of 3)")
    assert (bench.stats.retried, len(bench.slept), bench.kept) == (2, 2, [])
    assert bench.lost == [pytest.approx(WORST)] * 3
    assert bench.ledger.uncertain == pytest.approx(3 * WORST)
    assert bench.ledger.spent == 0.0


async def test_server_errors_alone_may_be_the_endpoints_fault() -> None:
    for reason, alone in (("server error", True), ("garbled answer", True), ("connection lost", False)):
        bench = Bench(*[Transient(reason, "x", status=500)] * 15)
        attempts = [await bench.buy() for _ in range(4)]
        assert attempts == [Failure("k", reason, "x (attempt 3 of 3)")] * 4
        if alone:
            assert await bench.fails() == (
                f"endpoint e ({ADDRESS}) has answered no call, and 5 failed in the same way: check endpoints.e.model "
                "and base_url; leave out a field that it does not accept with omit, or add one that it requires with "
                f"extra_body [{reason}: x (attempt 3 of 3)]"
            )
        else:
            assert await bench.buy() == attempts[0]


async def test_an_endpoint_that_was_never_reached() -> None:
    bench = Bench(*[Unreachable("no route")] * 3)
    assert await bench.fails() == (
        f"endpoint e cannot be reached at {ADDRESS} after 3 attempts (no route): check endpoints.e.base_url and the "
        "network"
    )
    assert (bench.lost, bench.ledger.uncertain) == ([], 0.0)
    bench = Bench(GOOD, *[Unreachable("no route")] * 3)
    await bench.buy()
    assert await bench.buy() == Failure("k", "unreachable", "no route (attempt 3 of 3)")


async def test_an_address_without_an_api() -> None:
    told = (
        f"endpoint e ({ADDRESS}) has no chat completions API: check endpoints.e.base_url (it often ends in /v1) "
        "[a page]"
    )
    bench = Bench(Elsewhere("a page"), Elsewhere("a page"))
    assert await bench.fails() == told
    assert await Bench(Elsewhere("a page"), max_attempts=1).fails() == told
    bench = Bench(GOOD, *[Elsewhere("a page")] * 3)
    await bench.buy()
    assert await bench.buy() == Failure("k", "garbled answer", "a page (attempt 3 of 3)")
    bench = Bench(Elsewhere("a page"), GOOD)
    assert isinstance(await bench.buy(), Completion), "once may be a gateway in between"


# -- rate limits ------------------------------------------------------------------------------------------------------


async def test_a_429_is_waited_for_and_is_no_attempt() -> None:
    limit = RateLimited(7.0, "slow")
    bench = Bench(*[limit] * 5, GOOD, max_attempts=1)
    assert isinstance(await bench.buy(), Completion)
    assert bench.stats.rate_limited == 5
    assert bench.stats.retried == 0
    assert bench.events[0] == Event("rate_limited", "k", "teacher", "slow", 7.0)
    assert [event.seconds for event in bench.events] == [7.0] * 5
    assert bench.slept[0] == 7.0
    assert bench.ledger.spent == pytest.approx(0.00105)
    bench = Bench(RateLimited(1.0, "slow", {"requests": ReportedLimit(6, 6)}), GOOD)
    await bench.buy()
    assert bench.sender.limiter.allowed_per_minute == pytest.approx(6.0)
    bench = Bench(RateLimited(None, "slow"), RateLimited(None, "slow"), GOOD)
    await bench.buy()
    assert [event.seconds for event in bench.events] == [0.5, 1.0]


async def test_a_429_is_an_answer() -> None:
    bench = Bench(RateLimited(1.0), *[Unreachable("no route")] * 3)
    assert await bench.buy() == Failure("k", "unreachable", "no route (attempt 3 of 3)")


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_refusals_of_one_call_and_of_all() -> None:
    bench = Bench(Rejected("rejected by the endpoint", "too long"), Rejected("reply too large", "big", answered=True))
    assert await bench.buy() == Failure("k", "rejected by the endpoint", "too long")
    assert bench.lost == []
    assert await bench.buy() == Failure("k", "reply too large", "big")
    assert bench.lost == [pytest.approx(WORST)], "it was answered, so it may be billed"
    bench = Bench(Refused("key", "wrong"))
    assert await bench.fails() == (
        f"endpoint e ({ADDRESS}) needs a key: name its environment variable in endpoints.e.api_key_env [wrong]"
    )
    # Only words: believed of a single call, but not once the endpoint has answered such a call.
    unsure = Refused("model", "no such model", sure=False)
    assert await Bench(unsure).fails() == (
        f"endpoint e ({ADDRESS}) has no model 'm': check endpoints.e.model [no such model]"
    )
    bench = Bench(GOOD, unsure)
    await bench.buy()
    assert await bench.buy() == Failure("k", "rejected by the endpoint", "no such model")
    # Without a reason: five of them.
    bench = Bench(*[Rejected("rejected by the endpoint", "no", of_its_own=False)] * 5)
    assert [await bench.buy() for _ in range(4)] == [Failure("k", "rejected by the endpoint", "no")] * 4
    assert (await bench.fails()).endswith("with extra_body [rejected by the endpoint: no]")


async def test_the_length_limits_other_name_is_tried() -> None:
    bench = Bench(Refused("parameter", "Unsupported parameter: 'max_tokens'"), GOOD, GOOD)
    assert isinstance(await bench.buy(), Completion)
    assert [{*body} & {"max_tokens", "max_completion_tokens"} for body in bench.asked] == [
        {"max_tokens"},
        {"max_completion_tokens"},
    ]
    assert len(bench.said) == 1
    await bench.buy()
    assert "max_completion_tokens" in bench.asked[2]
    assert (bench.slept, bench.events) == ([], [])


# -- outages ----------------------------------------------------------------------------------------------------------


async def test_an_outage_is_waited_for_and_then_given_up() -> None:
    lost = Transient("connection lost", "gone")
    bench = Bench(GOOD, lost, lost, *[Unreachable("no route")] * 3, GOOD, breaker_failures=2)
    await bench.buy()
    assert isinstance(await bench.buy(), Completion)
    # One backoff; then probes, after 1, 2, 4 and 8 s.
    assert bench.slept == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert [event.detail for event in bench.events] == ["connection lost: gone"] * 2 + ["unreachable: no route"] * 3
    assert [event.seconds for event in bench.events] == [0.5, 0.0, 0.0, 0.0, 0.0]
    assert bench.stats.retried == 1
    bench = Bench(GOOD, *[Unreachable("no route")] * 99, breaker_failures=1, outage_timeout_s=200.0)
    await bench.buy()
    assert await bench.fails() == (
        f"endpoint e ({ADDRESS}) has been down for 4 min (unreachable: no route): its earlier answers are stored; when "
        "it is back, run the same command"
    )


async def test_a_caller_with_another_endpoint_does_not_wait_for_this_one() -> None:
    bench = Bench(GOOD, Unreachable("no route"), breaker_failures=1)
    await bench.buy()
    bench.attempt = Attempt(patient=False)
    assert await bench.buy() == Failure("k", DOWN, "unreachable: no route (down for 0 s)")
    assert DOWN == "endpoint is down"


async def test_a_probe_answered_with_an_error_uses_an_attempt() -> None:
    error = Transient("server error", "x", status=500)
    bench = Bench(GOOD, *[error] * 3, breaker_failures=1)
    await bench.buy()
    assert await bench.buy() == Failure("k", "server error", "x (attempt 3 of 3)")


# -- what may not go on -----------------------------------------------------------------------------------------------


async def test_nothing_is_sent_after_an_answer_that_could_not_be_stored() -> None:
    bench = Bench(GOOD, GOOD)

    async def full(completion: Completion) -> None:
        raise InfrastructureError("no space")

    with pytest.raises(InfrastructureError, match="no space"):
        await bench.sender.buy("k", CALL, bench.attempt, full)
    assert await bench.fails(InfrastructureError) == "no space"
    assert len(bench.asked) == 1
    bench = Bench(Transient("timed out", "x"), GOOD)

    async def unrecorded(usd: float) -> None:
        raise InfrastructureError("no space for the doubt")

    bench.attempt = Attempt(lose=unrecorded)
    assert await bench.fails(InfrastructureError) == "no space for the doubt"
    bench.attempt = Attempt()
    assert await bench.fails(InfrastructureError) == "no space for the doubt"
    assert len(bench.asked) == 1


async def test_a_fault_of_this_machine_costs_nothing() -> None:
    bench = Bench(GOOD, Unreachable("x"), InfrastructureError("no descriptors"), GOOD, breaker_failures=1)
    await bench.buy()
    assert await bench.fails(InfrastructureError) == "no descriptors"
    assert (bench.lost, bench.ledger.uncertain) == ([], 0.0)
    assert isinstance(await bench.buy(), Completion), "the probe was given back"


async def test_a_call_that_nobody_wants_is_not_sent_again() -> None:
    bench = Bench(Transient("server error", "x", status=500), GOOD)
    bench.attempt = Attempt(wanted=lambda: False, lose=bench.lose)
    with pytest.raises(asyncio.CancelledError):
        await bench.buy()
    assert len(bench.asked) == 1
    assert not bench.attempt.committed
    assert bench.stats.in_flight == 0


async def test_a_cancelled_request_may_be_billed() -> None:
    bench = Bench(asyncio.CancelledError(), GOOD)
    with pytest.raises(asyncio.CancelledError):
        await bench.buy()
    assert bench.lost == [pytest.approx(WORST)]
    assert isinstance(await bench.buy(), Completion)


async def test_how_many_calls_are_in_flight() -> None:
    bench = Bench(max_concurrency=5, proxies=2)
    inside, most, gate = 0, 0, asyncio.Event()

    async def chat(body: dict[str, Any]) -> Reply:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await gate.wait()
        inside -= 1
        return GOOD

    bench.sender._transport.chat = chat  # type: ignore[method-assign]
    calls = [asyncio.create_task(bench.sender.buy("k", CALL, Attempt(), bench.keep)) for _ in range(6)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert inside == 3, "its share of five, rounded up"
    gate.set()
    assert all(isinstance(one, Completion) for one in await asyncio.gather(*calls))
    assert most == 3


# -- batches ----------------------------------------------------------------------------------------------------------

BATCH = Call(CALL.messages, 1000, role="teacher", batch=True)


class Queue:
    """A batch queue that answers by a script."""

    def __init__(self, *script: Any, holds: bool = False, fails: bool = False) -> None:
        self.script, self.held, self.fails = list(script), holds, fails
        self.asked: list[Any] = []
        self.settled_with: list[Any] = []

    def unsettled(self, key: str) -> bool:
        return self.fails

    def shipped(self, key: str) -> bool:
        return key == "k" and bool(self.asked)

    async def chat(self, key: str, body: dict[str, Any], *, live: bool, wanted: Callable[[], bool]) -> Reply:
        assert wanted()
        self.asked.append((key, "max_tokens" in body, live))
        result = self.script.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    async def holds(self, key: str) -> bool:
        return self.held

    async def settled(self, key: str, lost: NotDone) -> None:
        self.settled_with.append((key, lost))


async def test_a_batch_that_failed_here_and_may_exist_keeps_its_reservation() -> None:
    queue = Queue(InfrastructureError("the disk"), fails=True)
    bench = Bench(batches=lambda: queue)
    with pytest.raises(InfrastructureError, match="the disk"):
        await bench.buy(BATCH)
    worst = bench.ledger.uncertain
    assert worst > 0
    assert (bench.lost, bench.ledger.spent) == ([], 0)
    assert bench.ledger._reserved == pytest.approx(0)


async def test_a_call_that_nobody_wants_any_more_goes_into_no_further_batch() -> None:
    queue = Queue(NotDone("no"), GOOD)
    bench = Bench(batches=lambda: queue)
    bench.attempt.wanted = lambda: len(queue.asked) == 0
    with pytest.raises(asyncio.CancelledError):
        await bench.buy(BATCH)
    assert len(queue.asked) == 1
    assert bench.ledger.spent == 0


async def test_a_call_through_a_batch() -> None:
    queue = Queue(GOOD)
    bench = Bench(batches=lambda: queue)
    found = await bench.buy(BATCH)
    assert found == bought(seconds=0.0, usd=pytest.approx(0.00105 / 2))  # type: ignore[arg-type]
    assert (bench.kept, queue.asked, bench.asked) == ([found], [("k", True, False)], [])
    assert bench.attempt.committed
    assert bench.attempt.shipped()
    assert bench.ledger.spent == pytest.approx(0.00105 / 2)
    # A live call goes to the endpoint itself, and so does a batch call of an endpoint without batches.
    live = Bench(GOOD, batches=lambda: queue)
    await live.buy()
    assert len(live.asked) == 1
    none = Bench(GOOD)
    await none.buy(BATCH)
    assert len(none.asked) == 1


async def test_a_batch_without_an_answer_is_followed_by_another() -> None:
    queue = Queue(NotDone("expired"), GOOD)
    bench = Bench(batches=lambda: queue)
    assert isinstance(await bench.buy(BATCH), Completion)
    assert bench.events == [Event("retried", "k", "teacher", "expired")]
    assert (bench.lost, queue.settled_with) == ([], [])
    queue = Queue(*[NotDone("expired")] * 9)
    bench = Bench(batches=lambda: queue)
    found = await bench.buy(BATCH)
    rounds = 9 - len(queue.script)
    assert rounds > 1
    assert found == Failure("k", "not done by batches", f"expired ({rounds} batches)")


async def test_what_a_batch_may_have_billed_is_recorded_first() -> None:
    left = NotDone("lost", billed=True)
    queue = Queue(left, GOOD)
    bench = Bench(batches=lambda: queue)
    await bench.buy(BATCH)
    assert bench.lost == [pytest.approx(WORST / 2)]
    assert queue.settled_with == [("k", left)]


async def test_leftovers_of_a_batch_are_sent_live() -> None:
    queue = Queue(NotDone("expired"))
    bench = Bench(GOOD, batches=lambda: queue, batch={"leftovers": "live"})
    assert isinstance(await bench.buy(BATCH), Completion)
    assert len(bench.asked) == 1
    holding = Queue(NotDone("expired"), GOOD, holds=True)
    bench = Bench(batches=lambda: holding, batch={"leftovers": "live"})
    assert isinstance(await bench.buy(BATCH), Completion)
    assert (len(holding.asked), bench.asked) == (2, [])


async def test_a_live_call_that_a_batch_holds_waits_for_it() -> None:
    queue = Queue(GOOD)

    async def before(key: str) -> Any:
        assert key == "k"
        return queue

    bench = Bench(bought_before=before)
    assert isinstance(await bench.buy(), Completion)
    assert (queue.asked, bench.asked) == ([("k", True, True)], [])
    gone = Queue(NotDone("expired"))

    async def lost(key: str) -> Any:
        return gone

    bench = Bench(GOOD, bought_before=lost)
    assert isinstance(await bench.buy(), Completion)
    assert len(bench.asked) == 1


async def test_refusals_of_a_batch() -> None:
    queue = Queue(
        Rejected("rejected by the endpoint", "too long"),
        Transient("garbled answer", "torn"),
        Refused("parameter", "Unsupported parameter: 'max_tokens'"),
        Refused("key", "wrong"),
    )
    bench = Bench(GOOD, batches=lambda: queue)
    assert await bench.buy(BATCH) == Failure("k", "rejected by the endpoint", "too long")
    assert await bench.buy(BATCH) == Failure("k", "garbled answer", "torn")
    assert isinstance(await bench.buy(BATCH), Completion), "sent live, under the field's other name"
    assert "max_completion_tokens" in bench.asked[0]
    assert (await bench.fails(call=BATCH)).startswith(f"endpoint e ({ADDRESS}) needs a key: ")
    assert bench.lost == []
