"""What the workers work on: one submission a shard, cut into tasks of one request each."""

from __future__ import annotations

import bisect
import contextlib
import mmap
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transforms.elements import Reason, RequestStatistics, Vectors, latency_bucket
from transforms.tei.errors import EndpointError
from transforms.tei.transport import Reply

MAX_TIME_MS = 86_400_000.0  # in a statistics header; more is absurd and counts as missing
MAX_TOKENS = 1e9  # likewise, of one request
SPECIAL_TOKENS = 2  # that most models add to a text: one in front of it, one behind it


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a text can never be embedded.

    Attributes:
        reason: OVERLONG_TEXT, REJECTED_BY_ENDPOINT or INVALID_VECTOR.
        detail: the endpoint's message.
        http_status: of its last reply; None where none came.
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
        truncated: the indices of texts that were too long for the model, ascending; see `count_truncated`.
    """

    vectors: Vectors
    rejections: Mapping[int, Rejection]
    statistics: RequestStatistics
    truncated: Sequence[int] = ()


class Submission:
    """The texts of one shard, and their vectors as they come in. Its methods may be called from any thread.

    Attributes:
        number: of the submission; tasks of lower ones go first.
        texts: the shard's; none when all of them are settled.
        vectors: float32[len(texts), dimensions]; a row is zeros, or half written, before its text's vector is stored.
        stored: bool[len(texts)], whether the text's vector is there, whole.
    """

    def __init__(self, number: int, texts: Sequence[str], dimensions: int) -> None:
        self.number = number
        self.texts = texts
        self.vectors = _zeros(len(texts), dimensions)
        self.stored = np.zeros(len(texts), dtype=np.bool_)
        self._rejections: dict[int, Rejection] = {}
        self._truncated: set[int] = set()
        self._sums = RequestStatistics()
        self._times_ms = dict.fromkeys(("queue", "inference", "throttled", "flight", "busy", "slot"), 0.0)
        self._count = self._left = len(texts)
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        if not texts:
            self._done.set()

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, because all texts are settled or it has failed."""
        return self._done.is_set()

    @property
    def settled(self) -> int:
        """Texts that have their vector or their rejection."""
        return self._count - self._left

    def store(self, indices: Sequence[int], rows: Vectors, canary: int | None = None) -> None:
        """Take the vectors of some texts, each text's once.

        Args:
            indices: of the texts.
            rows: float32[len(indices), dimensions], or one more with the canary's.
            canary: the place of the canary's row, which is left out; None for no such row.
        """
        # Outside the lock: no two tasks hold the same text.
        if canary is None:
            self.vectors[indices] = rows
        else:  # in two pieces: a copy without the row would cost more
            self.vectors[indices[:canary]] = rows[:canary]
            self.vectors[indices[canary:]] = rows[canary + 1 :]
        self.stored[indices] = True
        self._settle(len(indices))

    def reject(self, index: int, rejection: Rejection) -> None:
        """Take the reason for which a text has no vector."""
        with self._lock:
            self._rejections[index] = rejection
        self._settle(1)

    def truncate(self, indices: Iterable[int]) -> None:
        """Record texts of which the client itself sends only the beginning."""
        with self._lock:
            self._truncated.update(indices)

    def count_exchange(
        self,
        reply: Reply,
        indices: Sequence[int],
        *,
        canary_tokens: int,
        max_tokens: int,
        truncates: bool,
        requests_in_flight: int,
    ) -> None:
        """Count a request that succeeded, before its vectors are stored.

        Args:
            reply: with TEI's statistics in its headers.
            indices: of the shard's texts in the request, longest first.
            canary_tokens: in the request that were not the shard's.
            max_tokens: that the model reads of a text.
            truncates: whether the server truncates longer texts; otherwise it refuses them.
            requests_in_flight: when this one was sent, itself included.
        """
        texts = len(indices)
        tokens = max(0, int(reply.number("x-compute-tokens", MAX_TOKENS)) - canary_tokens)
        milliseconds = reply.seconds * 1000
        # Means over the request's texts.
        queue, inference = (reply.number(f"x-{name}-time", MAX_TIME_MS) for name in ("queue", "inference"))
        # While others of ours wait in its queue, the device is busy; otherwise as long as it works on this request.
        slot = milliseconds / max(1, requests_in_flight)
        truncated = (
            count_truncated([len(self.texts[index]) for index in indices], tokens, max_tokens) if truncates else 0
        )
        with self._lock:
            self._truncated.update(indices[:truncated])
            self._sums.requests += 1
            self._sums.latency_ms[latency_bucket(milliseconds)] += 1
            self._sums.tokens += tokens
            self._times_ms["queue"] += queue * texts
            self._times_ms["inference"] += inference * texts
            self._times_ms["flight"] += milliseconds * texts
            self._times_ms["slot"] += slot
            self._times_ms["busy"] += min(slot, queue + inference)

    def count_retries(self, times: int = 1) -> None:
        """Count requests that are made again."""
        with self._lock:
            self._sums.retries += times

    def count_throttled(self, seconds: float) -> None:
        """Count time in which the server wanted to be left alone."""
        with self._lock:
            self._times_ms["throttled"] += seconds * 1000

    def fail(self, failure: BaseException) -> None:
        """End with an exception for those who wait, unless all texts are settled."""
        with self._lock:
            if self._done.is_set():
                return
            self._failure = failure
            self._done.set()

    def result(self) -> Embeddings:
        """Wait until every text has its vector or its rejection; raise what ended it otherwise."""
        self._done.wait()
        if self._failure is not None:
            raise copy_of(self._failure)
        with self._lock:
            times = {f"{name}_ms": round(value) for name, value in self._times_ms.items()}
            statistics = replace(self._sums, latency_ms=Counter(self._sums.latency_ms), **times)
            truncated = sorted(self._truncated - self._rejections.keys())
            return Embeddings(self.vectors, dict(self._rejections), statistics, truncated)

    def _settle(self, texts: int) -> None:
        with self._lock:
            self._left -= texts
            if self._left == 0:
                self.texts = ()  # the result may be kept long after the texts are of use
                self._done.set()


def count_truncated(characters: Sequence[int], tokens: int, max_tokens: int) -> int:
    """Return how many of a request's texts have at least as many tokens as the model reads, as far as it shows.

    A reply gives one number of tokens for all texts together. With r tokens a character, text i has
    min(r * characters[i] + 2, max_tokens) of them, two being special, and r is the one for which these add up to that
    number. Texts of one length travel together, so in most requests all texts are truncated or none is, and the answer
    is exact.

    Args:
        characters: of each text, largest first.
        tokens: of all of them, after truncation; 0 where the server reports none.
        max_tokens: that the model reads of a text.
    """
    limit = max(1, max_tokens - SPECIAL_TOKENS)
    tokens_left, characters_left = tokens - SPECIAL_TOKENS * len(characters), sum(characters)
    for count, longest in enumerate(characters):
        # Without the `count` texts that fill the limit, the longest has its share of the tokens that are left.
        if tokens_left * longest < limit * characters_left:
            return count
        tokens_left -= limit
        characters_left -= longest
    return len(characters)


def _zeros(count: int, dimensions: int) -> Vectors:
    """Return float32[count, dimensions] in memory of its own, which the system has back as soon as nobody needs it.

    Python's allocator keeps what was that large once, in pieces: 40 MB of a process's peak.
    """
    memory = mmap.mmap(-1, max(1, 4 * count * dimensions), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # neither every system knows of huge pages nor every kernel
        memory.madvise(mmap.MADV_HUGEPAGE)  # otherwise every other vector takes a page fault
    return np.ndarray((count, dimensions), dtype=np.float32, buffer=memory)


def copy_of(failure: BaseException) -> BaseException:
    """Return a failure as an object of its own for each caller that raises it: a traceback belongs to one raise."""
    if not isinstance(failure, EndpointError):
        return failure
    fresh = type(failure)(*failure.args)
    fresh.__cause__ = failure
    return fresh


@dataclass(frozen=True, slots=True)
class Task:
    """Some texts of one submission that go out together.

    Attributes:
        submission: whose texts.
        indices: which of them, longest first.
        sequence: its place among its tasks; what it is split into keeps it.
        attempts: requests that have carried these texts.
        waits: failures in a row that were the endpoint's.
        blames: failures that may be a text's.
        invalid_vector: whether its one text has had a vector that cannot be used: that says more than errors do.
        body_bytes: of its last request.
        is_rest: whether it is what a request that holds fewer texts has left over.
    """

    submission: Submission
    indices: Sequence[int]
    sequence: int
    attempts: int = 0
    waits: int = 0
    blames: int = 0
    invalid_vector: bool = False
    body_bytes: int = 0
    is_rest: bool = False

    @property
    def alone(self) -> bool:
        """Whether it is one text, whose neighbours cannot be blamed for a failure."""
        return len(self.indices) == 1

    def may_join(self, other: Task) -> bool:
        """Return whether both can go out in one request.

        Texts that may be bad stay among themselves, and so do those that a request has carried already: they may be
        longer than the texts before them.
        """
        is_fresh = not (other.attempts or other.waits or other.blames)
        return is_fresh and other.submission is self.submission and not (self.waits or self.blames)

    def only(self, indices: Sequence[int], blames: int = 0) -> Task:
        """Return some of its texts as a task of their own."""
        return replace(self, indices=indices, waits=0, blames=blames, is_rest=False)

    def halves(self, blames: int = 0) -> list[Task]:
        """Return the task in two."""
        middle = (len(self.indices) + 1) // 2
        parts = (self.indices[:middle], self.indices[middle:])
        return [self.only(part, blames) for part in parts if len(part)]


def cut(
    texts: Sequence[str], max_texts: int, max_characters: int, kept: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield the texts of one request after the other, by their indices, longest first.

    A server that pads computes each device batch at its longest text's length, so texts of a length go together; the
    longest go first, so that none of them is what a shard waits for in the end.

    Args:
        texts: those of one shard.
        max_texts: in one request.
        max_characters: in one request, unless a single text has more; a character is at least one byte.
        kept: the indices to cut; None for all.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    chosen = np.arange(len(texts)) if kept is None else np.asarray(kept, dtype=np.int64)
    order = chosen[np.argsort(-lengths[chosen], kind="stable")]
    totals: list[int] = [0, *np.cumsum(lengths[order]).tolist()]
    indices: list[int] = order.tolist()
    start = 0
    while start < len(indices):
        within_bytes = bisect.bisect_right(totals, totals[start] + max_characters) - 1
        end = max(start + 1, min(start + max_texts, within_bytes))
        yield indices[start:end]
        start = end
