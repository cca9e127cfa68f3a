from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reporting.timeline import Stretch, bottleneck, mean_latency_ms, stretches_of, timeline
from tests.shards import receipt
from transforms.output.receipts import Receipt


def shard(start: float, end: float, embedded: int = 10) -> Receipt:
    return receipt(started_at=start, finished_at=end, embedded=embedded)


def test_stretches_are_parted_by_pauses_alone() -> None:
    receipts = [shard(100, 104), shard(103, 106), shard(200, 201), shard(106, 107), shard(101, 102)]
    assert stretches_of(receipts) == [Stretch(100, 107, 0.0), Stretch(200, 201, 7.0)]


SHARDS = st.lists(
    st.tuples(st.floats(0, 5000), st.floats(0.01, 300), st.integers(0, 9000)).map(
        lambda t: shard(t[0], t[0] + t[1], t[2])
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40)
@given(SHARDS)
def test_every_document_is_in_the_timeline_once(receipts: list[Receipt]) -> None:
    found = timeline(receipts)
    rates, width = found["documents_per_second"], found["bucket_seconds"]
    total = sum(stretch.seconds for stretch in stretches_of(receipts))
    assert len(rates) <= 101
    widths = [min(width, total - index * width) for index in range(len(rates))]
    expected = sum(one.embedded for one in receipts)
    assert sum(rate * long for rate, long in zip(rates, widths, strict=True)) == pytest.approx(
        expected, abs=0.1 * total + 1
    )


def test_the_timeline_is_of_the_time_of_work() -> None:
    found = timeline([shard(100, 101, 10), shard(100, 102, 30), shard(500, 501, 50)])
    assert found["bucket_seconds"] == 0.1
    rates = found["documents_per_second"]
    assert (rates[0], rates[15], rates[-1]) == (10.0, 30.0, 50.0)
    assert found["pauses_at"] == [2.0]


def test_nothing_has_no_timeline() -> None:
    assert timeline([]) == {"bucket_seconds": 0.1, "documents_per_second": [], "pauses_at": []}
    assert timeline([shard(5, 5)])["documents_per_second"] == []


def test_a_mean_lies_in_its_bucket() -> None:
    assert mean_latency_ms(Counter({100: 3})) == pytest.approx(100 / 2**0.125)
    assert mean_latency_ms(Counter()) is None


@pytest.mark.parametrize(
    ("queue", "inference", "latency", "verdict", "words"),
    [
        (100, 40, 160, "gpu", "A faster device or another --endpoint"),
        (5, 40, 60, "client", "more worker"),
        (20, 40, 70, "balanced", "Neither"),
        (60, 40, 800, "client", "14% of a request's time"),
        (0, 0, 3, "unknown", "nothing says"),
    ],
)
def test_what_was_the_limit(queue: int, inference: int, latency: int, verdict: str, words: str) -> None:
    found = bottleneck(1000, 1000 * queue, 1000 * inference, Counter({latency: 50}), 10.0)
    assert found["verdict"] == verdict
    assert words.lower() in found["why"].lower()
    assert found["queue_ms_per_text"] == queue
    assert found["texts_in_flight"] == pytest.approx(100 * latency / 2**0.125 / 1000, abs=0.1)


def test_of_nothing_nothing_is_known() -> None:
    found = bottleneck(0, 0, 0, Counter(), 0.0)
    assert found["verdict"] == "unknown"
    assert found["texts_in_flight"] is None


def test_a_total_of_whole_buckets_has_no_bucket_more() -> None:
    found = timeline([shard(0, 9.9, 0), shard(0, 9.9, 2)])
    assert len(found["documents_per_second"]) == 99
    assert max(found["documents_per_second"]) < 30
