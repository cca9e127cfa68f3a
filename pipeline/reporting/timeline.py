"""What receipts show of a job's course: when it worked, how fast, and what limited it. Plain functions."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.reporting.numbers import count, milliseconds, percent
from pipeline.reporting.schema import Bottleneck, Timeline, Verdict
from transforms.elements import RequestStatistics
from transforms.output.receipts import Receipt

_MAX_BUCKETS = 100  # a chart is some 350 points wide
_RECEIPTS_A_BUCKET = 2  # at least: of receipts that come in pairs, every other bucket would be empty otherwise
_MIN_PAUSE = 1.0  # seconds
_BUSY = 0.9  # share of the time: what is left of a device with it is lost between batches, not by what feeds it
_MOSTLY_IDLE = 0.5  # share of the time: then the endpoint could have done twice as much
_FEW_REQUESTS = 5  # whose means say nothing
# A text that arrives at a device at work waits on average for half of a batch, one that finds it free hardly at all.
_NOT_WAITING = 0.1  # of the time in the device


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
    """Return the times in which at least one shard was under way, without the pauses between them.

    A clock that was set back while a shard was under way makes its end precede its beginning: it took no time then.
    """
    found: list[Stretch] = []
    for start, end in sorted(
        (min(receipt.started_at, receipt.finished_at), receipt.finished_at) for receipt in receipts
    ):
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
    times, documents, queue, flight, busy, slot = _sums_over_time(receipts, stretches)
    total = float(times[-1])
    buckets = min(_MAX_BUCKETS, -(-len(receipts) // _RECEIPTS_A_BUCKET)) if total else 0
    edges = np.linspace(0.0, total, buckets + 1)

    def within(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.diff(np.interp(edges, times, sums))

    def means(sums: npt.NDArray[np.float64]) -> tuple[float, ...]:
        return tuple((within(sums) / np.diff(edges)).round(2).tolist())

    return Timeline(
        bucket_seconds=round(total / buckets, 6) if buckets else 0.0,
        documents_per_second=means(documents),
        # By Little's law: the seconds that all texts spent somewhere, a second, are the texts there on average.
        texts_in_queue=means(queue),
        texts_in_flight=means(flight),
        device_busy=tuple(_share(*sums) for sums in zip(within(busy).tolist(), within(slot).tolist(), strict=True)),
        pauses_at=tuple(
            round(later.before, 3)
            for earlier, later in itertools.pairwise(stretches)
            if later.start - earlier.end >= _MIN_PAUSE
        ),
    )


def _share(busy_ms: float, slot_ms: float) -> float | None:
    """Return the device's share busy, from 0 to 1; None of a time in which nothing is known of it."""
    return round(min(1.0, busy_ms / slot_ms), 4) if busy_ms > 0 and slot_ms > 0 else None


def _sums_over_time(receipts: Sequence[Receipt], stretches: Sequence[Stretch]) -> npt.NDArray[np.float64]:
    """Return six rows: the seconds of work at which receipts were written, and sums up to then.

    The sums are of documents, of seconds that texts spent in the endpoint's queue, and from sending to their answer,
    and of the two whose quotient is the device's share busy.
    """
    starts = [stretch.start for stretch in stretches]
    rows = [(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)]
    for receipt in sorted(receipts, key=lambda receipt: receipt.finished_at):
        stretch = stretches[bisect_right(starts, receipt.finished_at) - 1]
        took = receipt.statistics
        _, documents, queue, flight, busy, slot = rows[-1]
        rows.append(
            (
                stretch.before + receipt.finished_at - stretch.start,
                documents + receipt.embedded,
                queue + took.queue_ms / 1000,
                flight + took.flight_ms / 1000,
                busy + took.busy_ms,
                slot + took.slot_ms,
            )
        )
    return np.array(rows).T


def sum_statistics(parts: Iterable[RequestStatistics]) -> RequestStatistics:
    """Return what all requests together took."""
    sums = RequestStatistics()
    for part in parts:
        for field in fields(RequestStatistics):
            value = getattr(part, field.name)
            if isinstance(value, Counter):
                sums.latency_ms.update(value)
            else:
                setattr(sums, field.name, getattr(sums, field.name) + value)
    return sums


def bottleneck(sums: RequestStatistics, sent: int, seconds: float) -> Bottleneck:
    """Decide whether the endpoint limited the speed, or what feeds it.

    Args:
        sums: over all requests.
        sent: texts that the endpoint embedded.
        seconds: of work.
    """
    has_times = bool(sent and sums.queue_ms + sums.inference_ms)
    busy = _share(sums.busy_ms, sums.slot_ms) if has_times else None
    queue, inference, way = (
        round(value / sent, 2) if sent else 0.0 for value in (sums.queue_ms, sums.inference_ms, sums.flight_ms)
    )
    verdict, why = _verdict(busy, queue, inference, way)
    if 0 < sums.requests < _FEW_REQUESTS:
        verdict, why = "unknown", f"Only {count(sums.requests, 'request')}: too few to show what limited the speed."
    return Bottleneck(
        verdict=verdict,
        why=why,
        device_busy=busy,
        queue_ms_per_text=queue if has_times else None,
        inference_ms_per_text=inference if has_times else None,
        round_trip_ms_per_text=way if sent else None,
        texts_in_flight=round(sums.flight_ms / 1000 / seconds, 2) if seconds else None,
        texts_in_queue=round(sums.queue_ms / 1000 / seconds, 2) if seconds and has_times else None,
    )


def _verdict(busy: float | None, queue: float, inference: float, way: float) -> tuple[Verdict, str]:
    """Return what limited the speed, by the device's share busy and milliseconds a text."""
    if busy is None:
        return "unknown", (
            "The endpoint reported no time in its queue or its device, or none that reaches a millisecond, so what "
            "limited the speed is not known."
        )
    seen = (
        f"its device was busy for {percent(busy)} of the time; of the {milliseconds(way)} from sending a text to its "
        f"vector, {milliseconds(queue)} passed in its queue and {milliseconds(inference)} in its device"
    )
    if busy >= _BUSY:
        return "endpoint", (
            f"The endpoint: {seen}. A faster device or one more endpoint shortens the job; more workers do not."
        )
    if busy < _MOSTLY_IDLE or queue <= _NOT_WAITING * inference:
        if queue + inference < way / 2:
            return "client", (
                f"What lies between: {seen}. Most of that time passed on the way there and back, so workers nearer to "
                "the endpoint shorten the job; a faster device helps little."
            )
        return "client", (
            f"What feeds the endpoint: {seen}. More worker processes shorten the job; a faster device helps little."
        )
    return "balanced", f"Neither side clearly: {seen}."
