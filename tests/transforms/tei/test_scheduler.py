from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import time

import numpy as np
import pytest

from transforms.tei.endpoint import Backoff
from transforms.tei.handshake import ServerInfo
from transforms.tei.scheduler import Assignment, Endpoint, Outcome, Scheduler
from transforms.tei.tasks import Job, Task

INFO = ServerInfo(
    model_id="hash",
    model_sha=None,
    model_dtype="float32",
    pooling="mean",
    model_type="embedding",
    max_concurrent_requests=64,
    max_input_length=512,
    max_batch_tokens=None,
    max_client_batch_size=32,
    auto_truncate=True,
    version="1.9.3",
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def endpoint(url: str = "http://tei") -> Endpoint:
    return Endpoint(url, INFO, None, Backoff(random.Random(0)))


@pytest.mark.parametrize(
    ("max_in_flight", "processes", "first", "ceiling"),
    [
        (None, 1, 512, 512),
        (None, 4, 128, 512),
        (None, 100, 32, 512),  # never less than a batch
        (200, 4, 128, 200),
        (100, 4, 100, 100),
        (8, 100, 8, 8),
    ],
)
def test_a_process_starts_with_its_share(max_in_flight: int | None, processes: int, first: int, ceiling: int) -> None:
    info = dataclasses.replace(INFO, max_concurrent_requests=512)
    budget = Endpoint("http://tei", info, max_in_flight, Backoff(random.Random(0)), processes).budget
    assert (budget.limit, budget.ceiling) == (first, ceiling)


def scheduler(*endpoints: Endpoint) -> tuple[Scheduler, Clock]:
    clock = Clock()
    return Scheduler(endpoints or (endpoint(),), random.Random(0), clock), clock


def task(job: int = 0, place: int = 0, texts: int = 32, canary: bool = False) -> Task:
    return Task(Job(job, ["text"] * texts, 4), range(texts), place, canary)


def take(of: Scheduler) -> Assignment:
    assignment = of.take()
    assert assignment is not None
    return assignment


def test_the_earliest_shard_and_its_first_task_go_first() -> None:
    ours, _ = scheduler()
    ours.put([task(1, 0, 1), task(0, 1, 1), task(0, 0, 1)])
    taken = [take(ours).task for _ in range(3)]
    assert [(each.job.number, each.sequence) for each in taken] == [(0, 0), (0, 1), (1, 0)]


def test_what_is_done_again_goes_before_what_came_later() -> None:
    ours, _ = scheduler()
    ours.put([task(0, 0), task(0, 1), task(0, 2)])
    first = take(ours)
    ours.settle(first, Outcome.OBJECTED, first.task.halves())
    assert [take(ours).task.sequence for _ in range(3)] == [0, 0, 1]


def test_what_is_to_wait_waits() -> None:
    ours, clock = scheduler()
    ours.put([task(0, 0, 1)], delay=5)
    ours.put([task(1, 0, 1)])
    assert take(ours).task.job.number == 1
    clock.now += 5
    assert take(ours).task.job.number == 0


def test_a_batch_is_cut_to_what_may_be_in_flight() -> None:
    one = endpoint()
    ours, _ = scheduler(one)
    for second in range(20):
        one.budget.refused(second, second + 0.5)
    assert one.budget.limit == 1
    ours.put([task(texts=4, canary=True)])
    sizes = []
    for _ in range(4):
        assignment = take(ours)
        sizes.append(assignment.task.size)
        assert one.budget.in_flight == 1
        ours.settle(assignment, Outcome.OBJECTED)
    assert sizes == [1, 1, 1, 1]


def test_a_known_sentence_counts_as_a_text() -> None:
    one = endpoint()
    ours, _ = scheduler(one)
    ours.put([task(texts=31, canary=True)])
    assignment = take(ours)
    assert one.budget.in_flight == 32
    ours.settle(assignment, Outcome.ANSWERED)
    assert one.budget.in_flight == 0


@pytest.mark.parametrize("ending", list(Outcome))
def test_room_is_given_back_however_a_request_ends(ending: Outcome) -> None:
    one = endpoint()
    ours, _ = scheduler(one)
    ours.put([task()])
    ours.settle(take(ours), ending)
    assert one.budget.in_flight == 0


def test_the_less_loaded_endpoint_is_chosen() -> None:
    one, two = endpoint("http://one"), endpoint("http://two")
    ours, _ = scheduler(one, two)
    ours.put([task(0, place) for place in range(4)])
    chosen = [take(ours).endpoint.url for _ in range(4)]
    assert sorted(chosen) == ["http://one"] * 2 + ["http://two"] * 2
    assert chosen[0] != chosen[1]


def test_an_endpoint_that_fails_again_rests_while_others_work() -> None:
    one, two = endpoint("http://one"), endpoint("http://two")
    ours, clock = scheduler(one, two)
    for _ in range(2):
        clock.now += 1
        one.health.failed(clock.now, clock.now)
    ours.put([task(0, place, 1) for place in range(10)])
    assert {take(ours).endpoint.url for _ in range(10)} == {"http://two"}


def test_a_failure_ends_what_was_known_of_the_model() -> None:
    one = endpoint()
    ours, _ = scheduler(one)
    ours.verified(one, INFO, ours.generation(one))
    assert one.verified
    ours.put([task(), task()])
    first, second = take(ours), take(ours)
    ours.settle(first, Outcome.FAILED)
    generation = ours.generation(one)
    ours.settle(second, Outcome.FAILED)
    ours.verified(one, INFO, generation)
    assert not one.verified  # it has failed again since that check began


@pytest.mark.parametrize("ending", [Outcome.REFUSED, Outcome.FAILED])
def test_the_silence_that_a_server_wants_is_kept_and_counted(ending: Outcome) -> None:
    ours, clock = scheduler()
    one = task(0, 0, 1)
    ours.put([one])
    assignment = take(ours)
    ours.settle(assignment, ending, [one], retry_after=7)
    clock.now += 7
    ours.settle(take(ours), Outcome.ANSWERED)
    one.job.store([0], np.ones((1, 4), np.float32))
    assert one.job.result().statistics.throttled_ms == 7000


def test_a_task_without_room_is_not_handed_out() -> None:
    looks, third_look = itertools.count(1), threading.Event()

    def clock() -> float:
        if next(looks) == 3:
            third_look.set()
        return 0.0

    ours = Scheduler([endpoint()], random.Random(0), clock)
    ours.put([task(0, place) for place in range(3)])
    seen: list[Assignment | None] = []
    thread = threading.Thread(target=lambda: seen.extend(ours.take() for _ in range(3)))
    thread.start()
    assert third_look.wait(5)
    ours.stop()
    thread.join(5)
    assert [each is None for each in seen] == [False, False, True]


def test_a_task_that_is_too_large_is_cut_evenly() -> None:
    one = endpoint()
    ours, _ = scheduler(one)
    ours.limit_batch(one, 20)
    ours.put([task(texts=32)])
    assert [take(ours).task.size for _ in range(2)] == [16, 16]


class Takers:
    """A scheduler of two endpoints, all of whose room is taken, and a thread that waits to take."""

    def __init__(self) -> None:
        self._stopped_at: float | None = time.monotonic()
        looked = threading.Event()

        def clock() -> float:
            if threading.current_thread() is self.thread:
                looked.set()
            return self._stopped_at or time.monotonic()

        self.seen: list[Assignment | None] = []
        self.thread = threading.Thread(target=lambda: self.seen.append(self.ours.take()), daemon=True)
        self.well, self.ill = endpoint("http://well"), endpoint("http://ill")
        self.ours = Scheduler([self.well, self.ill], random.Random(0), clock)
        self.ours.put([task(0, place) for place in range(6)])
        self.under_way = [take(self.ours) for _ in range(4)]
        self.thread.start()
        assert looked.wait(5)

    def one_at(self, where: Endpoint) -> Assignment:
        return next(each for each in self.under_way if each.endpoint is where)

    def see_what_the_thread_takes(self) -> Assignment | None:
        """Let the time go on, and wait for the thread; this one takes nothing more, as if it were busy."""
        self._stopped_at = None
        self.thread.join(5)
        self.ours.stop()
        return self.seen[0] if self.seen else None


def test_somebody_waits_for_the_end_of_a_silence_while_the_others_are_busy() -> None:
    takers = Takers()
    for assignment in takers.under_way:
        if assignment.endpoint is takers.ill:
            takers.ours.settle(assignment, Outcome.FAILED, retry_after=0.2)
    takers.ours.settle(takers.one_at(takers.well), Outcome.ANSWERED)
    assert take(takers.ours).endpoint is takers.well
    taken = takers.see_what_the_thread_takes()
    assert taken is not None
    assert taken.endpoint is takers.ill


def test_somebody_waits_for_what_is_to_be_sent_later_while_the_others_are_busy() -> None:
    takers = Takers()
    for _ in range(2):  # what is ready goes to this thread
        takers.ours.settle(takers.under_way.pop(), Outcome.ANSWERED)
        take(takers.ours)
    takers.ours.settle(takers.under_way.pop(), Outcome.OBJECTED, [now := task(0, 8)])
    takers.ours.settle(takers.under_way.pop(), Outcome.UNSENT, [later := task(0, 9)], delay=0.2)
    assert take(takers.ours).task is now
    taken = takers.see_what_the_thread_takes()
    assert taken is not None
    assert taken.task is later


def test_a_server_that_permits_more_gives_each_process_more() -> None:
    one = Endpoint("http://tei", INFO, None, Backoff(random.Random(0)), processes=2)
    one.adopt(dataclasses.replace(INFO, max_concurrent_requests=512))
    assert (one.budget.ceiling, one.budget.share) == (512, 256)


def test_threads_that_wait_are_sent_home() -> None:
    ours, _ = scheduler()
    seen: list[Assignment | None] = []
    thread = threading.Thread(target=lambda: seen.append(ours.take()))
    thread.start()
    ours.stop()
    thread.join(5)
    assert seen == [None]
    ours.put([task()])
    assert ours.take() is None


@pytest.mark.parametrize("canary", [False, True])
@pytest.mark.parametrize("size", range(1, 12))
def test_dividing_and_halving_lose_no_text(size: int, canary: bool) -> None:
    whole = task(texts=9, canary=canary)
    parts = whole.divided(size)
    assert [index for part in parts for index in part.indices] == list(range(9))
    assert all(part.size <= size for part in parts)
    assert sum(part.canary for part in parts) == (canary and size > 1)
    halves = whole.halves()
    assert [index for part in halves for index in part.indices] == list(range(9))
    assert not any(part.canary for part in halves)
