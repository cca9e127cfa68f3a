"""What the pool works on: one job a shard, cut into tasks of one request each."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transforms.elements import Reason, RequestStatistics, Vectors, latency_bucket
from transforms.tei.errors import EndpointError
from transforms.tei.transport import Reply


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a text can never be embedded.

    Attributes:
        reason: OVERLONG_TEXT, REJECTED_BY_ENDPOINT or INVALID_VECTOR.
        detail: what the endpoint said.
        http_status: of its last reply; None where it was never asked.
        attempts: requests that carried the text.
    """

    reason: Reason
    detail: str
    http_status: int | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What became of a shard's texts.

    Attributes:
        vectors: float32[len(texts), dimensions], in the texts' order; rows of rejected texts are zeros.
        rejections: a text's index to why it can never be embedded.
        statistics: what it took, exactly.
    """

    vectors: Vectors
    rejections: Mapping[int, Rejection]
    statistics: RequestStatistics


class Job:
    """The texts of one shard, and their vectors as they come in. Its methods may be called from any thread."""

    def __init__(self, number: int, texts: Sequence[str], dimensions: int) -> None:
        self.number = number
        self.texts = texts
        self._vectors = _zeros(len(texts), dimensions)
        self._rejections: dict[int, Rejection] = {}
        self._sums = RequestStatistics()
        self._queue_ms = self._inference_ms = self._throttled_ms = 0.0
        self._left = len(texts)
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        if not texts:
            self._over.set()

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, well or ill."""
        return self._over.is_set()

    def store(self, indices: Sequence[int], rows: Vectors) -> None:
        """Takes the vectors of some texts, each text's once."""
        # Outside the lock: no two tasks hold the same text.
        self._vectors[indices] = rows
        self._settled(len(indices))

    def reject(self, index: int, rejection: Rejection) -> None:
        """Takes the reason for which a text has no vector."""
        with self._lock:
            self._rejections[index] = rejection
        self._settled(1)

    def exchanged(self, reply: Reply, texts: int, extra_tokens: int, most_tokens: int) -> None:
        """Counts a request that succeeded; `extra_tokens` were not the shard's, a text has at most `most_tokens`."""
        tokens = max(0, int(reply.number("x-compute-tokens")) - extra_tokens)
        with self._lock:
            self._sums.requests += 1
            self._sums.retries += reply.resent
            self._sums.latency_ms[latency_bucket(reply.seconds * 1000)] += 1
            self._sums.tokens += tokens
            self._sums.at_limit += texts if tokens >= texts * most_tokens else 0
            # These two are means over the request's texts.
            self._queue_ms += reply.number("x-queue-time") * texts
            self._inference_ms += reply.number("x-inference-time") * texts

    def repeated(self, times: int = 1) -> None:
        """Counts requests that are made again."""
        with self._lock:
            self._sums.retries += times

    def waited(self, seconds: float) -> None:
        """Counts time in which the server wants to be left alone."""
        with self._lock:
            self._throttled_ms += seconds * 1000

    def fail(self, failure: BaseException) -> None:
        """Ends the job, unless it is done."""
        with self._lock:
            if self._over.is_set():
                return
            self._failure = failure
            self._over.set()

    def result(self) -> Embeddings:
        """Waits until every text has its vector or its rejection; raises what ended the job otherwise."""
        self._over.wait()
        if self._failure is not None:
            raise another(self._failure)
        with self._lock:
            return Embeddings(self._vectors, dict(self._rejections), self._statistics())

    def _statistics(self) -> RequestStatistics:
        return replace(
            self._sums,
            latency_ms=Counter(self._sums.latency_ms),
            queue_ms=round(self._queue_ms),
            inference_ms=round(self._inference_ms),
            throttled_ms=round(self._throttled_ms),
        )

    def _settled(self, texts: int) -> None:
        with self._lock:
            self._left -= texts
            if self._left == 0:
                self.texts = ()  # the result may be kept long after the texts are of use
                self._over.set()


def _zeros(count: int, dimensions: int) -> Vectors:
    """float32[count, dimensions], in memory of its own, which the system has back as soon as nobody needs it.

    Python's allocator keeps what was that large once, in pieces: 40 MB of a process's peak.
    """
    memory = mmap.mmap(-1, max(1, 4 * count * dimensions), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # neither every system knows of huge pages nor every kernel
        memory.madvise(mmap.MADV_HUGEPAGE)  # otherwise every other vector has the kernel find a page
    return np.ndarray((count, dimensions), dtype=np.float32, buffer=memory)


def another(failure: BaseException) -> BaseException:
    """A failure as an object of its own for each who raises it: a traceback is one raise's."""
    if not isinstance(failure, EndpointError):
        return failure
    fresh = type(failure)(*failure.args)
    fresh.__cause__ = failure
    return fresh


@dataclass(frozen=True, slots=True)
class Task:
    """Some texts of one job that go out together.

    Attributes:
        job: whose texts.
        indices: which of them, longest first.
        sequence: its place among the job's tasks; what it is split into keeps it.
        canary: whether a known sentence goes with them.
        attempts: requests that have carried these texts.
        waits: failures in a row that were the endpoint's.
        blames: failures that may be a text's.
        ill_embedded: whether its one text has had a vector that cannot be used: that tells more than errors do.
        body_bytes: of its last request.
    """

    job: Job
    indices: Sequence[int]
    sequence: int
    canary: bool = False
    attempts: int = 0
    waits: int = 0
    blames: int = 0
    ill_embedded: bool = False
    body_bytes: int = 0

    @property
    def size(self) -> int:
        """Texts in the request."""
        return len(self.indices) + self.canary

    @property
    def alone(self) -> bool:
        """Whether a failure can be nobody else's, as far as the request goes."""
        return self.size == 1

    def sent(self, body_bytes: int) -> Task:
        """This task after one more request."""
        return replace(self, attempts=self.attempts + 1, body_bytes=body_bytes)

    def only(self, indices: Sequence[int], blames: int = 0) -> Task:
        """Some of its texts as a task of their own."""
        return replace(self, indices=indices, canary=False, waits=0, blames=blames)

    def halves(self, blames: int = 0) -> list[Task]:
        """The task in two; a single text is parted from the known sentence."""
        if len(self.indices) == 1:
            return [self.only(self.indices, blames)]
        middle = (len(self.indices) + 1) // 2
        return [self.only(self.indices[:middle], blames), self.only(self.indices[middle:], blames)]

    def divided(self, size: int) -> list[Task]:
        """The task in requests of at most so many texts; a known sentence stays with the first if it can."""
        if self.size <= size:
            return [self]
        first = max(1, size - self.canary)
        canary = self.canary and size > 1
        head = replace(self, indices=self.indices[:first], canary=canary)
        rest = self.indices[first:]
        return [head, *(replace(self, indices=rest[i : i + size], canary=False) for i in range(0, len(rest), size))]
