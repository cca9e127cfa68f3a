"""What receipts tell of a job's course: when it worked, how fast, and what held it back. Plain functions."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transforms.elements import BUCKETS_PER_DOUBLING
from transforms.output.receipts import Receipt

_MOST_BUCKETS = 100
_NICE_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
_SHORTEST_PAUSE = 1.0  # seconds
# With as much time in the queue as in the device, the next batch was waiting whenever one was done.
_FULL_QUEUE = 1.0
_EMPTY_QUEUE = 0.25


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


def timeline(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Return documents a second over the time of work; pauses between runs are cut out of it.

    Shards are embedded one behind the other, so a shard's documents are spread over the time since the receipt before.
    """
    stretches = stretches_of(receipts)
    times, documents = _documents_done(receipts, stretches)
    total = times[-1]
    width = next((width for width in _NICE_SECONDS if total <= width * _MOST_BUCKETS), total / _MOST_BUCKETS)
    # Rounded down a little: a last bucket of almost no width would have a rate beyond all measure.
    buckets = max(1, math.ceil(total / width - 1e-6)) if total else 0
    edges = np.append(np.arange(buckets) * width, total) if total else np.zeros(0)
    done = np.interp(edges, times, documents)
    return {
        "bucket_seconds": width,
        "documents_per_second": (np.diff(done) / np.diff(edges)).round(2).tolist(),
        "pauses_at": [
            round(later.before, 3)
            for earlier, later in itertools.pairwise(stretches)
            if later.start - earlier.end >= _SHORTEST_PAUSE
        ],
    }


def _documents_done(receipts: Sequence[Receipt], stretches: Sequence[Stretch]) -> tuple[list[float], list[int]]:
    """Return the seconds of work at which receipts were written, and how many documents were done then."""
    times, done = [0.0], [0]
    starts = [stretch.start for stretch in stretches]
    for receipt in sorted(receipts, key=lambda receipt: receipt.finished_at):
        stretch = stretches[bisect_right(starts, receipt.finished_at) - 1]
        times.append(stretch.before + receipt.finished_at - stretch.start)
        done.append(done[-1] + receipt.embedded)
    return times, done


def mean_latency_ms(latency: Mapping[int, int]) -> float | None:
    """Return the mean of a histogram, each request at the middle of its bucket; None of an empty one."""
    requests = sum(latency.values())
    middle = 2 ** (-0.5 / BUCKETS_PER_DOUBLING)
    return sum(bound * middle * count for bound, count in latency.items()) / requests if requests else None


def bottleneck(
    embedded: int, queue_ms: int, inference_ms: int, latency: Counter[int], seconds: float
) -> dict[str, Any]:
    """Judge whether the endpoint's device was the limit, or what feeds it.

    Args:
        embedded: texts.
        queue_ms: in the endpoint's queue, summed over texts.
        inference_ms: in its device, likewise.
        latency: requests by the upper bound of their latency's bucket, in milliseconds.
        seconds: of work.
    """
    mean = mean_latency_ms(latency)
    queue, inference = (value / embedded if embedded else 0.0 for value in (queue_ms, inference_ms))
    in_server = min(1.0, (queue + inference) / mean) if mean else None
    verdict, why = _verdict(queue, inference, in_server)
    return {
        "verdict": verdict,
        "why": why,
        "queue_ms_per_text": round(queue, 1),
        "inference_ms_per_text": round(inference, 1),
        "latency_ms_per_request": None if mean is None else round(mean, 1),
        "share_of_latency_in_server": None if in_server is None else round(in_server, 3),
        "texts_in_flight": None if mean is None or not seconds else round(embedded * mean / 1000 / seconds, 1),
    }


def _verdict(queue: float, inference: float, in_server: float | None) -> tuple[str, str]:
    if in_server is None or not queue + inference:
        return "unknown", (
            "The endpoint told of no queue and no inference time, or of none that reaches a millisecond: "
            "nothing says what was the limit."
        )
    seen = (
        f"a text waited {queue:.1f} ms in the endpoint's queue for {inference:.1f} ms in its device, "
        f"and {in_server:.0%} of a request's time passed in the server"
    )
    if queue >= _FULL_QUEUE * inference and in_server >= 0.5:
        return "gpu", (
            f"The endpoint's device was the limit: {seen}, so the next batch was waiting whenever one was done. "
            "A faster device or another --endpoint shortens the job; more workers do not."
        )
    if queue <= _EMPTY_QUEUE * inference or in_server < 0.5:
        return "client", (
            f"What feeds the endpoint was the limit: {seen}, so its device had time to spare. More worker processes, "
            "a larger --max_in_flight or a shorter way to the endpoint shorten the job; a faster device does not."
        )
    return "balanced", f"Neither was clearly the limit: {seen}."
