"""Hands out tasks to the pool's threads: the earliest shard first, to an endpoint with room, not before it is time."""

from __future__ import annotations

import enum
import heapq
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from transforms.tei.endpoint import Budget
from transforms.tei.error_table import Verdict
from transforms.tei.health import Health
from transforms.tei.info import ServerInfo
from transforms.tei.jitter import Jitter
from transforms.tei.tasks import Task


class Ending(enum.Enum):
    """How a request ended, as far as the endpoint's state goes."""

    ANSWERED = "answered"  # with vectors
    OBJECTED = "objected"  # the server is well; the texts may not be
    REFUSED = "refused"  # too much at once
    FAILED = "failed"  # no answer of the server's own
    UNSENT = "unsent"


class Endpoint:
    """One server, as this process sees it. Guarded by its dispatcher's lock.

    Attributes:
        url: base URL, without a slash at its end.
        budget: texts in flight.
        health: whether it answers.
        batch_limit: texts that one request may hold.
        verified_generation: the failure after which its model was last checked.
        checking: held by the thread that checks its model; guards the others below, which the dispatcher does not.
        verified_at: when its last good check began (`time.monotonic`).
        failed_checks: how many checks found nobody who could tell.
        last_failure: what the last of them found.
    """

    def __init__(
        self, url: str, info: ServerInfo, max_in_flight: int | None, jitter: Jitter, processes: int = 1
    ) -> None:
        self.url = url
        self.health = Health(jitter)
        self.verified_generation = -1
        self.checking = threading.Lock()
        self.verified_at = float("-inf")
        self.failed_checks = 0
        self.last_failure: Verdict | None = None
        self._max_in_flight = max_in_flight
        self._processes = processes
        self.batch_limit = self._told_limit = info.batch_limit
        self.budget = Budget(self._ceiling(info), self._share(info))

    @property
    def verified(self) -> bool:
        """Whether its model has been checked since it last failed."""
        return self.verified_generation == self.health.generation

    @property
    def most_at_best(self) -> int:
        """Texts that a request may hold when nothing is short."""
        return min(self.batch_limit, self.budget.ceiling)

    @property
    def most_texts(self) -> int:
        """Texts that a request may hold now."""
        return min(self.batch_limit, self.budget.most_texts)

    def adopt(self, info: ServerInfo) -> None:
        """Takes the limits that the server tells; a batch's only where it is news: a lower one may have been found."""
        if info.batch_limit != self._told_limit:
            self.batch_limit = self._told_limit = info.batch_limit
        self.budget.resize(self._ceiling(info), self._share(info))

    def _ceiling(self, info: ServerInfo) -> int:
        permits = info.max_concurrent_requests
        return permits if self._max_in_flight is None else min(permits, self._max_in_flight)

    def _share(self, info: ServerInfo) -> int:
        # With less than a batch the server would get small ones, which cost it more than a refusal now and then.
        return max(info.batch_limit, info.max_concurrent_requests // self._processes)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task that is to be sent now, to an endpoint that keeps room for it."""

    task: Task
    endpoint: Endpoint
    started: float


@dataclass(order=True, slots=True)
class _Entry:
    key: tuple[float, ...]
    task: Task = field(compare=False)


class Dispatcher:
    """The queue between those who submit and the pool's threads. Every method may be called from any thread."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
        max_in_flight: int | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._rng = rng
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._changed = threading.Condition()
        self._ready: list[_Entry] = []
        self._later: list[_Entry] = []
        self._count = itertools.count()
        self._stopped = False

    def put(self, tasks: Iterable[Task], delay: float = 0.0) -> None:
        """Queues tasks, to be handed out after so many seconds."""
        with self._changed:
            self._put(tasks, delay)
            self._changed.notify()

    def take(self) -> Assignment | None:
        """Waits for a task that can be sent now; None when there is no more to do."""
        with self._changed:
            while not self._stopped:
                now = self._clock()
                assignment = self._next(now)
                if assignment is not None:
                    self._wake_another(now)
                    return assignment
                self._changed.wait(self._seconds_to_next(now))
            return None

    def take_now(self) -> Assignment | None:
        """A task that can be sent now, without waiting for one; None where there is none."""
        with self._changed:
            return None if self._stopped else self._next(self._clock())

    def settle(
        self,
        assignment: Assignment,
        ending: Ending,
        again: Sequence[Task] = (),
        delay: float = 0.0,
        retry_after: float | None = None,
    ) -> None:
        """Takes back an assignment and what is left to do of it; its job is told of the silence before it.

        Whoever settles takes next: nobody else is woken for it.
        """
        task, endpoint = assignment.task, assignment.endpoint
        with self._changed:
            now = self._clock()
            # Before the task is queued: its job may be over as soon as another thread has it.
            task.job.waited(endpoint.health.throttled(now))
            if ending is Ending.ANSWERED:
                endpoint.budget.succeeded(task.size)
                endpoint.health.succeeded()
            elif ending is Ending.FAILED:
                endpoint.health.failed(assignment.started, now, retry_after)
            elif ending is Ending.OBJECTED:
                endpoint.health.objected()
            elif ending is Ending.REFUSED:
                first = endpoint.budget.refused(assignment.started, now)
                endpoint.health.refused(now, first, retry_after)
            endpoint.budget.release(task.size)
            self._put(again, delay)

    def generation(self, endpoint: Endpoint) -> int:
        """How often the endpoint has failed so far: what `verified` wants to be told."""
        with self._changed:
            return endpoint.health.generation

    def verified(self, endpoint: Endpoint, info: ServerInfo, generation: int) -> None:
        """Notes that the endpoint served the right model after its failure of that number."""
        with self._changed:
            endpoint.adopt(info)
            endpoint.verified_generation = generation

    def limit_batch(self, endpoint: Endpoint, texts: int) -> None:
        """Lowers what a request to the endpoint may hold."""
        with self._changed:
            endpoint.batch_limit = max(1, min(endpoint.batch_limit, texts))

    def stop(self) -> None:
        """Sends the threads home."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._later.clear()
            self._changed.notify_all()

    def _put(self, tasks: Iterable[Task], delay: float) -> None:
        if self._stopped:
            return
        if delay > 0:
            due = self._clock() + delay
            for task in tasks:
                heapq.heappush(self._later, _Entry((due, next(self._count)), task))
        else:
            for task in tasks:
                heapq.heappush(self._ready, _Entry((task.job.number, task.sequence, next(self._count)), task))

    def _next(self, now: float) -> Assignment | None:
        while self._later and self._later[0].key[0] <= now:
            self._put([heapq.heappop(self._later).task], 0.0)
        while self._ready:
            task = self._ready[0].task
            endpoint = self._choose(task.size, now)
            if endpoint is None:
                return None
            heapq.heappop(self._ready)
            first, *others = task.divided(_evenly(task.size, endpoint.most_texts))
            if others:  # together, as the next request may hold more
                self._put([replace(others[0], indices=task.indices[len(first.indices) :])], 0.0)
            endpoint.budget.acquire(first.size)
            return Assignment(first, endpoint, now)
        return None

    def _wake_another(self, now: float) -> None:
        """Has one more thread look, where there is something for it to send or to wait for; it does the same.

        Who wakes all of them wakes most in vain, and each costs as much as a tenth of a request.
        """
        sends = bool(self._ready) and self._choose(self._ready[0].task.size, now) is not None
        if sends or self._seconds_to_next(now) is not None:
            self._changed.notify()

    def _choose(self, size: int, now: float) -> Endpoint | None:
        """The less loaded of two endpoints with room, picked at random."""
        most = None if self._max_in_flight is None else self._max_in_flight - sum(self._in_flight())
        open_ones = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.health.admits(now, endpoint.budget.in_flight)
            and endpoint.budget.fits(min(size, endpoint.most_texts))
            and (most is None or min(size, endpoint.most_texts) <= most)
        ]
        if len(open_ones) > 2:
            open_ones = self._rng.sample(open_ones, 2)
        return min(open_ones, key=lambda endpoint: endpoint.budget.in_flight / endpoint.budget.limit, default=None)

    def _in_flight(self) -> Iterator[int]:
        return (endpoint.budget.in_flight for endpoint in self.endpoints)

    def _seconds_to_next(self, now: float) -> float | None:
        times = [entry.key[0] for entry in self._later[:1]]
        if self._ready:
            times += [e.health.quiet_until for e in self.endpoints if e.health.quiet_until > now]
        return max(0.0, min(times) - now) if times else None


def _evenly(size: int, most: int) -> int:
    """Texts in each of the fewest requests for so many: parts of one size leave no small one behind."""
    return math.ceil(size / math.ceil(size / most))
