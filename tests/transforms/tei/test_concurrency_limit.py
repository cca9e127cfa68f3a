"""The limit of texts in flight over simulated devices: always busy, short queues, nothing computed for nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.tei.concurrency_limit import MAX_TIMEOUT, ConcurrencyLimit

from .device_simulation import DeviceSimulation, Server

BATCH = 32  # texts of a request
# Every two of three settings meet; that all three meet is what the test of any device draws.
DEVICES = pytest.mark.parametrize(
    ("texts_per_second", "batch", "headers"),
    [
        (texts_per_second, batch, (row + column) % 2 == 0)
        for row, texts_per_second in enumerate([300, 3000, 20000])
        for column, batch in enumerate([8, 64, 512])
    ],
)
BOTH = pytest.mark.parametrize("headers", [True, False], ids=["headers", "round trips"])


@BOTH
@pytest.mark.parametrize("texts_per_second", [0.5, 2, 4, 20])
def test_a_slow_device_computes_nothing_for_nothing(texts_per_second: float, headers: bool) -> None:
    simulation = DeviceSimulation(Server(texts_per_second, 4, headers=headers), documents=600)
    measured = simulation.run()
    assert (measured.wasted, measured.timeouts, measured.refused) == (0, 0, 0)
    assert measured.busy > 0.99
    assert measured.queue < 80
    canaries = sum(measured.served) - 600
    # A full request would take more than half of the timeout only at half a text a second.
    assert canaries < (70 if texts_per_second < 1 else 25)


@DEVICES
def test_a_fast_device_is_busy_and_its_queue_short(texts_per_second: float, batch: int, headers: bool) -> None:
    simulation = DeviceSimulation(Server(texts_per_second, batch, headers=headers))
    simulation.run(5)
    measured = simulation.run(5)
    assert measured.busy > 0.98
    assert measured.queue < max(2 * BATCH, 2 * batch) + 32
    assert measured.max_in_flight <= 512


@DEVICES
def test_a_long_way_costs_nothing(texts_per_second: float, batch: int, headers: bool) -> None:
    simulation = DeviceSimulation(Server(texts_per_second, batch, latency=0.3, permits=20_000, headers=headers))
    simulation.run(15)
    measured = simulation.run(5)
    assert measured.busy > 0.98
    assert measured.queue < max(2 * BATCH, 2 * batch) + 0.3 * texts_per_second  # and what arrives in a round trip


@BOTH
@pytest.mark.parametrize("latency", [0.0, 0.3])
@pytest.mark.parametrize(("before", "after"), [(3000, 300), (300, 3000)])
def test_a_change_of_speed_is_followed_within_ten_seconds(
    before: float, after: float, latency: float, headers: bool
) -> None:
    simulation = DeviceSimulation(Server(before, 64, latency=latency, permits=4096, headers=headers))
    simulation.run(12)
    simulation.server.texts_per_second = after
    assert simulation.run(10).wasted == 0
    measured = simulation.run(10)
    assert measured.busy > 0.98
    assert measured.queue < 2 * 64 + max(BATCH, 0.3 * after)


@BOTH
@pytest.mark.parametrize(("texts_per_second", "batch"), [(300, 8), (3000, 64)])
def test_somebody_elses_query_waits_for_three_batches_at_most(
    texts_per_second: float, batch: int, headers: bool
) -> None:
    simulation = DeviceSimulation(Server(texts_per_second, batch, headers=headers))
    simulation.run(5)
    simulation.ask(every=1.013)
    waits = sorted(simulation.run(120).waits)
    assert len(waits) > 110
    assert waits[int(0.95 * len(waits))] <= 3 * max(batch, BATCH) / texts_per_second


@BOTH
def test_a_device_that_takes_as_long_for_one_text_as_for_many_gets_full_batches(headers: bool) -> None:
    simulation = DeviceSimulation(Server(1e5, 64, batch_seconds=0.02, headers=headers))
    simulation.run(5)
    measured = simulation.run(5)
    assert measured.busy > 0.98
    assert sum(measured.served) / 5 > (0.95 if headers else 0.7) * 64 / 0.0206


# --- crowds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "texts_per_second", "processes"),
    [(8, 1000, None), (16, 3000, None), (8, 3000, 1), (16, 1000, 1)],  # 1: they do not know of each other
)
def test_workers_that_do_not_know_of_each_other_get_fair_shares(
    clients: int, texts_per_second: float, processes: int | None
) -> None:
    server = Server(texts_per_second, 64, jitter=0.004)
    simulation = DeviceSimulation(server, clients=clients, processes=processes or clients)
    simulation.run(30)
    measured = simulation.run(60)
    assert 0.7 < measured.shares[0] <= measured.shares[-1] < 1.3
    assert measured.busy > 0.98
    assert measured.refused < 0.03 * sum(measured.served) / BATCH


@pytest.mark.parametrize(("clients", "texts_per_second"), [(8, 3000), (16, 1000)])
def test_without_the_times_refusals_alone_make_shares_even_over_minutes(clients: int, texts_per_second: float) -> None:
    """A worker with one request of 28 texts in flight has some hundred replies a minute, and a few refusals."""
    simulation = DeviceSimulation(Server(texts_per_second, 64, headers=False, jitter=0.004), clients=clients)
    simulation.run(60)
    measured = simulation.run(300_000 / texts_per_second)
    assert 0.5 < measured.shares[0] <= measured.shares[-1] < 1.6
    assert measured.busy > 0.98
    assert measured.refused < 0.05 * sum(measured.served) / BATCH


def test_workers_that_come_late_get_their_share() -> None:
    simulation = DeviceSimulation(Server(1000, 64, jitter=0.004), clients=4)
    simulation.run(20)
    simulation.join(4)
    simulation.run(20)
    measured = simulation.run(40)
    assert 0.7 < measured.shares[0] <= measured.shares[-1] < 1.3


@BOTH
def test_a_worker_whose_companions_have_gone_gets_the_whole_device(headers: bool) -> None:
    simulation = DeviceSimulation(Server(3000, 64, headers=headers, jitter=0.004), clients=16)
    simulation.run(30)
    for client in simulation.clients[1:]:
        client.stop()
    simulation.run(10)
    measured = simulation.run(10)
    assert measured.busy > 0.98
    assert measured.served[0] == sum(measured.served)


def test_a_worker_that_is_alone_is_never_refused() -> None:
    measured = DeviceSimulation(Server(1000, 64)).run(20)
    assert measured.refused == 0


@pytest.mark.parametrize("gate", [1, 2])
def test_a_gateway_that_counts_requests_is_not_asked_for_ever_smaller_ones(gate: int) -> None:
    simulation = DeviceSimulation(Server(1000, 64, gate=gate))
    simulation.run(20)
    measured = simulation.run(20)
    assert measured.busy > 0.8
    assert sum(measured.served) / (measured.refused + 1) > BATCH


# --- any device -------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    speed=st.floats(20, 10_000),
    batch=st.integers(1, 256),
    batch_seconds=st.floats(0, 0.05),
    latency=st.floats(0, 0.3),
    permits=st.integers(32, 2048),
    headers=st.booleans(),
    change=st.floats(0.2, 5),
)
def test_whatever_the_device_it_never_starves_and_the_bounds_are_kept(
    speed: float, batch: int, batch_seconds: float, latency: float, permits: int, headers: bool, change: float
) -> None:
    server = Server(speed, batch, batch_seconds, permits, latency, headers)
    simulation = DeviceSimulation(server)
    simulation.run(min(10, 10_000 / speed) + 64 / speed)
    server.texts_per_second = speed * change
    measured = simulation.run(min(20, 10_000 / speed) + 20 * 64 / (speed * change) + 20 * latency)
    assert measured.max_in_flight <= permits
    assert measured.refused == 0
    # A device that is suddenly so slow that what is in flight takes longer than the timeout costs those requests once.
    too_slow = 3 * max(batch, BATCH) / (speed * change) > 60
    assert measured.wasted <= (0.15 * sum(measured.served) if too_slow else 0)
    # What the device can do, and what so few permits allow over so long a way: two requests when they last, or half.
    round_trip = latency + 0.001 + server.seconds(min(batch, BATCH)) * 2
    possible = min(1.0, permits / 2 / round_trip / (batch / server.seconds(batch)))
    assert measured.busy > 0.4 * possible
    assert simulation.clients[0].endpoint.limit.limit <= permits


@settings(max_examples=50)
@given(st.integers(1, 600), st.integers(1, 64), st.randoms(use_true_random=False))
def test_the_limit_stays_within_its_bounds_whatever_happens(permits: int, batch: int, rng: random.Random) -> None:
    limit = ConcurrencyLimit(permits, min(batch, permits), None, 60.0, rng.choice([0, 0.01, 1, 100]))
    under_way: list[tuple[int, float, float]] = []
    now = 0.0
    for _ in range(200):
        now += rng.uniform(0, 0.2)
        texts = rng.randint(1, limit.request_texts)
        if limit.fits(texts, now):
            under_way.append((texts, limit.acquire(texts, now), now))
        elif under_way:
            texts, text_seconds, sent_at = under_way.pop(rng.randrange(len(under_way)))
            end = rng.random()
            if end < 0.1:
                limit.refused(sent_at, now)
            elif end < 0.2:
                limit.timed_out(sent_at, now)
            elif end < 0.9:
                seconds = now - sent_at
                queue, device = rng.uniform(0, 2) * seconds, rng.uniform(0, 2)
                limit.replied(texts, text_seconds, sent_at, seconds, queue, device, now)
            limit.release(texts, now)
        else:
            raise AssertionError("with nothing in flight, one request is always allowed")
        assert 1 <= limit.request_texts <= limit.limit <= permits
        assert 0 <= limit.in_flight <= permits
        assert 60 <= limit.timeout <= MAX_TIMEOUT


# --- single steps -----------------------------------------------------------------------------------------------------


def test_requests_that_were_refused_together_lower_the_ceiling_once() -> None:
    limit = ConcurrencyLimit(512, BATCH)
    limit.acquire(64, 0.0)
    assert limit.refused(sent_at=0.0, now=1.0)
    lowered = limit.limit
    assert not limit.refused(sent_at=0.5, now=1.1)
    assert limit.limit == lowered < 64
    assert limit.refused(sent_at=1.2, now=1.3)
    assert limit.limit < lowered


def test_a_client_with_more_than_its_share_goes_back_to_it_when_refused() -> None:
    limit = ConcurrencyLimit(512, BATCH, 40)
    limit.acquire(64, 0.0)
    limit.refused(sent_at=0.0, now=1.0)
    assert limit.limit <= 40


def test_one_text_is_always_allowed() -> None:
    limit = ConcurrencyLimit(512, BATCH)
    for second in range(100):
        limit.refused(second, second + 0.5)
    assert limit.limit == 1
    assert limit.fits(1)


def test_timeouts_make_requests_smaller_and_their_time_longer() -> None:
    limit = ConcurrencyLimit(512, BATCH, None, 60.0)
    limit.acquire(64, 0.0)
    assert limit.timed_out(sent_at=0.0, now=60.0)
    assert not limit.timed_out(sent_at=0.0, now=60.1)  # under way together
    assert limit.timeout == 120
    assert limit.timed_out(sent_at=61.0, now=181.0)
    assert (limit.request_texts, limit.limit, limit.timeout) == (16, 32, 240)


def test_a_single_text_that_takes_longer_than_the_timeout_gets_the_time_it_needs() -> None:
    limit = ConcurrencyLimit(512, BATCH, None, 60.0, seconds_per_text=100.0)
    assert limit.request_texts == 2  # a document and the canary
    assert limit.timeout >= 400
