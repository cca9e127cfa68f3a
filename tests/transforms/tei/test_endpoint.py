from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from transforms.tei.endpoint import MAX_REST, Backoff, CircuitBreaker, Endpoint, GiveUpTimer
from transforms.tei.errors import EndpointUnreachable

from .helpers import Clock, profile


def breaker() -> CircuitBreaker:
    return CircuitBreaker(Backoff(random.Random(0)))


# --- CircuitBreaker ---------------------------------------------------------------------------------------------------


def test_one_failure_stops_nobody() -> None:
    one = breaker()
    one.record_failure(sent_at=0, now=1)
    assert not one.is_open
    assert one.quiet_until <= 1


def test_failures_of_requests_that_were_under_way_together_count_as_one() -> None:
    one = breaker()
    for _ in range(16):
        one.record_failure(sent_at=0, now=1)
    assert not one.is_open
    one.record_failure(sent_at=1.5, now=2)
    assert one.is_open


def test_an_endpoint_that_fails_again_rests_longer_each_time() -> None:
    one, now, rests = breaker(), 0.0, []
    for _ in range(12):
        one.record_failure(sent_at=now, now=now)
        rests.append(one.quiet_until - now)
        now = max(now, one.quiet_until)
    assert rests[0] <= 0 < rests[1]
    assert rests[2] > 0.4
    assert MAX_REST / 2 <= rests[-1] <= MAX_REST


@pytest.mark.parametrize("ends", [CircuitBreaker.record_success, CircuitBreaker.record_answer])
def test_an_answer_closes_the_circuit_but_does_not_end_the_silence_that_was_asked_for(
    ends: Callable[[CircuitBreaker, float], None],
) -> None:
    one = breaker()
    for now in range(5):
        one.record_failure(now, now)
    assert one.is_open
    assert one.quiet_until > 4
    ends(one, 4)
    assert not one.is_open
    assert one.quiet_until <= 4
    one.record_refusal(now=5, first_of_round=True, retry_after=30)
    ends(one, 6)
    assert one.quiet_until == 35


def test_a_good_reply_ends_the_pause_after_a_refusal() -> None:
    one = breaker()
    one.record_refusal(now=1, first_of_round=True)
    assert one.quiet_until > 1
    one.record_success(1)
    assert one.quiet_until <= 1


def test_silence_that_a_gateway_asks_for_is_kept_after_a_failure() -> None:
    one = breaker()
    one.record_failure(sent_at=0, now=1, retry_after=30)
    one.record_success(2)
    assert one.quiet_until == 31


def test_a_timeout_is_a_failure_only_where_nothing_succeeded_meanwhile() -> None:
    one = breaker()
    one.record_success(5)
    for now in (60, 61, 62):
        one.record_timeout(sent_at=4, now=now)
    assert not one.is_open
    for now in (120, 180):
        one.record_timeout(sent_at=now - 60, now=now)
    assert one.is_open


def test_the_seconds_of_silence_are_counted_once() -> None:
    one = breaker()
    assert one.throttled_seconds(9) == 0
    one.record_refusal(now=10, first_of_round=True, retry_after=5)
    assert one.throttled_seconds(10.5) == pytest.approx(0.5)
    one.record_refusal(now=11, first_of_round=False, retry_after=5)
    assert one.throttled_seconds(15) == pytest.approx(4.5)
    assert one.quiet_until == 16
    assert one.throttled_seconds(100) == pytest.approx(1)
    one.record_failure(sent_at=100, now=100, retry_after=2)
    assert one.throttled_seconds(200) == pytest.approx(2)


def test_a_pause_that_a_good_reply_ends_is_counted_as_long_as_it_was() -> None:
    one, counted = breaker(), 0.0
    for now in range(100):
        one.record_refusal(now=now, first_of_round=True)
        counted += one.throttled_seconds(now + 0.01)
        one.record_success(now + 0.01)
        counted += one.throttled_seconds(now + 0.5)
    assert 0.5 < counted <= 1


def test_a_rest_after_failures_is_not_counted_as_throttling() -> None:
    one = breaker()
    for now in range(5):
        one.record_failure(now, now)
    assert one.quiet_until > 4
    assert one.throttled_seconds(100) == 0


def test_backoff_doubles_up_to_its_maximum() -> None:
    backoff = Backoff(random.Random(0))
    assert max(backoff.full(1, 8, 2) for _ in range(500)) == pytest.approx(4, rel=0.05)
    assert max(backoff.full(1, 8, 99) for _ in range(500)) <= 8
    assert min(backoff.half(1, 8, 3) for _ in range(500)) >= 4


# --- GiveUpTimer ------------------------------------------------------------------------------------------------------


def test_it_ends_after_the_limit_without_a_success_and_not_before() -> None:
    clock = Clock(100)
    timer = GiveUpTimer(10, clock)
    timer.record_failure(100, "http://a", "refused")
    clock.now = 109.9
    timer.record_failure(109, "http://a", "refused")
    assert timer.left == pytest.approx(0.1)
    clock.now = 110
    with pytest.raises(
        EndpointUnreachable, match=r"http://a has succeeded for 10 s, .* no longer than 10 s\. Check .*refused"
    ):
        timer.record_failure(109, "http://a", "refused")


def test_the_last_notice_leaves_time_to_wait(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(100)
    timer = GiveUpTimer(10, clock)
    for clock.now in (104.6, 109.5):
        timer.record_failure(100, "http://a", "refused")
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == ["waiting for 5 s more"]


def test_a_success_starts_it_anew_and_idle_hours_do_not_count() -> None:
    clock = Clock(100)
    timer = GiveUpTimer(10, clock)
    timer.record_failure(100, "http://a", "refused")
    clock.now = 109
    timer.record_success()
    clock.now = 5000
    assert timer.left == 10
    timer.record_failure(4999, "http://a", "refused")


def test_the_log_says_that_it_waits_more_and_more_rarely_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(100)
    timer = GiveUpTimer(600, clock)
    for _ in range(100):
        timer.record_failure(100, "http://a", "refused")
        clock.now += 1
    assert 4 <= len(caplog.messages) <= 7
    assert caplog.messages[0] == "no answer from http://a for 2 s (refused); waiting for 598 s more"
    timer.record_success()
    assert caplog.messages[-1] == "the endpoint answers again, after 100 s"


def test_a_short_failure_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(100)
    timer = GiveUpTimer(600, clock)
    timer.record_failure(100, "http://a", "refused")
    clock.now += 1.9
    timer.record_failure(101, "http://a", "refused")
    timer.record_success()
    assert not caplog.messages


def test_a_request_that_hung_does_not_count_from_before_the_last_success() -> None:
    clock = Clock(100)
    timer = GiveUpTimer(10, clock)
    clock.now = 159
    timer.record_success()
    clock.now = 160
    timer.record_failure(100, "http://a", "no reply within 60 s")
    assert timer.left == 9
    clock.now = 169
    with pytest.raises(EndpointUnreachable, match="for 10 s"):
        timer.record_failure(165, "http://a", "refused")


def test_two_successes_at_once_end_one_wait() -> None:
    clock = Clock(100)
    meanwhile: list[Callable[[GiveUpTimer], None]] = []

    def interrupted() -> float:
        if meanwhile:
            thread = threading.Thread(target=meanwhile.pop(), args=(timer,))
            thread.start()
            thread.join(5)
            assert not thread.is_alive()
        return clock.now

    timer = GiveUpTimer(600, interrupted)
    for _ in range(2):
        timer.record_failure(100, "http://a", "refused")
        clock.now += 5
    timer.record_failure(100, "http://a", "refused")
    meanwhile.append(GiveUpTimer.record_success)
    timer.record_success()
    assert timer.left == 600


def test_the_log_tells_what_kind_of_failure_it_is(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(100)
    timer = GiveUpTimer(600, clock)
    clock.now += 3
    timer.record_failure(100, "http://a", "429 Model is overloaded", "too many requests are in flight at")
    assert caplog.messages == [
        "too many requests are in flight at http://a for 3 s (429 Model is overloaded); waiting for 597 s more"
    ]


# --- Endpoint ---------------------------------------------------------------------------------------------------------


def endpoint(permits: int = 512, batch: int = 32, **options: int | None) -> Endpoint:
    one = Endpoint("http://tei", Backoff(random.Random(0)), **options)  # type: ignore[arg-type]
    one.adopt(profile(max_concurrent_requests=permits, max_client_batch_size=batch))
    return one


@pytest.mark.parametrize(
    ("max_in_flight", "processes", "share", "permits"),
    [
        (None, 1, 512, 512),
        (None, 4, 128, 512),
        (None, 100, 32, 512),  # never less than a request
        (200, 4, 128, 200),
        (100, 4, 100, 100),
        (8, 100, 8, 8),
    ],
)
def test_a_process_begins_with_its_share_of_the_permits(
    max_in_flight: int | None, processes: int, share: int, permits: int
) -> None:
    one = endpoint(max_in_flight=max_in_flight, processes=processes)
    assert (one.limit.share, one.limit.permits) == (share, permits)
    assert one.limit.limit <= share


def test_before_the_handshake_a_single_request_may_go_out() -> None:
    one = Endpoint("http://tei", Backoff(random.Random(0)))
    assert one.admits(0)
    one.requests = 1
    assert not one.admits(0)
    one.adopt(profile())
    assert one.admits(0)


def test_what_is_in_flight_during_a_handshake_stays_counted() -> None:
    one = Endpoint("http://tei", Backoff(random.Random(0)))
    one.limit.acquire(6, 0.0)
    one.adopt(profile())
    assert one.limit.in_flight == 6
    one.adopt(profile(max_concurrent_requests=64))
    assert one.limit.in_flight == 6


def test_a_server_that_permits_more_or_less_than_before_is_believed() -> None:
    one = endpoint(permits=64, processes=2)
    one.adopt(profile(max_concurrent_requests=512))
    assert (one.limit.permits, one.limit.share) == (512, 256)
    one.adopt(profile(max_concurrent_requests=48))
    assert one.limit.permits == 48
    assert one.limit.limit <= 48


def test_a_batch_limit_that_was_found_is_kept_until_the_server_reports_another() -> None:
    one = endpoint()
    one.batch_limit = 5
    one.adopt(profile())
    assert one.batch_limit == 5
    one.adopt(profile(max_client_batch_size=16))
    assert one.batch_limit == 16


def test_a_server_of_one_text_a_request_is_asked_one_by_one() -> None:
    assert endpoint(batch=1).one_by_one
    assert endpoint(batch=1).max_request_texts == 1
    assert endpoint(max_in_flight=1).one_by_one
    assert not endpoint(batch=2).one_by_one
    assert endpoint(batch=2).max_request_texts == 2  # one document and the canary
