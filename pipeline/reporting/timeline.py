"""What receipts show of a job's course: when it worked, how fast, and what limited it. Plain functions."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.reporting.numbers import milliseconds
from pipeline.reporting.schema import Bottleneck, Timeline, Verdict
from transforms.elements import BUCKETS_PER_DOUBLING
from transforms.output.receipts import Receipt

_MAX_BUCKETS = 100
_RECEIPTS_A_BUCKET = 2  # at least: of receipts that come in pairs, every other bucket would be empty otherwise
_MIN_PAUSE = 1.0  # seconds
# A text that arrives while the device computes waits for half of a batch on the mean; with more than that in the queue,
# the next batch was ready whenever one was done. A text that arrives at an idle device hardly waits.
_WAITING = 0.5
_NOT_WAITING = 0.1
_IDLE_REQUESTS = 0.5  # fewer requests in the server on the mean: it had none at all at least half of the time


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which at least one shard was under way: seconds since the epoch, and how much work lay before it."""

    start: float
    end: float
    before: float

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end - self.start


def stretches_of(receipts: Iterable[Receipt]) -> list[Stretch]:
    """Return the times in which at least one shard was under way, without the pauses between them."""
    found: list[Stretch] = []
    for start, end in sorted((receipt.started_at, receipt.finished_at) for receipt in receipts):
        if found and start <= found[-1].end:
            last = found[-1]
            found[-1] = Stretch(last.start, max(last.end, end), last.before)
        else:
            found.append(Stretch(start, end, found[-1].before + found[-1].seconds if found else 0.0))
    return found


def active_seconds(receipts: Iterable[Receipt]) -> float:
    """Return the time of work: the seconds in which at least one shard was under way, without pauses between runs."""
    return sum(stretch.seconds for stretch in stretches_of(receipts))


def timeline(receipts: Sequence[Receipt]) -> Timeline:
    """Return the course of a job over its time of work; pauses between runs are cut out of it.

    Shards are embedded one behind the other, so what a shard took is spread over the time since the receipt before.
    Where there are few receipts, there are few buckets: a finer course is not known.
    """
    stretches = stretches_of(receipts)
    times, documents, queue, in_flight = _sums_over_time(receipts, stretches)
    total = float(times[-1])
    buckets = min(_MAX_BUCKETS, -(-len(receipts) // _RECEIPTS_A_BUCKET)) if total else 0
    edges = np.linspace(0.0, total, buckets + 1)

    def means(sums: npt.NDArray[np.float64]) -> tuple[float, ...]:
        return tuple((np.diff(np.interp(edges, times, sums)) / np.diff(edges)).round(2).tolist())

    return Timeline(
        bucket_seconds=round(total / buckets, 6) if buckets else 0.0,
        documents_per_second=means(documents),
        # By Little's law: the seconds that all texts spent somewhere, a second, are the texts there on the mean.
        texts_in_queue=means(queue),
        texts_in_flight=means(np.maximum(queue, in_flight)),
        pauses_at=tuple(
            round(later.before, 3)
            for earlier, later in itertools.pairwise(stretches)
            if later.start - earlier.end >= _MIN_PAUSE
        ),
    )


def _sums_over_time(receipts: Sequence[Receipt], stretches: Sequence[Stretch]) -> npt.NDArray[np.float64]:
    """Return four rows: the seconds of work at which receipts were written, and sums up to then.

    The sums are of documents, of seconds that texts spent in the endpoint's queue, and of seconds from sending a text
    to its answer.
    """
    starts = [stretch.start for stretch in stretches]
    rows = [(0.0, 0.0, 0.0, 0.0)]
    for receipt in sorted(receipts, key=lambda receipt: receipt.finished_at):
        stretch = stretches[bisect_right(starts, receipt.finished_at) - 1]
        statistics = receipt.statistics
        rows.append(
            (
                stretch.before + receipt.finished_at - stretch.start,
                rows[-1][1] + receipt.embedded,
                rows[-1][2] + statistics.queue_ms / 1000,
                rows[-1][3] + receipt.embedded * (mean_latency_ms(statistics.latency_ms) or 0.0) / 1000,
            )
        )
    return np.array(rows).T


def mean_latency_ms(latency: Mapping[int, int]) -> float | None:
    """Return the mean of a histogram, each request at the middle of its bucket; None of an empty one."""
    requests = sum(latency.values())
    middle = 2 ** (-0.5 / BUCKETS_PER_DOUBLING)
    return sum(bound * middle * count for bound, count in latency.items()) / requests if requests else None


def bottleneck(embedded: int, queue_ms: int, inference_ms: int, latency: Counter[int], seconds: float) -> Bottleneck:
    """Decide whether the endpoint limited the speed, or what feeds it.

    Args:
        embedded: texts.
        queue_ms: in the endpoint's queue, summed over texts.
        inference_ms: in its device, likewise.
        latency: requests by the upper bound of their latency's bucket, in milliseconds.
        seconds: of work.
    """
    mean = mean_latency_ms(latency)
    queue, inference = (round(value / embedded, 2) if embedded else 0.0 for value in (queue_ms, inference_ms))
    in_server = sum(latency.values()) * (queue + inference) / 1000 / seconds if seconds else None
    verdict, why = _verdict(queue, inference, in_server)
    return Bottleneck(
        verdict=verdict,
        why=why,
        queue_ms_per_text=queue,
        inference_ms_per_text=inference,
        latency_ms_per_request=None if mean is None else round(mean, 1),
        requests_in_server=None if in_server is None else round(in_server, 2),
        texts_in_flight=None if mean is None or not seconds else round(embedded * mean / 1000 / seconds, 1),
    )


def _verdict(queue: float, inference: float, in_server: float | None) -> tuple[Verdict, str]:
    """Return what limited the speed, by milliseconds a text and the mean number of requests in the server."""
    if in_server is None or not queue + inference:
        return "unknown", (
            "The endpoint reported no time in its queue or its device, or none that reaches a millisecond, so what "
            "limited the speed is not known."
        )
    seen = (
        f"a text waited {milliseconds(queue)} in the endpoint's queue and spent {milliseconds(inference)} in its device"
    )
    if in_server < _IDLE_REQUESTS:
        return "client", (
            f"What feeds the endpoint: {seen}, but at least half of the time it had no request at all. More worker "
            "processes, or workers nearer to the endpoint, shorten the job; a faster device does not."
        )
    if queue >= _WAITING * inference:
        return "endpoint", (
            f"The endpoint: {seen}, so the next batch was ready whenever one was done. A faster device or another "
            "--endpoint shortens the job; more workers do not."
        )
    if queue <= _NOT_WAITING * inference:
        return "client", (
            f"What feeds the endpoint: {seen}, so most texts found the device free. More worker processes, a larger "
            "--max_in_flight, or workers nearer to the endpoint shorten the job; a faster device helps little."
        )
    return "balanced", f"Neither side clearly: {seen}, so the device was busy most of the time, but not always."
