"""The circuit breaker, in a time that the test moves."""

from __future__ import annotations

from lion_ray.gateway.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker


class Time:
    now = 0.0

    def clock(self) -> float:
        return self.now


def opened(time: Time) -> Breaker:
    breaker = Breaker(3, clock=time.clock)
    breaker.succeeded()
    for _ in range(3):
        assert breaker.wait_s() == 0.0
        breaker.failed("server error")
    return breaker


def test_errors_in_a_row_open_it_and_others_do_not() -> None:
    breaker = Breaker(3, clock=Time().clock)
    breaker.succeeded()
    for _ in range(10):
        breaker.failed("server error")
        breaker.failed("server error")
        breaker.succeeded()
    assert not breaker.open


def test_an_endpoint_that_never_answered_is_not_waited_for() -> None:
    breaker = Breaker(3, clock=Time().clock)
    for _ in range(10):
        breaker.failed("unreachable")
    assert not breaker.open
    assert breaker.wait_s() == 0.0


def test_one_probe_at_a_time_at_growing_distances() -> None:
    time = Time()
    breaker = opened(time)
    pauses = []
    for _ in range(9):
        assert breaker.open
        pauses.append(breaker.wait_s())
        time.now += pauses[-1]
        assert breaker.wait_s() == 0.0, "the probe"
        assert breaker.wait_s() > 0.0, "nobody else"
        breaker.failed("server error")
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert breaker.down_s == time.now


def test_an_answer_closes_it() -> None:
    time = Time()
    breaker = opened(time)
    time.now += breaker.wait_s()
    assert breaker.wait_s() == 0.0
    breaker.succeeded()
    assert not breaker.open
    assert breaker.down_s == 0.0
    assert [breaker.wait_s() for _ in range(5)] == [0.0] * 5


def test_errors_of_calls_that_were_out_already_do_not_put_the_probe_off() -> None:
    time = Time()
    breaker = opened(time)
    wait = breaker.wait_s()
    for _ in range(50):
        breaker.failed("server error")
    assert breaker.wait_s() == wait


def test_a_probe_that_was_never_sent_leaves_its_place() -> None:
    time = Time()
    breaker = opened(time)
    time.now += breaker.wait_s()
    assert breaker.wait_s() == 0.0
    breaker.abandoned()
    assert breaker.wait_s() == 0.0
