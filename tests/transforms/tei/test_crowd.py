"""Several worker processes and one endpoint that knows nothing of them, in simulated time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from transforms.tei.endpoint import LEAST_PART, Backoff
from transforms.tei.handshake import ServerInfo
from transforms.tei.scheduler import Assignment, Endpoint, Outcome, Scheduler
from transforms.tei.tasks import Job, Task

WORKERS, PERMITS, BATCH, THREADS = 8, 512, 32, 16
INFO = ServerInfo("m", None, "float32", "mean", "embedding", PERMITS, 512, 16384, BATCH, True, "1.9.3")


class Worker:
    """One process's scheduler, with endless work."""

    def __init__(self, seed: int, clock: Callable[[], float], processes: int) -> None:
        rng = random.Random(seed)
        endpoint = Endpoint("http://tei", INFO, None, Backoff(rng), processes)
        self.scheduler = Scheduler([endpoint], rng, clock)
        self.job = Job(0, ["text"] * BATCH, 1)
        self.sequence = itertools.count()
        self.queued = self.under_way = self.served = self.refused = 0

    def take(self) -> Assignment | None:
        if self.under_way == THREADS:
            return None
        for _ in range(2 - self.queued):
            self.scheduler.put([Task(self.job, list(range(BATCH)), next(self.sequence))])
            self.queued += 1
        assignment = self.scheduler.take_now()
        self.queued -= assignment is not None
        self.under_way += assignment is not None
        return assignment

    def settle(self, assignment: Assignment, accepted: bool) -> None:
        self.under_way -= 1
        if accepted:
            self.served += assignment.task.size
            self.scheduler.settle(assignment, Outcome.ANSWERED)
        else:
            self.refused += 1
            self.queued += 1
            self.scheduler.settle(assignment, Outcome.REFUSED, [assignment.task])


class Crowd:
    """Workers, and a server that computes one text after the other and refuses what exceeds its permits.

    Of requests it takes so many at once as `gate` says, if that is not None.
    """

    def __init__(self, seed: int, texts_per_second: float, processes: int, gate: int | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.processes = processes
        self.workers: list[Worker] = []
        self.taken = self.requests = 0
        self.gate = gate
        self.free_at = 0.0
        self.seconds = 1 / texts_per_second
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()

    def join(self, workers: int) -> None:
        for _ in range(workers):
            self.workers.append(Worker(100 * self.seed + len(self.workers), lambda: self.now, self.processes))

    def run(self, seconds: float) -> None:
        for worker in self.workers:
            worker.served = worker.refused = 0
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
        if self.taken + texts > PERMITS or self.requests == self.gate:
            self.after(self.latency(), lambda: worker.settle(assignment, accepted=False))
            return
        self.taken += texts
        self.requests += 1
        self.free_at = max(self.free_at, self.now) + texts * self.seconds * self.rng.uniform(0.8, 1.2)
        self.after(self.free_at - self.now, lambda: self.answer(worker, assignment))

    def answer(self, worker: Worker, assignment: Assignment) -> None:
        self.taken -= assignment.task.size
        self.requests -= 1
        self.after(self.latency(), lambda: worker.settle(assignment, accepted=True))


@dataclass(frozen=True)
class Shares:
    """What became of workers in some seconds: of what is fair, of what the server can do, and of their requests."""

    least: float
    most: float
    busy: float
    refused: float


def shares(crowd: Crowd, seconds: float) -> Shares:
    crowd.run(seconds)
    served = [worker.served for worker in crowd.workers]
    refused = sum(worker.refused for worker in crowd.workers)
    fair = sum(served) / len(served)
    return Shares(
        min(served) / fair, max(served) / fair, sum(served) * crowd.seconds / seconds, refused * BATCH / sum(served)
    )


@pytest.mark.parametrize("texts_per_second", [200, 1000, 2500])
@pytest.mark.parametrize("seed", range(3))
def test_workers_that_know_how_many_they_are_keep_near_a_fair_share(seed: int, texts_per_second: float) -> None:
    crowd = Crowd(seed, texts_per_second, processes=WORKERS)
    crowd.join(WORKERS)
    crowd.run(20)
    found = shares(crowd, 40)
    assert found.least > 0.8
    assert found.most < 1.2
    assert found.busy > 0.97
    assert found.refused < 0.15


@pytest.mark.parametrize(("workers", "texts_per_second"), [(6, 1000), (8, 1000), (8, 2500)])
def test_workers_that_do_not_know_of_each_other_settle_near_a_fair_share(workers: int, texts_per_second: float) -> None:
    crowd = Crowd(0, texts_per_second, processes=1)
    crowd.join(workers)
    crowd.run(20)
    found = shares(crowd, 40)
    assert found.least > 0.75
    assert found.most < 1.3
    assert found.busy > 0.97


@pytest.mark.parametrize("processes", [1, WORKERS])
def test_workers_that_come_late_get_their_share_of_those_that_were_there(processes: int) -> None:
    crowd = Crowd(0, 1000, processes)
    crowd.join(WORKERS // 2)
    crowd.run(20)
    crowd.join(WORKERS // 2)
    crowd.run(20)
    found = shares(crowd, 40)
    assert found.least > 0.75
    assert found.most < 1.3
    assert found.busy > 0.97


@pytest.mark.parametrize("gate", [1, 2])
@pytest.mark.parametrize("processes", [1, WORKERS])
def test_a_gateway_that_counts_requests_is_not_asked_for_ever_smaller_ones(processes: int, gate: int) -> None:
    crowd = Crowd(0, 1000, processes, gate)
    crowd.join(1)
    crowd.run(20)
    found = shares(crowd, 40)
    assert found.busy > 0.5
    assert found.refused < 2 * BATCH / LEAST_PART


def test_a_worker_that_is_alone_is_never_refused() -> None:
    crowd = Crowd(0, 1000, processes=1)
    crowd.join(1)
    found = shares(crowd, 20)
    assert found.refused == 0
    assert found.busy > 0.97
