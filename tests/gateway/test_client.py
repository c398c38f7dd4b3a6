"""Every fault of an endpoint, over real HTTP, ends as the client's contract says, and nothing is bought twice."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import EndpointError, InfrastructureError
from lion_ray.gateway.calls import Completion, Failure, Outcome
from lion_ray.gateway.client import JOURNAL_REFRESH_S, Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.stats import Event
from tests.gateway.support import ACCOUNT, ManualTime, QuickTime, call, completion
from tests.stub_api import Rule, StubAPI

Connect = Callable[..., Client]
CANARY = "sk-canary-5f1c09e7"


def bought(outcome: Outcome) -> Completion:
    assert isinstance(outcome, Completion), outcome
    return outcome


def failed(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


async def test_an_answer_says_who_gave_it(stub: StubAPI, connect: Connect) -> None:
    client = connect()
    answer = bought(await client.complete(call("Name a river.")))
    assert answer.text == stub.answer(stub.requests[0]).text
    assert (answer.model, answer.endpoint, answer.finish_reason) == ("stub-model-0001", "default", "stop")
    assert (answer.prompt_tokens, answer.cached_tokens) == (3, 1)
    assert answer.completion_tokens == len(answer.text.split())
    assert answer.key == call("Name a river.").key("stub-model")
    assert not answer.replayed
    stats = client.stats
    assert (stats.sent, stats.completed, stats.in_flight, stats.waiting) == (1, 1, 0, 0)
    assert (stats.prompt_tokens, stats.completion_tokens) == (3, answer.completion_tokens)
    for thing in (answer, stats, Failure("k", "r", "d")):
        assert pickle.loads(pickle.dumps(thing)) == thing


async def test_the_body_is_the_endpoints_own(stub: StubAPI, connect: Connect) -> None:
    schema = {"title": "two scores", "type": "object"}
    asked = call("Judge.", seed=7, json_schema=schema)
    plain = bought(await connect().complete(asked))
    assert not stub.requests[0].keys() & {"seed", "json_schema", "response_format", "max_completion_tokens"}
    assert stub.requests[0]["max_tokens"] == 64
    assert plain.key == call("Judge.").key("stub-model")

    settings = {"send_seed": True, "json_schema": True, "max_tokens_field": "max_completion_tokens"}
    rich = bought(await connect(settings).complete(asked))
    assert rich.key == asked.key("stub-model")
    assert stub.requests[1] == {
        "model": "stub-model",
        "messages": [{"role": "user", "content": "Judge."}],
        "max_completion_tokens": 64,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 7,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "two_scores", "schema": schema, "strict": True},
        },
    }


# --- nothing is bought twice


async def test_a_reopened_journal_buys_nothing_again(stub: StubAPI, connect: Connect, tmp_path: Path) -> None:
    calls = [call(f"Question {n}") for n in range(20)]
    first = await asyncio.gather(*map(connect().complete, calls))
    again = Journal.open(str(tmp_path / "journal"))
    client = connect(journal=again)
    second = await asyncio.gather(*map(client.complete, [replace(c, role="generator") for c in calls]))
    assert second == [replace(bought(answer), replayed=True) for answer in first]
    assert (client.stats.sent, client.stats.replayed) == (0, 20)
    assert (stub.stats()["total"], stub.stats()["repeated"]) == (20, {})
    await again.close()


async def test_the_same_call_under_way_is_shared(stub: StubAPI, connect: Connect) -> None:
    stub.gate.clear()
    client = connect()
    tasks = [asyncio.create_task(client.complete(call("Same."))) for _ in range(5)]
    other = asyncio.create_task(client.complete(call("Same.", ordinal=1)))
    await stub.until(lambda stats: stats["in_flight"] == 2)
    # One that goes away takes nothing from the others.
    tasks[0].cancel()
    stub.gate.set()
    answers = [bought(answer) for answer in await asyncio.gather(*tasks[1:])]
    assert len({answer.text for answer in answers}) == 1
    assert all(answer.replayed for answer in answers)
    assert not bought(await other).replayed
    assert stub.stats()["total"] == 2
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_an_answer_whose_caller_left_is_still_journaled(stub: StubAPI, connect: Connect, tmp_path: Path) -> None:
    stub.gate.clear()
    client = connect()
    task = asyncio.create_task(client.complete(call("Paid for.")))
    await stub.until(lambda stats: stats["in_flight"] == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stub.gate.set()
    await client.close()
    assert call("Paid for.").key("stub-model") in Journal.open(str(tmp_path / "journal"))
    assert stub.stats()["completed"] == 1


async def test_a_call_that_nobody_waits_for_any_more_is_not_sent(stub: StubAPI, connect: Connect) -> None:
    stub.gate.clear()
    client = connect({"max_concurrency": 1})
    first = asyncio.create_task(client.complete(call("One.")))
    await stub.until(lambda stats: stats["in_flight"] == 1)
    second = asyncio.create_task(client.complete(call("Two.")))
    await asyncio.sleep(0)
    assert client.stats.waiting == 1
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    stub.gate.set()
    await first
    assert not bought(await client.complete(call("Two."))).replayed
    assert stub.stats()["total"] == 2


async def test_a_call_that_another_run_bought_while_it_waited_is_not_sent(
    stub: StubAPI, connect: Connect, tmp_path: Path
) -> None:
    stub.gate.clear()
    time = QuickTime()
    mine, others = (Journal.open(str(tmp_path / "shared"), clock=time.clock) for _ in range(2))
    client = connect({"max_concurrency": 1}, journal=mine)
    first, second = (asyncio.create_task(client.complete(call(text))) for text in ("One.", "Two."))
    await stub.until(lambda stats: stats["in_flight"] == 1)
    await others.put(replace(completion(2), key=call("Two.").key("stub-model")), ACCOUNT)
    time.now += JOURNAL_REFRESH_S
    stub.gate.set()
    assert not bought(await first).replayed
    assert bought(await second).text == completion(2).text
    assert stub.stats()["total"] == 1
    await mine.close()
    await others.close()


class Blocked(Journal):
    """Cannot flush to the disk until it is let."""

    entered: threading.Event
    release: threading.Event

    def _sync(self, fd: int) -> None:
        self.entered.set()
        self.release.wait()
        super()._sync(fd)


def blocked(folder: Path) -> Blocked:
    journal = Blocked.open(str(folder))
    assert isinstance(journal, Blocked)
    journal.entered, journal.release = threading.Event(), threading.Event()
    return journal


async def test_an_answer_is_seen_only_once_it_is_durable(stub: StubAPI, connect: Connect, tmp_path: Path) -> None:
    journal = blocked(tmp_path / "blocked")
    task = asyncio.create_task(connect(journal=journal).complete(call("Slow disk.")))
    await asyncio.to_thread(journal.entered.wait)
    assert stub.stats()["completed"] == 1
    assert not task.done()
    journal.release.set()
    assert bought(await task).key in Journal.open(str(tmp_path / "blocked"))
    await journal.close()


async def test_what_is_not_durable_yet_counts_as_in_flight(stub: StubAPI, connect: Connect, tmp_path: Path) -> None:
    # So that a machine that dies loses no more answers than max_concurrency.
    journal = blocked(tmp_path / "blocked")
    client = connect({"max_concurrency": 2}, journal=journal)
    tasks = [asyncio.create_task(client.complete(call(f"Question {n}"))) for n in range(6)]
    await asyncio.to_thread(journal.entered.wait)
    await stub.until(lambda stats: stats["completed"] == 2)
    for _ in range(50):
        await asyncio.sleep(0)
    assert stub.stats()["total"] == 2
    journal.release.set()
    assert len({bought(outcome).key for outcome in await asyncio.gather(*tasks)}) == 6
    await journal.close()


class Refusing(Journal):
    """On a full disk."""

    def _sync(self, fd: int) -> None:
        raise OSError(28, "No space left on device")


async def test_an_answer_that_cannot_be_journaled_is_not_given(stub: StubAPI, connect: Connect, tmp_path: Path) -> None:
    journal = Refusing.open(str(tmp_path / "full"))
    client = connect(journal=journal)
    with pytest.raises(InfrastructureError, match=r"full/.*No space left on device"):
        await client.complete(call("Lost?"))
    assert (client.stats.completed, client.stats.in_flight, client.stats.waiting) == (0, 0, 0)
    await journal.close()


async def test_what_cannot_be_kept_is_not_bought(stub: StubAPI, connect: Connect, tmp_path: Path) -> None:
    journal = Refusing.open(str(tmp_path / "full"))
    client = connect({"max_concurrency": 2}, journal=journal)
    tasks = [asyncio.create_task(client.complete(call(f"Question {n}"))) for n in range(20)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, InfrastructureError) for outcome in outcomes)
    assert stub.stats()["total"] <= 2 + 1, "those in flight, and one that was being let through"
    assert (client.stats.in_flight, client.stats.waiting) == (0, 0)
    await journal.close()


# --- flow


async def test_at_most_max_concurrency_requests_are_in_flight(stub: StubAPI, connect: Connect) -> None:
    stub.gate.clear()
    client = connect({"max_concurrency": 3})
    tasks = [asyncio.create_task(client.complete(call(f"Question {n}"))) for n in range(12)]
    await stub.until(lambda stats: stats["in_flight"] == 3)
    assert (client.stats.in_flight, client.stats.waiting) == (3, 9)
    stub.gate.set()
    await asyncio.gather(*tasks)
    assert stub.stats()["max_in_flight"] == 3
    assert stub.stats()["completed"] == 12


async def test_close_brings_home_what_was_sent_and_ends_the_rest(stub: StubAPI, connect: Connect) -> None:
    stub.gate.clear()
    client = connect({"max_concurrency": 1})
    sent = asyncio.create_task(client.complete(call("One.")))
    await stub.until(lambda stats: stats["in_flight"] == 1)
    queued = asyncio.create_task(client.complete(call("Two.")))
    await asyncio.sleep(0)
    assert client.stats.waiting == 1
    closing = asyncio.create_task(client.close())
    with pytest.raises(InfrastructureError, match="closed"):
        await queued
    stub.gate.set()
    await closing
    assert bought(await sent).text
    with pytest.raises(InfrastructureError, match="closed"):
        await client.complete(call("Three."))
    assert stub.stats()["total"] == 1


# --- 429: a pause, never a lost row


@pytest.mark.parametrize("header", ["30", "date:30"])
async def test_retry_after_pauses_every_call_in_full(stub: StubAPI, connect: Connect, header: str) -> None:
    stub.rules = [Rule("429", times=1, retry_after=header)]
    clock = ManualTime()
    client = connect({"max_attempts": 1}, clock=clock.clock, sleep=clock.sleep)
    limited = asyncio.create_task(client.complete(call("One.")))
    await clock.until_asleep(1)
    other = asyncio.create_task(client.complete(call("Two.")))
    assert client.stats.paused_s == 30
    clock.advance(29.9)
    assert clock.asleep == 1
    assert stub.stats()["total"] == 1
    clock.advance(0.1)
    while not (limited.done() and other.done()):  # they go one after the other, at the rate that the 429 left
        clock.advance(0.1)
        await asyncio.sleep(0)
    assert bought(await limited).text
    assert bought(await other).text
    assert (client.stats.rate_limited, client.stats.retried, client.stats.failed) == (1, 0, 0)
    assert stub.stats()["total"] == 3


async def test_a_429_without_a_header_backs_off_and_gives_no_row_up(stub: StubAPI, connect: Connect) -> None:
    stub.rules = [Rule("429", times=9, per_body=True)]
    clock = QuickTime()
    pauses: list[float] = []

    def heard(event: Event) -> None:
        pauses.extend([event.seconds] if event.kind == "rate_limited" else [])

    settings = {"max_attempts": 1, "max_backoff_s": 8, "max_concurrency": 1}
    client = connect(settings, clock=clock.clock, sleep=clock.sleep, on_event=heard)
    answers = await asyncio.gather(*(client.complete(call(f"Question {n}")) for n in range(3)))
    assert all(bought(answer).text for answer in answers)
    assert client.stats.rate_limited == len(pauses) == 27
    for number, pause in enumerate(pauses):
        longest = min(8, 0.5 * 2 ** (number % 9))
        assert longest / 2 <= pause <= longest
    # Every pause was slept in full, and then the rate that the 429s left.
    assert clock.now >= sum(pauses)


# --- faults that pass, and faults that do not


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "server error"),
        ("503", "server error"),
        ("close", "garbled answer"),
        ("garbage", "garbled answer"),
        ("no_choices", "server error"),  # its error says 502
        ("drop", "connection lost"),
    ],
)
async def test_a_passing_fault_is_tried_again_and_a_lasting_one_is_a_row_with_a_reason(
    stub: StubAPI, connect: Connect, tmp_path: Path, fault: str, reason: str
) -> None:
    stub.rules = [Rule(fault, contains="passing", times=2), Rule(fault, contains="lasting")]
    clock = QuickTime()
    events: list[Event] = []
    client = connect({"max_attempts": 3}, clock=clock.clock, sleep=clock.sleep, on_event=events.append)
    assert bought(await client.complete(call("a passing fault"))).text
    failure = failed(await client.complete(call("a lasting fault")))
    assert failure.reason == reason
    assert failure.detail
    assert "\n" not in failure.detail
    assert [event.kind for event in events] == ["retried", "retried", "completed", "retried", "retried", "failed"]
    assert (client.stats.sent, client.stats.retried, client.stats.failed) == (6, 4, 1)
    for pause, longest in zip(clock.slept, [0.5, 1, 0.5, 1], strict=True):
        assert longest / 2 <= pause <= longest
    # A failure is not journaled: the next run tries it again.
    stub.rules = []
    again = Journal.open(str(tmp_path / "journal"))
    assert len(again) == 1
    assert not bought(await connect(journal=again).complete(call("a lasting fault"))).replayed
    await again.close()


async def test_an_endpoint_that_hangs_is_left_after_the_time_for_one_attempt(stub: StubAPI, connect: Connect) -> None:
    stub.rules = [Rule("hang")]
    clock = QuickTime()
    client = connect({"max_attempts": 2, "timeout_s": 0.1}, clock=clock.clock, sleep=clock.sleep)
    assert failed(await client.complete(call("Hello?"))).reason == "timed out"
    # The second of two attempts may be cut before the server has read it.
    assert (client.stats.sent, client.stats.retried) == (2, 1)
    stub.rules = []
    assert bought(await connect().complete(call("Hello?")))


async def test_a_server_error_that_names_a_pause_gets_it(stub: StubAPI, connect: Connect) -> None:
    stub.rules = [Rule("503", times=1, retry_after="120")]
    clock = QuickTime()
    assert bought(await connect(clock=clock.clock, sleep=clock.sleep).complete(call("Busy?")))
    assert clock.slept == [120]


@pytest.mark.parametrize(("fault", "finish"), [("empty", "stop"), ("length", "length"), ("content_filter",) * 2])
async def test_what_was_paid_for_is_a_completion_however_it_ended(
    stub: StubAPI, connect: Connect, journal: Journal, fault: str, finish: str
) -> None:
    stub.rules = [Rule(fault)]
    answer = bought(await connect().complete(call("Say something.")))
    assert answer.finish_reason == finish
    assert (answer.text == "") == (fault == "empty")
    assert answer.key in journal
    assert stub.stats()["total"] == 1


async def test_a_request_that_is_at_fault_itself_is_a_failure_at_once(stub: StubAPI, connect: Connect) -> None:
    stub.rules = [Rule("400", contains="too long")]
    client = connect()
    failure = failed(await client.complete(call("too long")))
    assert failure.reason == "rejected by the endpoint"
    assert "maximum context length" in failure.detail
    assert bought(await client.complete(call("short")))
    assert stub.stats()["total"] == 2


async def test_text_that_has_no_canonical_form_is_a_failure_and_is_not_sent(stub: StubAPI, connect: Connect) -> None:
    failure = failed(await connect().complete(call("half a pair: \ud83e")))
    assert failure.reason == "not valid text"
    assert stub.stats()["total"] == 0


# --- what the endpoint refuses to everyone


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("401", "refuses the key in LION_TEST_KEY"),
        ("404", "has no model 'stub-model': check endpoints.default.model"),
        ("quota", "account has no credit"),
    ],
)
async def test_a_refusal_is_one_line_that_says_what_to_do(
    stub: StubAPI, connect: Connect, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    monkeypatch.setenv("LION_TEST_KEY", CANARY)
    stub.rules = [Rule(fault)]
    client = connect({"api_key_env": "LION_TEST_KEY"})
    with pytest.raises(EndpointError) as caught:
        await client.complete(call("Hello?"))
    message = str(caught.value)
    assert told in message
    assert f"default ({stub.base_url})" in message
    assert "\n" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    assert stub.stats()["total"] == 1


async def test_a_wrong_path_is_told_from_a_wrong_model(stub: StubAPI, connect: Connect) -> None:
    client = connect(base_url=stub.base_url.removesuffix("/v1"))
    with pytest.raises(EndpointError, match=r"check endpoints.default.base_url \(it often ends in /v1\)"):
        await client.complete(call("Hello?"))


async def test_an_endpoint_that_asks_for_a_key_it_was_not_given(stub: StubAPI, connect: Connect) -> None:
    stub.api_key = CANARY
    with pytest.raises(EndpointError, match="needs a key: name its environment variable"):
        await connect().complete(call("Hello?"))


@pytest.mark.parametrize("value", [None, "", "  \n"])
async def test_a_missing_key_is_named_before_anything_is_sent(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("LION_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("LION_TEST_KEY", value)
    with pytest.raises(EndpointError, match="set the environment variable LION_TEST_KEY"):
        connect({"api_key_env": "LION_TEST_KEY"})


@pytest.mark.parametrize("value", ["sk-one sk-two", "sk-schlüssel", "sk-a\nb"])
async def test_a_key_that_cannot_be_one_is_named_but_not_shown(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LION_TEST_KEY", value)
    with pytest.raises(EndpointError, match="LION_TEST_KEY holds characters") as caught:
        connect({"api_key_env": "LION_TEST_KEY"})
    assert "sk-" not in str(caught.value)


async def test_nobody_there(connect: Connect) -> None:
    with socket.socket() as held:
        # Bound but not listening: nobody else can take the port, and connections are refused.
        held.bind(("127.0.0.1", 0))
        clock = QuickTime()
        client = connect(
            {"max_attempts": 3},
            base_url=f"http://user:{CANARY}@127.0.0.1:{held.getsockname()[1]}/v1",
            clock=clock.clock,
            sleep=clock.sleep,
        )
        with pytest.raises(EndpointError, match=r"cannot be reached at http://127.0.0.1:\d+/v1 after 3 attempts"):
            await client.complete(call("Hello?"))
        assert (client.stats.sent, len(clock.slept)) == (3, 2)


async def test_an_endpoint_that_goes_away_costs_rows_not_the_run(stub: StubAPI, connect: Connect) -> None:
    clock = QuickTime()
    client = connect({"max_attempts": 2}, clock=clock.clock, sleep=clock.sleep)
    assert bought(await client.complete(call("Here?")))
    await stub.stop()
    assert failed(await client.complete(call("Still here?"))).reason == "unreachable"


async def test_an_address_that_is_none(connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"'api\.example\.com/v1' is not a valid address"):
        connect(base_url="api.example.com/v1")


async def test_a_served_endpoint_is_never_taken_for_the_public_one(journal: Journal) -> None:
    config = EndpointConfig.model_validate({"model": "m", "api_key_env": None, "serve": {"model": "m"}})
    with pytest.raises(ValueError, match="base_url is required"):
        Client("default", config, journal)


# --- keys


@pytest.mark.parametrize("fault", ["401", "garbage", "429", "500", "404", "quota", "drop", "close", "400", "hang"])
async def test_the_key_shows_up_nowhere(
    stub: StubAPI,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("LION_TEST_KEY", CANARY)
    stub.api_key = CANARY  # proves that the key does arrive
    stub.rules = [Rule(fault, contains="faulty", times=2)]
    clock = QuickTime()
    seen: list[object] = []
    settings = {"api_key_env": "LION_TEST_KEY", "max_attempts": 2}
    client = connect(
        settings | ({"timeout_s": 0.1} if fault == "hang" else {}),
        clock=clock.clock,
        sleep=clock.sleep,
        on_event=seen.append,
    )
    try:
        seen.append(await client.complete(call("faulty")))
    except EndpointError as error:
        chain: BaseException | None = error
        while chain is not None:
            seen += [repr(chain), str(chain), vars(chain)]
            chain = chain.__cause__ or chain.__context__
    assert bought(await connect(settings).complete(call("fine")))
    seen += [repr(client), repr(client._transport), client.stats, client.config, caplog.text]
    assert CANARY not in repr(seen)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()
