from __future__ import annotations

import random

import pytest

from transforms.tei.endpoint import LONGEST_REST, Backoff, CircuitBreaker, GiveUpTimer
from transforms.tei.errors import EndpointUnreachable


def health() -> CircuitBreaker:
    return CircuitBreaker(Backoff(random.Random(0)))


def test_one_failure_stops_nobody() -> None:
    one = health()
    one.failed(sent_at=0, now=1)
    assert one.admits(1, in_flight=100)


def test_failures_of_requests_that_were_under_way_together_are_one() -> None:
    one = health()
    for _ in range(16):
        one.failed(sent_at=0, now=1)
    assert one.failures == 1
    assert one.generation == 16


def test_an_endpoint_that_fails_again_rests_longer_each_time_and_is_then_asked_by_one() -> None:
    one, now, rests = health(), 0.0, []
    for _ in range(12):
        one.failed(sent_at=now, now=now)
        rests.append(one.quiet_until - now)
        assert not one.admits(now, 0) or one.failures == 1
        now = max(now, one.quiet_until)
    assert one.admits(now, in_flight=0)
    assert not one.admits(now, in_flight=1)
    assert rests[-1] <= LONGEST_REST
    assert rests[2] > 0.4


def test_a_success_ends_the_trouble() -> None:
    one = health()
    for now in range(5):
        one.failed(now, now)
    one.succeeded()
    assert one.admits(one.quiet_until, in_flight=100)


def test_a_success_ends_the_rest_but_not_the_silence_that_was_asked_for() -> None:
    for ends in (CircuitBreaker.succeeded, CircuitBreaker.objected):
        one = health()
        for now in range(5):
            one.failed(now, now)
        assert not one.admits(4, in_flight=0)
        ends(one)
        assert one.admits(4, in_flight=100)
        one.refused(now=5, first_of_round=True, retry_after=30)
        ends(one)
        assert not one.admits(34, in_flight=0)
        assert one.admits(35, in_flight=0)


def test_a_good_reply_ends_the_pause_after_a_refusal() -> None:
    one = health()
    one.refused(now=1, first_of_round=True)
    assert not one.admits(1, in_flight=1)
    one.succeeded()
    assert one.admits(1, in_flight=1)


def test_an_objection_shows_that_the_server_is_there() -> None:
    one = health()
    for now in range(5):
        one.failed(now, now)
    one.objected()
    assert one.admits(one.quiet_until, in_flight=100)


def test_what_a_gateway_asks_for_is_kept() -> None:
    one = health()
    one.failed(sent_at=0, now=1, retry_after=30)
    one.succeeded()
    assert not one.admits(30.9, 0)
    assert one.admits(31, 0)


def test_the_seconds_of_silence_are_counted_once() -> None:
    one = health()
    assert one.throttled(9) == 0
    one.refused(now=10, first_of_round=True, retry_after=5)
    assert one.throttled(10.5) == pytest.approx(0.5)
    one.refused(now=11, first_of_round=False, retry_after=5)
    assert one.throttled(15) == pytest.approx(4.5)
    assert not one.admits(15.9, 0)
    assert one.throttled(100) == pytest.approx(1)
    one.failed(sent_at=100, now=100, retry_after=2)
    assert one.throttled(200) == pytest.approx(2)


def test_a_pause_that_a_good_reply_ends_is_counted_as_long_as_it_was() -> None:
    one, counted = health(), 0.0
    for now in range(100):
        one.refused(now=now, first_of_round=True)
        counted += one.throttled(now + 0.01)
        one.succeeded()
        counted += one.throttled(now + 0.5)
    assert 0.5 < counted <= 1


def test_a_rest_from_failures_is_nobodys_wish() -> None:
    one = health()
    for now in range(5):
        one.failed(now, now)
    assert one.quiet_until > 4
    assert one.throttled(100) == 0


def test_jitter_doubles_up_to_its_bound() -> None:
    jitter = Backoff(random.Random(0))
    assert max(jitter.full(1, 8, 2) for _ in range(500)) == pytest.approx(4, rel=0.05)
    assert max(jitter.full(1, 8, 99) for _ in range(500)) <= 8
    assert min(jitter.half(1, 8, 3) for _ in range(500)) >= 4


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_patience_ends_after_so_long_without_a_success() -> None:
    clock = Clock()
    patience = GiveUpTimer(10, clock)
    for clock.now in (100.0, 105.0, 109.0):
        patience.failed(100.0, "http://tei", "refused")
    clock.now = 110.0
    with pytest.raises(EndpointUnreachable, match=r"http://tei.* 10 s .*refused"):
        patience.failed(109.5, "http://tei", "refused")


def test_a_success_or_idle_hours_are_not_held_against_the_endpoint() -> None:
    clock = Clock()
    patience = GiveUpTimer(10, clock)
    patience.failed(0.0, "http://tei", "refused")
    clock.now = 9.0
    patience.succeeded()
    clock.now = 9999.0
    patience.failed(9998.0, "http://tei", "refused")
