"""What the simulator saw of its clients."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

from pipeline.embedded_tei.wire import EmbedRequest


@dataclass(slots=True)
class Statistics:
    """Counts.

    Attributes:
        requests: requests for embeddings that could be parsed.
        answered: those answered with 200.
        info_requests: requests for `/info`.
        info_faults: those that a fault was chosen for; some leave `/info` as it is.
        rejected: those answered with 429.
        texts: texts in all requests.
        texts_repeated: texts that had been in an earlier request, or earlier in the same one.
        texts_in_flight: texts in the requests that are not answered yet.
        peak_texts_in_flight: the most there were.
        batches: device batches.
        tokens: tokens in them.
        texts_computed: texts in batches that succeeded.
        texts_delivered: texts of replies that were written to a connection that was still open.
        texts_dropped: queued texts whose client closed its connection.
        cache_hits: requests that the caching proxy answered.
        busy_seconds: how long the device computed.
        computing_since: when the running batch began; None while there is none, or the device is instant.
        queue_length: texts that wait for the device.
        max_queue_length: the most there were.
        started_at: when the first request came, or counting began while there were some; seconds on a clock of their
            own, as the next.
        ended_at: when the last request was answered.
    """

    requests: int = 0
    answered: int = 0
    info_requests: int = 0
    info_faults: int = 0
    rejected: int = 0
    texts: int = 0
    texts_repeated: int = 0
    texts_in_flight: int = 0
    peak_texts_in_flight: int = 0
    batches: int = 0
    tokens: int = 0
    texts_computed: int = 0
    texts_delivered: int = 0
    texts_dropped: int = 0
    cache_hits: int = 0
    busy_seconds: float = 0.0
    computing_since: float | None = None
    queue_length: int = 0
    max_queue_length: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    _seen: set[int] = field(default_factory=set, repr=False)
    _queue_seconds: float = 0.0  # integral of the queue's length
    _queue_changed_at: float = 0.0

    def begin(self, request: EmbedRequest) -> None:
        """Count a request that has come."""
        self.started_at = self.started_at or time.perf_counter()
        self.requests += 1
        self.texts += len(request.inputs)
        self.texts_in_flight += len(request.inputs)
        self.peak_texts_in_flight = max(self.peak_texts_in_flight, self.texts_in_flight)
        for text in request.inputs:
            digest = hash(text)
            self.texts_repeated += digest in self._seen
            self._seen.add(digest)

    def end(self, request: EmbedRequest) -> None:
        """Count a request that is done with."""
        self.texts_in_flight -= len(request.inputs)
        self.ended_at = time.perf_counter()

    def computed(self, began: float, ended: float) -> None:
        """Count a batch's time on the device, as far as it lies in the time that is counted."""
        self.busy_seconds += max(0.0, ended - max(began, self.started_at or began))
        self.computing_since = None

    def queue_changed(self, length: int) -> None:
        """Count the texts that wait."""
        now = time.perf_counter()
        self._queue_seconds += self.queue_length * (now - (self._queue_changed_at or now))
        self._queue_changed_at = now
        self.queue_length = length
        self.max_queue_length = max(self.max_queue_length, length)

    def restarted(self) -> Statistics:
        """Return the counts of what comes from now on, what is under way included."""
        now = time.perf_counter()
        return Statistics(
            texts_in_flight=self.texts_in_flight,
            peak_texts_in_flight=self.texts_in_flight,
            started_at=now if self.texts_in_flight else None,
            computing_since=self.computing_since,
            queue_length=self.queue_length,
            max_queue_length=self.queue_length,
            _queue_changed_at=now,
        )

    def to_dict(self) -> dict[str, object]:
        """Return all counts.

        The device's idle time, its busy share and the mean queue length are over the time from the first request to
        the last reply, or until now while there are texts in flight.
        """
        self.queue_changed(self.queue_length)
        counts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.name.startswith("_")}
        ended = time.perf_counter() if self.texts_in_flight else self.ended_at or 0.0
        span = max(0.0, ended - (self.started_at or ended))
        busy = self.busy_seconds
        if self.computing_since is not None and self.started_at is not None:
            busy += max(0.0, ended - max(self.computing_since, self.started_at))
        return {
            **counts,
            "busy_seconds": busy,
            "idle_seconds": max(0.0, span - busy),
            "busy_share": min(busy / span, 1.0) if span else 0.0,
            "mean_queue_length": self._queue_seconds / span if span else 0.0,
        }
