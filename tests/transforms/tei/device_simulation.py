"""A device with one queue, and clients with their real schedulers, in virtual time: seconds take microseconds."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.transforms.tei.helpers import profile
from transforms.tei.endpoint import Backoff, Endpoint
from transforms.tei.scheduler import Assignment, Outcome, Scheduler
from transforms.tei.tasks import Submission, Task
from transforms.tei.transport import Reply

DOCUMENTS = 31  # of a full request, which has the canary, too
TURN = 0.0005  # seconds that a client takes between a reply and its next request


@dataclass
class Server:
    """What the simulated server is like; speed and latency may change while it works.

    Attributes:
        texts_per_second: of the device.
        batch: texts that it computes together.
        batch_seconds: that each batch takes beside that.
        permits: texts that the server takes at once; it refuses what exceeds them.
        latency: seconds of the way there and back.
        headers: whether replies have TEI's times, in whole milliseconds as TEI reports them.
        jitter: seconds that each way may take beside its half of the latency: without any, one client's next request
            always finds the permits that its last one has left.
        gate: requests that something in front of the server lets through at once; None for all.
    """

    texts_per_second: float
    batch: int
    batch_seconds: float = 0.0
    permits: int = 512
    latency: float = 0.0
    headers: bool = True
    jitter: float = 0.0
    gate: int | None = None

    def seconds(self, texts: int) -> float:
        """Return how long the device takes for a batch."""
        return self.batch_seconds + texts / self.texts_per_second


@dataclass
class Request:
    """One request on its way. `left` counts the texts that are not computed yet; the sums are over its texts."""

    texts: int
    reply: Callable[[Request], None]
    refuse: Callable[[Request], None] = lambda _: None
    left: int = 0
    arrived: float = 0.0
    queue_seconds: float = 0.0
    device_seconds: float = 0.0
    closed: bool = False


@dataclass
class Measured:
    """What happened in some time.

    Attributes:
        busy: share of the time in which the device computed.
        queue: texts that waited for it, on average.
        served: texts delivered to each client.
        wasted: texts that were computed for a request that was closed.
        refused: requests.
        timeouts: requests.
        max_in_flight: texts at the server.
        waits: seconds that each query of somebody else took.
    """

    seconds: float = 0.0
    busy: float = 0.0
    queue: float = 0.0
    served: list[int] = field(default_factory=list)
    wasted: int = 0
    refused: int = 0
    timeouts: int = 0
    max_in_flight: int = 0
    waits: list[float] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """What each client got of a fair share, in order."""
        return sorted(served * len(self.served) / sum(self.served) for served in self.served)


class Client:
    """One process: the real scheduler over endless work, or a number of documents."""

    def __init__(
        self, simulation: DeviceSimulation, number: int, documents: int | None, processes: int, timeout: float
    ) -> None:
        self._simulation = simulation
        server = simulation.server
        rng = random.Random(f"{simulation.seed} {number}")
        self.endpoint = Endpoint("http://tei", Backoff(rng), processes=processes, timeout=timeout)
        # The handshake's slowest probe was alone on the device.
        self.endpoint.adopt(
            profile(seconds_per_text=server.seconds(1) + server.latency, max_concurrent_requests=server.permits)
        )
        self.scheduler = Scheduler([self.endpoint], rng, None, lambda: simulation.now)
        self._submission = Submission(number, ["text"] * DOCUMENTS, 1)
        self._sequence = itertools.count()
        self._documents = math.inf if documents is None else documents
        self._queued = 0
        self._woken_at = -1.0
        self._number = number
        self.under_way = 0

    @property
    def done(self) -> bool:
        """Whether all documents were delivered."""
        return not (self._documents or self._queued or self.under_way)

    def stop(self) -> None:
        """Send nothing more after what is queued."""
        self._documents = 0

    def send(self) -> None:
        """Send what may be sent now, and come back when more may be."""
        simulation = self._simulation
        while True:
            while self._documents and self._queued < 2 * DOCUMENTS:
                count = int(min(DOCUMENTS, self._documents))
                self._documents -= count
                self._queued += count
                self.scheduler.put([Task(self._submission, range(count), next(self._sequence))])
            assignment = self.scheduler.take(block=False)
            if assignment is None:
                break
            self._queued -= len(assignment.task.indices)
            self.under_way += 1
            request = Request(assignment.texts, lambda done, mine=assignment: self._replied(mine, done))  # type: ignore[misc]
            request.refuse = lambda refused, mine=assignment: self._refused(mine, refused)  # type: ignore[misc]
            simulation.travel(lambda request=request: simulation.arrive(request))  # type: ignore[misc]
            simulation.after(
                assignment.timeout,
                lambda request=request, mine=assignment: self._timed_out(mine, request),  # type: ignore[misc]
            )
        times = (self.endpoint.breaker.quiet_until, self.endpoint.limit.drains_until)
        later = min((time for time in times if time > simulation.now), default=None)
        if later is not None and later != self._woken_at:
            self._woken_at = later
            simulation.at(later, self.send)

    def _replied(self, assignment: Assignment, request: Request) -> None:
        if request.closed:
            return
        request.closed = True
        simulation = self._simulation
        headers = {}
        if simulation.server.headers:
            headers = {
                "x-queue-time": str(int(1000 * request.queue_seconds / request.texts)),
                "x-inference-time": str(int(1000 * request.device_seconds / request.texts)),
            }
        simulation.measured.served[self._number] += request.texts
        reply = Reply(200, headers, b"", simulation.now - assignment.started)
        self._settle(assignment, Outcome.ANSWERED, reply=reply)

    def _refused(self, assignment: Assignment, request: Request) -> None:
        if not request.closed:
            request.closed = True
            self._simulation.measured.refused += 1
            self._settle(assignment, Outcome.REFUSED, again=True)

    def _timed_out(self, assignment: Assignment, request: Request) -> None:
        if not request.closed:
            self._simulation.measured.timeouts += 1
            self._simulation.drop(request)
            self._settle(assignment, Outcome.TIMED_OUT, again=True)

    def _settle(
        self, assignment: Assignment, outcome: Outcome, *, reply: Reply | None = None, again: bool = False
    ) -> None:
        self.under_way -= 1
        self._queued += len(assignment.task.indices) if again else 0
        self.scheduler.settle(assignment, outcome, [assignment.task] if again else [], reply=reply)
        self._simulation.after(TURN, self.send)


class DeviceSimulation:
    """One server and its clients.

    Args:
        server: what they share.
        documents: that each client has; None for endless work.
        clients: how many there are from the start.
        processes: how many each client believes there are.
        timeout: seconds that a request may take, as configured.
        seed: of all chance.
    """

    def __init__(
        self,
        server: Server,
        *,
        documents: int | None = None,
        clients: int = 1,
        processes: int = 1,
        timeout: float = 60.0,
        seed: int = 0,
    ) -> None:
        self.server = server
        self.seed = seed
        self.now = 0.0
        self.measured = Measured()
        self.clients: list[Client] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._rng = random.Random(seed)
        self._queue: deque[tuple[Request, int]] = deque()
        self._queued = self._requests = self._in_flight = 0
        self._began: float | None = None  # the batch on the device
        self._measured_until = 0.0
        self._options = documents, processes, timeout
        self.join(clients)

    def join(self, clients: int) -> None:
        """Let more clients begin, each some milliseconds after the other."""
        for _ in range(clients):
            client = Client(self, len(self.clients), *self._options)
            self.after(0.003 * len(self.clients), client.send)
            self.clients.append(client)

    def ask(self, every: float) -> None:
        """Let somebody else send a query of one text again and again; the seconds that each takes are measured."""

        def query() -> None:
            asked_at = self.now
            self.arrive(Request(1, lambda _: self.measured.waits.append(self.now - asked_at)))
            self.after(every, query)

        query()

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen later."""
        self.at(self.now + seconds, happen)

    def travel(self, happen: Callable[[], None]) -> None:
        """Let something happen at the other end of the way."""
        self.after(self.server.latency / 2 + self._rng.uniform(0, self.server.jitter), happen)

    def at(self, time: float, happen: Callable[[], None]) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._events, (time, next(self._count), happen))

    def run(self, seconds: float = math.inf) -> Measured:
        """Let so much time pass, or until all clients are done; return what happened in it."""
        self.measured = Measured(served=[0] * len(self.clients))
        began, end = self.now, self.now + seconds
        self._measured_until = self.now
        while self._events and self._events[0][0] <= end and not all(client.done for client in self.clients):
            now, _, happen = heapq.heappop(self._events)
            self._pass_time(now)
            happen()
        if end < math.inf and not all(client.done for client in self.clients):
            self._pass_time(end)
        measured = self.measured
        measured.seconds = self.now - began
        measured.busy /= measured.seconds
        measured.queue /= measured.seconds
        return measured

    def arrive(self, request: Request) -> None:
        """Take a request in, or refuse it."""
        if request.closed:
            return
        server = self.server
        if self._in_flight + request.texts > server.permits or self._requests == server.gate:
            self.travel(lambda: request.refuse(request))
            return
        self._in_flight += request.texts
        self._requests += 1
        self.measured.max_in_flight = max(self.measured.max_in_flight, self._in_flight)
        request.left, request.arrived = request.texts, self.now
        self._queue.append((request, request.texts))
        self._queued += request.texts
        self._compute()

    def drop(self, request: Request) -> None:
        """Close a request: what waits of it is dropped, as TEI does, and what was computed of it is wasted."""
        request.closed = True
        waiting = sum(texts for other, texts in self._queue if other is request)
        self._queue = deque(entry for entry in self._queue if entry[0] is not request)
        self._queued -= waiting
        self.measured.wasted += request.texts - waiting
        if request.left:  # it had arrived, and has had no reply
            self._in_flight -= request.texts
            self._requests -= 1

    def _pass_time(self, now: float) -> None:
        seconds = now - self._measured_until
        self.measured.busy += seconds if self._began is not None else 0.0
        self.measured.queue += seconds * self._queued
        self._measured_until = self.now = now

    def _compute(self) -> None:
        if self._began is not None or not self._queue:
            return
        batch: list[tuple[Request, int]] = []
        room = self.server.batch
        while room and self._queue:
            request, texts = self._queue.popleft()
            taken = min(room, texts)
            batch.append((request, taken))
            room -= taken
            if taken < texts:
                self._queue.appendleft((request, texts - taken))
        texts = self.server.batch - room
        self._queued -= texts
        self._began = self.now
        self.after(self.server.seconds(texts), lambda: self._computed(batch))

    def _computed(self, batch: list[tuple[Request, int]]) -> None:
        assert self._began is not None
        seconds = self.now - self._began
        for request, texts in batch:
            request.queue_seconds += texts * (self._began - request.arrived)
            request.device_seconds += texts * seconds
            if request.closed:
                continue
            request.left -= texts
            if request.left == 0:
                self._in_flight -= request.texts
                self._requests -= 1
                self.travel(lambda request=request: request.reply(request))  # type: ignore[misc]
        self._began = None
        self._compute()
