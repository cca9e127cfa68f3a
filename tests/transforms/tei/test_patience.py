from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from transforms.tei.endpoint import GiveUpTimer
from transforms.tei.errors import EndpointUnreachable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_ends_after_the_limit_without_a_success_and_not_before() -> None:
    clock = Clock()
    patience = GiveUpTimer(10, clock)
    patience.failed(100, "http://a", "refused")
    clock.now = 109.9
    patience.failed(109, "http://a", "refused")
    assert patience.left == pytest.approx(0.1)
    clock.now = 110
    with pytest.raises(EndpointUnreachable, match=r"http://a has succeeded for 10 s \(--give_up_after 10\).*refused"):
        patience.failed(109, "http://a", "refused")


def test_a_success_starts_it_anew() -> None:
    clock = Clock()
    patience = GiveUpTimer(10, clock)
    patience.failed(100, "http://a", "refused")
    patience.succeeded()
    clock.now = 500
    assert patience.left == 10
    patience.failed(499, "http://a", "refused")


def test_it_says_that_it_waits_more_and_more_rarely_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    patience = GiveUpTimer(600, clock)
    for _ in range(100):
        patience.failed(100, "http://a", "refused")
        clock.now += 1
    assert 4 <= len(caplog.messages) <= 7
    assert caplog.messages[0] == "no answer from http://a for 2 s (refused); waiting for 598 s more"
    patience.succeeded()
    assert caplog.messages[-1] == "the endpoint answers again, after 100 s"


def test_a_short_failure_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    patience = GiveUpTimer(600, clock)
    patience.failed(100, "http://a", "refused")
    clock.now += 1.9
    patience.failed(101, "http://a", "refused")
    patience.succeeded()
    assert not caplog.messages


def test_a_request_that_hung_is_not_held_against_those_that_succeeded_meanwhile() -> None:
    clock = Clock()
    patience = GiveUpTimer(10, clock)
    clock.now = 159
    patience.succeeded()
    clock.now = 160
    patience.failed(100, "http://a", "no reply within 60 s")
    assert patience.left == 9
    clock.now = 169
    with pytest.raises(EndpointUnreachable, match="for 10 s"):
        patience.failed(165, "http://a", "refused")


def test_two_successes_at_once_end_one_wait() -> None:
    clock = Clock()
    meanwhile: list[Callable[[GiveUpTimer], None]] = []

    def interrupted() -> float:
        if meanwhile:
            thread = threading.Thread(target=meanwhile.pop(), args=(patience,))
            thread.start()
            thread.join(5)
            assert not thread.is_alive()
        return clock.now

    patience = GiveUpTimer(600, interrupted)
    for _ in range(2):
        patience.failed(100, "http://a", "refused")
        clock.now += 5
    patience.failed(100, "http://a", "refused")
    meanwhile.append(GiveUpTimer.succeeded)
    patience.succeeded()
    assert patience.left == 600


def test_a_server_that_refuses_is_overloaded_and_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    patience = GiveUpTimer(600, clock)
    clock.now += 3
    patience.failed(100, "http://a", "429 Model is overloaded", overloaded=True)
    assert caplog.messages == ["http://a is overloaded for 3 s (429 Model is overloaded); waiting for 597 s more"]
