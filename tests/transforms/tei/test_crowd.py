"""Eight worker processes and one endpoint that knows nothing of them, in simulated time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import pytest

from transforms.tei.dispatcher import Assignment, Dispatcher, Ending, Endpoint
from transforms.tei.info import ServerInfo
from transforms.tei.jitter import Jitter
from transforms.tei.work import Job, Task

WORKERS, PERMITS, BATCH, THREADS = 8, 512, 32, 16
INFO = ServerInfo("m", None, "float32", "mean", "embedding", PERMITS, 512, 16384, BATCH, True, "1.9.3")


class Worker:
    """One process's dispatcher, with endless work."""

    def __init__(self, seed: int, clock: Callable[[], float], processes: int) -> None:
        rng = random.Random(seed)
        endpoint = Endpoint("http://tei", INFO, None, Jitter(rng), processes)
        self.dispatcher = Dispatcher([endpoint], rng, clock)
        self.job = Job(0, ["text"] * BATCH, 1)
        self.sequence = itertools.count()
        self.queued = self.under_way = self.served = self.refused = 0

    def take(self) -> Assignment | None:
        if self.under_way == THREADS:
            return None
        for _ in range(2 - self.queued):
            self.dispatcher.put([Task(self.job, list(range(BATCH)), next(self.sequence))])
            self.queued += 1
        assignment = self.dispatcher.take_now()
        self.queued -= assignment is not None
        self.under_way += assignment is not None
        return assignment

    def settle(self, assignment: Assignment, accepted: bool) -> None:
        self.under_way -= 1
        if accepted:
            self.served += assignment.task.size
            self.dispatcher.settle(assignment, Ending.ANSWERED)
        else:
            self.refused += 1
            self.queued += 1
            self.dispatcher.settle(assignment, Ending.REFUSED, [assignment.task])


class Crowd:
    """Workers, and a server that computes one text after the other and refuses what exceeds its permits."""

    def __init__(self, seed: int, texts_per_second: float, processes: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.workers = [Worker(100 * seed + number, lambda: self.now, processes) for number in range(WORKERS)]
        self.taken = 0
        self.free_at = 0.0
        self.seconds = 1 / texts_per_second
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for worker in self.rng.sample(self.workers, len(self.workers)):
                while (assignment := worker.take()) is not None:
                    self.after(self.latency(), lambda w=worker, a=assignment: self.arrive(w, a))  # type: ignore[misc]
            soon = self.now + 0.005
            if self.events and self.events[0][0] <= soon:
                self.now, _, happen = heapq.heappop(self.events)
                happen()
            else:
                self.now = soon

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.count), happen))

    def latency(self) -> float:
        return self.rng.uniform(0.001, 0.005)

    def arrive(self, worker: Worker, assignment: Assignment) -> None:
        texts = assignment.task.size
        if self.taken + texts > PERMITS:
            self.after(self.latency(), lambda: worker.settle(assignment, accepted=False))
            return
        self.taken += texts
        self.free_at = max(self.free_at, self.now) + texts * self.seconds * self.rng.uniform(0.8, 1.2)
        self.after(self.free_at - self.now, lambda: self.answer(worker, assignment))

    def answer(self, worker: Worker, assignment: Assignment) -> None:
        self.taken -= assignment.task.size
        self.after(self.latency(), lambda: worker.settle(assignment, accepted=True))


@pytest.mark.parametrize("texts_per_second", [200, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_workers_that_know_how_many_they_are_keep_near_a_fair_share(seed: int, texts_per_second: float) -> None:
    crowd = Crowd(seed, texts_per_second, processes=WORKERS)
    crowd.run(20)
    for worker in crowd.workers:
        worker.served = worker.refused = 0
    crowd.run(40)
    served = [worker.served for worker in crowd.workers]
    fair = sum(served) / WORKERS
    assert min(served) > 0.7 * fair
    assert max(served) < 1.3 * fair
    assert sum(served) > 0.97 * 40 * texts_per_second
    assert sum(worker.refused for worker in crowd.workers) < 0.15 * sum(served) / BATCH


def test_a_worker_that_is_alone_is_never_refused() -> None:
    crowd = Crowd(0, 1000, processes=1)
    crowd.workers = crowd.workers[:1]
    crowd.run(20)
    assert crowd.workers[0].refused == 0
    assert crowd.workers[0].served > 0.97 * 20 * 1000
