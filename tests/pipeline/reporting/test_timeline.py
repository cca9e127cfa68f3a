from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reporting.numbers import percent
from pipeline.reporting.schema import Timeline
from pipeline.reporting.timeline import Stretch, bottleneck, stretches_of, sum_statistics, timeline
from tests.shards import receipt
from transforms.elements import RequestStatistics
from transforms.output.receipts import Receipt


def shard(start: float, end: float, embedded: int = 10) -> Receipt:
    return receipt(started_at=start, finished_at=end, embedded=embedded)


def test_stretches_are_parted_by_pauses_alone() -> None:
    receipts = [shard(100, 104), shard(103, 106), shard(200, 201), shard(106, 107), shard(101, 102)]
    assert stretches_of(receipts) == [Stretch(100, 107, 0.0), Stretch(200, 201, 7.0)]


def test_a_clock_that_is_set_back_makes_no_time_negative() -> None:
    receipts = [shard(100, 104), shard(300, 290), shard(200, 201)]
    assert stretches_of(receipts) == [Stretch(100, 104, 0.0), Stretch(200, 201, 4.0), Stretch(290, 290, 5.0)]
    found = timeline(receipts)
    assert sum(found.documents_per_second) * found.bucket_seconds == pytest.approx(30)


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
    rates, width = found.documents_per_second, found.bucket_seconds
    total = sum(stretch.seconds for stretch in stretches_of(receipts))
    assert len(rates) == (len(receipts) + 1) // 2
    assert width * len(rates) == pytest.approx(total, rel=1e-3)
    expected = sum(one.embedded for one in receipts)
    assert sum(rates) * width == pytest.approx(expected, abs=0.1 * total + 1)


def test_the_timeline_is_of_the_time_of_work() -> None:
    pairs = [(100, 101, 10), (100, 102, 30), (500, 501, 50)]
    found = timeline([shard(start, end, documents) for start, end, documents in pairs for _ in range(2)])
    assert (found.bucket_seconds, found.documents_per_second) == (1.0, (20.0, 60.0, 100.0))
    assert found.pauses_at == (2.0,)


def test_texts_in_flight_and_in_the_queue_are_means_of_each_bucket() -> None:
    statistics = RequestStatistics(queue_ms=2000, flight_ms=6000, busy_ms=900, slot_ms=1000)
    first = receipt(started_at=0.0, finished_at=1.0, embedded=10, statistics=statistics)
    found = timeline([first, *[shard(1, 2, 5)] * 2])
    assert found.texts_in_queue == (2.0, 0.0)
    assert found.texts_in_flight == (6.0, 0.0)
    assert found.device_busy == (0.9, None)  # of the second, no reply shows anything


TIMES = st.integers(0, 10**6)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 300), TIMES, TIMES, TIMES, TIMES), min_size=1, max_size=20))
def test_the_time_of_every_text_is_in_the_timeline_once(rows: list[tuple[int, int, int, int, int]]) -> None:
    receipts = [
        receipt(
            started_at=100.0 * index,
            finished_at=100.0 * index + seconds,
            statistics=RequestStatistics(queue_ms=queue, flight_ms=queue + more, busy_ms=min(busy, slot), slot_ms=slot),
        )
        for index, (seconds, queue, more, busy, slot) in enumerate(rows)
    ]
    found = timeline(receipts)
    total = sum(stretch.seconds for stretch in stretches_of(receipts))
    for means, name in ((found.texts_in_queue, "queue_ms"), (found.texts_in_flight, "flight_ms")):
        expected = sum(getattr(one.statistics, name) for one in receipts) / 1000
        assert sum(means) * found.bucket_seconds == pytest.approx(expected, abs=0.01 * total + 0.01)
    assert all(share is None or 0 <= share <= 1 for share in found.device_busy)


def test_nothing_has_no_timeline() -> None:
    nothing = Timeline(0.0, (), (), (), (), ())
    assert timeline([]) == nothing
    assert timeline([shard(5, 5)]) == nothing


def test_statistics_add_up() -> None:
    one = RequestStatistics(1, 2, 3, 4, 5, 6, 7, 8, 9, Counter({16: 2}))
    two = RequestStatistics(10, 20, 30, 40, 50, 60, 70, 80, 90, Counter({16: 1, 32: 5}))
    found = sum_statistics([one, two])
    assert found == RequestStatistics(11, 22, 33, 44, 55, 66, 77, 88, 99, Counter({16: 3, 32: 5}))
    assert one.latency_ms == {16: 2}


def sums(busy: float, queue: float, inference: float, way: float) -> RequestStatistics:
    """What a thousand texts took, of which each passed so many milliseconds where."""
    return RequestStatistics(
        queue_ms=round(1000 * queue),
        inference_ms=round(1000 * inference),
        flight_ms=round(1000 * way),
        busy_ms=round(10_000 * busy),
        slot_ms=10_000,
    )


@pytest.mark.parametrize(
    ("busy", "queue", "inference", "way", "verdict", "words"),
    [
        (0.981, 100, 40, 160, "endpoint", "The endpoint: its device was busy for 98% of the time"),
        (0.95, 35, 1.1, 60, "endpoint", "35 ms passed in its queue and 1.1 ms in its device. A faster device or one"),
        (0.92, 0, 40, 42, "endpoint", "busy for 92%"),  # one request at a time on the same machine
        (0.6, 2, 40, 60, "client", "What feeds the endpoint: its device was busy for 60%"),
        (0.08, 1, 30, 330, "client", "What lies between: its device was busy for 8%"),
        (0.3, 60, 40, 110, "client", "More worker processes"),
        (0.8, 10, 40, 70, "balanced", "Neither side clearly"),
        (0, 0, 0, 3, "unknown", "is not known"),
        (0.7, 0, 0, 3, "unknown", "is not known"),
    ],
)
def test_what_was_the_limit(busy: float, queue: float, inference: float, way: float, verdict: str, words: str) -> None:
    found = bottleneck(sums(busy, queue, inference, way), 1000, 10.0)
    assert found.verdict == verdict
    assert words in found.why
    assert found.round_trip_ms_per_text == way
    assert found.texts_in_flight == pytest.approx(100 * way / 1000)
    if verdict == "unknown":
        assert (found.device_busy, found.queue_ms_per_text, found.texts_in_queue) == (None, None, None)
    else:
        assert (found.device_busy, found.queue_ms_per_text, found.inference_ms_per_text) == (busy, queue, inference)
        assert found.texts_in_queue == pytest.approx(100 * queue / 1000)


@given(st.floats(0, 1), st.floats(0, 500), st.floats(0, 500), st.floats(0, 500))
def test_the_verdict_never_contradicts_its_figures(busy: float, queue: float, inference: float, more: float) -> None:
    found = bottleneck(sums(busy, queue, inference, queue + inference + more), 1000, 10.0)
    if found.device_busy is None:
        assert found.verdict == "unknown"
        return
    assert (found.verdict == "endpoint") is (found.device_busy >= 0.9)
    assert f"busy for {percent(found.device_busy)} of the time" in found.why
    assert found.queue_ms_per_text is not None
    assert found.inference_ms_per_text is not None
    if found.verdict == "client":
        # A queue that is always full and a device that is short of work cannot both be.
        assert found.device_busy < 0.5 or found.queue_ms_per_text <= 0.1 * found.inference_ms_per_text
    if found.verdict == "balanced":
        assert 0.5 <= found.device_busy < 0.9


def test_of_nothing_nothing_is_known() -> None:
    found = bottleneck(RequestStatistics(), 0, 0.0)
    assert (found.verdict, found.texts_in_flight, found.device_busy) == ("unknown", None, None)


def test_few_requests_do_not_show_what_limited_the_speed() -> None:
    few = RequestStatistics(requests=1, inference_ms=7, flight_ms=9, busy_ms=7, slot_ms=9)
    found = bottleneck(few, 1, 0.1)
    assert (found.verdict, found.why) == ("unknown", "Only 1 request: too few to show what limited the speed.")
    enough = RequestStatistics(requests=5, inference_ms=35, flight_ms=45, busy_ms=35, slot_ms=45)
    assert bottleneck(enough, 5, 0.5).verdict != "unknown"
