"""Hands out tasks to worker threads: the earliest shard first, to an endpoint with room, not before it is time."""

from __future__ import annotations

import enum
import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from transforms.tei.endpoint import Endpoint
from transforms.tei.handshake import EndpointProfile
from transforms.tei.tasks import Task
from transforms.tei.transport import Reply
from transforms.tei.vector_space import PROBE_TEXTS


class Outcome(enum.Enum):
    """How a request ended, as far as the endpoint's state goes."""

    ANSWERED = "answered"  # with vectors
    OBJECTED = "objected"  # the server is well; the texts may not be
    REFUSED = "refused"  # too much at once
    TIMED_OUT = "timed out"  # too much at once, or no answer at all
    FAILED = "failed"  # no answer of the server's own
    UNSENT = "unsent"


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task that is to be sent now, to an endpoint that keeps room for it.

    Attributes:
        task: the texts.
        endpoint: where to.
        profile: of the endpoint; None if a handshake comes first.
        started: the time.
        texts: of the request, the canary included.
        text_seconds: in flight on this endpoint before, as its limit counts them.
        requests: on this endpoint, this one included.
        timeout: seconds that the request may take.
    """

    task: Task
    endpoint: Endpoint
    profile: EndpointProfile | None
    started: float
    texts: int
    text_seconds: float
    requests: int
    timeout: float


@dataclass(order=True, slots=True)
class _Entry:
    key: tuple[float, ...]
    task: Task = field(compare=False)


class Scheduler:
    """The queue between those who submit and the workers. Every method may be called from any thread.

    Args:
        endpoints: of one model.
        rng: chooses between endpoints.
        work: what a worker thread does with an assignment; None where the caller takes them itself.
        clock: seconds.
        max_in_flight: texts on all endpoints together; None for what each takes.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        rng: random.Random,
        work: Callable[[Assignment], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_in_flight: int | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._rng = rng
        self._work = work
        self.clock = clock
        self._max_in_flight = max_in_flight
        self._changed = threading.Condition()
        self._ready: list[_Entry] = []
        self._later: list[_Entry] = []
        self._count = itertools.count()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopped = False

    @property
    def limit(self) -> int:
        """Texts that may be in flight on all endpoints together now."""
        with self._changed:
            limit = sum(endpoint.limit.limit for endpoint in self.endpoints)
        return limit if self._max_in_flight is None else min(limit, self._max_in_flight)

    def put(self, tasks: Iterable[Task], delay: float = 0.0) -> None:
        """Queue tasks, to be handed out after so many seconds."""
        with self._changed:
            self._put(tasks, delay)
            self._wake_another(self.clock())

    def take(self, block: bool = True) -> Assignment | None:
        """Return a task that can be sent now; None when there is no more to do.

        Args:
            block: wait for one; otherwise return None where there is none now.
        """
        with self._changed:
            while not self._stopped:
                now = self.clock()
                assignment = self._next(now)
                if assignment is not None:
                    self._wake_another(now)
                    return assignment
                if not block:
                    return None
                self._idle += 1
                self._changed.wait(self._seconds_to_next(now))
                self._idle -= 1
            return None

    def settle(
        self,
        assignment: Assignment,
        outcome: Outcome,
        again: Sequence[Task] = (),
        *,
        delay: float = 0.0,
        retry_after: float | None = None,
        reply: Reply | None = None,
    ) -> None:
        """Take back an assignment and what is left to do of it, and let the endpoint's state learn from its end.

        The caller takes the next task itself: no other thread is woken for it.
        """
        task, endpoint = assignment.task, assignment.endpoint
        with self._changed:
            breaker, limit = endpoint.breaker, endpoint.limit
            now = self.clock()
            # Before the task is queued: its submission may be done as soon as another thread has it.
            task.submission.count_throttled(breaker.throttled_seconds(now))
            if outcome is Outcome.ANSWERED:
                breaker.record_success(now)
                if reply is not None:
                    limit.replied(
                        assignment.texts,
                        assignment.text_seconds,
                        assignment.started,
                        reply.seconds,
                        reply.number("x-queue-time") / 1000,
                        reply.number("x-inference-time") / 1000,
                        now,
                    )
            elif outcome is Outcome.OBJECTED:
                breaker.record_answer(now)
            elif outcome is Outcome.REFUSED:
                first = limit.refused(assignment.started, now)
                breaker.record_refusal(now, first_of_round=first, retry_after=retry_after)
            elif outcome is Outcome.TIMED_OUT:
                limit.timed_out(assignment.started, now)
                breaker.record_timeout(assignment.started, now)
            elif outcome is Outcome.FAILED:
                breaker.record_failure(assignment.started, now, retry_after)
            if breaker.is_open:
                endpoint.profile = None
            limit.release(assignment.texts, now)
            endpoint.requests -= 1
            self._put(again, delay)

    def adopt(self, endpoint: Endpoint, profile: EndpointProfile) -> None:
        """Let an endpoint work with what a handshake found."""
        with self._changed:
            endpoint.adopt(profile)
            endpoint.breaker.record_success(self.clock())
            self._wake_another(self.clock())

    def limit_batch(self, endpoint: Endpoint, texts: int) -> None:
        """Lower what a request to the endpoint may hold."""
        with self._changed:
            endpoint.batch_limit = max(1, min(endpoint.batch_limit, texts))

    def stop(self) -> None:
        """Stop the workers after the request that each is at, and hand out no more."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._later.clear()
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Wait for the workers, together no longer than this; return whether all have ended."""
        deadline = time.monotonic() + seconds
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in others)

    def _put(self, tasks: Iterable[Task], delay: float) -> None:
        if self._stopped:
            return
        if delay > 0:
            due = self.clock() + delay
            for task in tasks:
                heapq.heappush(self._later, _Entry((due, next(self._count)), task))
        else:
            for task in tasks:
                heapq.heappush(self._ready, _Entry((task.submission.number, task.sequence, next(self._count)), task))

    def _next(self, now: float) -> Assignment | None:
        while self._later and self._later[0].key[0] <= now:
            self._put([heapq.heappop(self._later).task], 0.0)
        while self._ready and self._ready[0].task.submission.done:  # nobody waits for it any more
            heapq.heappop(self._ready)
        if not self._ready:
            return None
        self._fill_up_rest()
        task = self._ready[0].task
        endpoint = self._choose(len(task.indices), now)
        if endpoint is None:
            return None
        heapq.heappop(self._ready)
        if endpoint.profile is not None and not endpoint.one_by_one:
            max_documents = endpoint.max_request_texts - 1
            if len(task.indices) > max_documents:
                self._put([replace(task, indices=task.indices[max_documents:], is_rest=True)], 0.0)
                task = replace(task, indices=task.indices[:max_documents])
        texts = self._texts(endpoint, len(task.indices))
        endpoint.requests += 1
        return Assignment(
            task,
            endpoint,
            endpoint.profile,
            now,
            texts,
            endpoint.limit.acquire(texts, now),
            endpoint.requests,
            endpoint.limit.timeout,
        )

    def _fill_up_rest(self) -> None:
        """Put what a smaller request has left over together with the task after it.

        Otherwise every other request of a client that may send 28 texts at once would hold a few, with a canary of its
        own. What is filled up is no rest any more: a task that comes back in halves, because it has too many bytes, is
        not put together again.
        """
        task = self._ready[0].task
        if not task.is_rest:
            return
        entry = heapq.heappop(self._ready)
        task = replace(task, is_rest=False)
        if self._ready and task.may_join(self._ready[0].task):
            other = heapq.heappop(self._ready).task
            task = replace(task, indices=[*task.indices, *other.indices])
        heapq.heappush(self._ready, _Entry(entry.key, task))

    def _texts(self, endpoint: Endpoint, documents: int) -> int:
        """Return how many texts a request with so many documents has in flight, the canary included."""
        if endpoint.profile is None:
            return min(len(PROBE_TEXTS), self._max_in_flight or len(PROBE_TEXTS))  # a handshake's largest request
        if endpoint.one_by_one:
            return 1
        return min(documents + 1, endpoint.max_request_texts)

    def _wake_another(self, now: float) -> None:
        """Have one more worker look, where there is something for it to send or to wait for; it does the same.

        Waking all of them would be wasted on most, and each wake-up costs as much as a tenth of a request.
        """
        sends = bool(self._ready) and self._choose(len(self._ready[0].task.indices), now) is not None
        if not sends and self._seconds_to_next(now) is None:
            return
        if self._idle:
            self._changed.notify()
        elif self._work is not None and not self._stopped:
            # Daemons, so that a request that hangs does not keep an interpreter from ending.
            thread = threading.Thread(target=self._run, name=f"tei-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more threads: those that there are take the tasks
                if not any(each.is_alive() for each in self._threads):
                    raise
            else:
                self._threads.append(thread)

    def _run(self) -> None:
        assert self._work is not None
        while (assignment := self.take()) is not None:
            self._work(assignment)

    def _choose(self, documents: int, now: float) -> Endpoint | None:
        """Return the less loaded of two endpoints with room, picked at random."""
        room = None
        if self._max_in_flight is not None:
            room = self._max_in_flight - sum(endpoint.limit.in_flight for endpoint in self.endpoints)
        open_ones = []
        for endpoint in self.endpoints:
            texts = self._texts(endpoint, documents)
            fits = endpoint.profile is None or endpoint.limit.fits(texts, now)
            if endpoint.admits(now) and fits and (room is None or texts <= room):
                open_ones.append(endpoint)
        if len(open_ones) > 2:
            open_ones = self._rng.sample(open_ones, 2)
        return min(open_ones, key=lambda one: one.limit.in_flight / one.limit.limit, default=None)

    def _seconds_to_next(self, now: float) -> float | None:
        times = [entry.key[0] for entry in self._later[:1]]
        if self._ready:
            times += [e.breaker.quiet_until for e in self.endpoints if e.breaker.quiet_until > now]
            # A limit that lets the queue drain rises again without a reply.
            times += [e.limit.drains_until for e in self.endpoints if e.limit.drains_until > now]
        return max(0.0, min(times) - now) if times else None
