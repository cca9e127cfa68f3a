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
        busy_seconds: how long the device computed.
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
    busy_seconds: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    seen: set[int] = field(default_factory=set, repr=False)

    def begin(self, asked: EmbedRequest) -> None:
        """Counts a request that has come."""
        self.started_at = self.started_at or time.perf_counter()
        self.requests += 1
        self.texts += len(asked.inputs)
        self.texts_in_flight += len(asked.inputs)
        self.peak_texts_in_flight = max(self.peak_texts_in_flight, self.texts_in_flight)
        for text in asked.inputs:
            digest = hash(text if isinstance(text, str) else tuple(text))
            self.texts_repeated += digest in self.seen
            self.seen.add(digest)

    def end(self, asked: EmbedRequest) -> None:
        """Counts a request that is done with."""
        self.texts_in_flight -= len(asked.inputs)
        self.ended_at = time.perf_counter()

    def compute(self, began: float, ended: float) -> None:
        """Counts a batch's time on the device, so far as it lies in what is counted."""
        self.busy_seconds += max(0.0, ended - max(began, self.started_at or began))

    def anew(self) -> Statistics:
        """Gives the counts of what comes from now on, what is under way included."""
        in_flight = self.texts_in_flight
        began = time.perf_counter() if in_flight else None
        return Statistics(texts_in_flight=in_flight, peak_texts_in_flight=in_flight, started_at=began)

    def told(self) -> dict[str, object]:
        """Gives all counts, and which share of the time between first and last request the device was busy."""
        counts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "seen"}
        span = (self.ended_at or 0.0) - (self.started_at or 0.0)
        return {**counts, "busy_share": min(self.busy_seconds / span, 1.0) if span > 0 else 0.0}
