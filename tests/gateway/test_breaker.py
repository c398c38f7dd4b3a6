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
        breaker.failed("server error", breaker.probe)
    return breaker


def test_errors_in_a_row_open_it_and_others_do_not() -> None:
    breaker = Breaker(3, clock=Time().clock)
    breaker.succeeded()
    for _ in range(10):
        breaker.failed("server error", breaker.probe)
        breaker.failed("server error", breaker.probe)
        breaker.succeeded()
    assert not breaker.open


def test_an_endpoint_that_never_answered_is_not_waited_for() -> None:
    breaker = Breaker(3, clock=Time().clock)
    for _ in range(10):
        breaker.failed("unreachable", 0)
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
        breaker.failed("server error", breaker.probe)
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
        breaker.failed("server error", 0)
    assert breaker.wait_s() == wait


def test_errors_of_calls_that_were_out_already_let_no_second_probe_go() -> None:
    time = Time()
    breaker = opened(time)
    time.now += breaker.wait_s()
    assert breaker.wait_s() == 0.0
    probe = breaker.probe
    for _ in range(50):
        breaker.failed("server error", 0)
        breaker.abandoned(0)
        assert breaker.wait_s() > 0.0, "the probe is still out"
    breaker.failed("server error", probe)
    assert breaker.wait_s() == 2 * FIRST_PAUSE_S


def test_a_probe_of_an_earlier_outage_is_not_taken_for_this_ones() -> None:
    time = Time()
    breaker = opened(time)
    time.now += breaker.wait_s()
    assert breaker.wait_s() == 0.0
    old = breaker.probe
    breaker.succeeded()  # by a call that was out before
    for _ in range(3):
        breaker.failed("server error", 0)
    time.now += breaker.wait_s()
    assert breaker.wait_s() == 0.0
    breaker.failed("server error", old)
    assert breaker.wait_s() > 0.0
    assert breaker.probe != old


def test_a_probe_that_was_never_sent_leaves_its_place() -> None:
    time = Time()
    breaker = opened(time)
    time.now += breaker.wait_s()
    assert breaker.wait_s() == 0.0
    breaker.abandoned(breaker.probe)
    assert breaker.wait_s() == 0.0
