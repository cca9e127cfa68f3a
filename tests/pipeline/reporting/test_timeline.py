from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reporting.schema import Timeline
from pipeline.reporting.timeline import Stretch, bottleneck, mean_latency_ms, stretches_of, timeline
from tests.shards import receipt
from transforms.elements import RequestStatistics
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
    statistics = RequestStatistics(queue_ms=2000, latency_ms=Counter({512: 3}))
    first = receipt(started_at=0.0, finished_at=1.0, embedded=10, statistics=statistics)
    found = timeline([first, *[shard(1, 2, 5)] * 2])
    assert found.texts_in_queue == (2.0, 0.0)
    assert found.texts_in_flight[0] == pytest.approx(10 * 0.512 / 2**0.125, abs=0.01)


def test_nothing_has_no_timeline() -> None:
    nothing = Timeline(0.0, (), (), (), ())
    assert timeline([]) == nothing
    assert timeline([shard(5, 5)]) == nothing


def test_a_mean_lies_in_its_bucket() -> None:
    assert mean_latency_ms(Counter({100: 3})) == pytest.approx(100 / 2**0.125)
    assert mean_latency_ms(Counter()) is None


@pytest.mark.parametrize(
    ("queue", "inference", "latency", "seconds", "verdict", "words"),
    [
        (100, 40, 160, 5, "endpoint", "A faster device or another --endpoint"),
        (35, 1.1, 60, 2.5, "endpoint", "waited 35 ms in the endpoint's queue and spent 1.1 ms in its device, so the"),
        (2, 40, 60, 5, "client", "most texts found the device free"),
        (10, 40, 70, 5, "balanced", "neither side clearly"),
        (60, 40, 800, 1000, "client", "at least half of the time it had no request at all"),
        (0, 0, 3, 10, "unknown", "is not known"),
    ],
)
def test_what_was_the_limit(
    queue: float, inference: float, latency: int, seconds: float, verdict: str, words: str
) -> None:
    """A hundred requests of ten texts."""
    found = bottleneck(1000, round(1000 * queue), round(1000 * inference), Counter({latency: 100}), seconds)
    assert found.verdict == verdict
    assert words.lower() in found.why.lower()
    assert found.queue_ms_per_text == queue
    assert found.texts_in_flight == pytest.approx(1000 * latency / 2**0.125 / 1000 / seconds, abs=0.1)
    if verdict == "endpoint":
        assert "time to spare" not in found.why


def test_of_nothing_nothing_is_known() -> None:
    found = bottleneck(0, 0, 0, Counter(), 0.0)
    assert (found.verdict, found.texts_in_flight, found.requests_in_server) == ("unknown", None, None)
