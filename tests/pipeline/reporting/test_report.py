from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job.ledger import Ledger, SourceLedger
from pipeline.job.sharding import Plan
from pipeline.reporting.report import active_seconds, file_name, make_report, minutes, summary, write_report
from tests.pipeline.job.test_spec import JOB
from tests.shards import folder, receipt
from transforms.elements import RequestStatistics, Source
from transforms.storage.api import WrittenFile

FIRST = Source("/in/wiki_00.ndjson", "wiki_00", 200, 1.0)
SECOND = Source("/in/more/wiki_07.ndjson.gz", "more/wiki_07", 50, 2.0, compressed=True)


def statistics(**latency: int) -> RequestStatistics:
    counts = Counter({int(bound[1:]): count for bound, count in latency.items()})
    return RequestStatistics(
        tokens=100, requests=10, retries=1, queue_ms=7, inference_ms=5, throttled_ms=3, latency_ms=counts
    )


def ledger() -> Ledger:
    first = {
        0: receipt(0, FIRST, embedded=243_000, records=243_000, statistics=statistics(_10=60, _20=30)),
        1: receipt(1, FIRST, embedded=68, records=68, statistics=statistics(_20=8), last=True),
    }
    second = {
        0: receipt(
            0,
            SECOND,
            records=10,
            embedded=7,
            dead_letters=3,
            reasons={"missing_text": 1, "empty_text": 2},
            started_at=1010.0,
            finished_at=1012.0,
            statistics=statistics(_20=1, _500=1),
            output=WrittenFile("more/wiki_07-00000.ndjson", 90, "AAAAAA=="),
        )
    }
    sources = (SourceLedger(FIRST, first, True), SourceLedger(SECOND, second, False))
    return Ledger(Plan((FIRST, SECOND), 100), sources)


INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=12)


@given(INTERVALS)
def test_active_seconds_are_those_in_which_a_shard_was_under_way(intervals: list[tuple[int, int]]) -> None:
    receipts = [receipt(started_at=float(start), finished_at=float(start + long)) for start, long in intervals]
    covered = {second for start, long in intervals for second in range(start, start + long)}
    assert active_seconds(receipts) == len(covered)


def test_the_report_adds_up() -> None:
    report = make_report(ledger(), JOB, price_per_hour=1800.0)
    assert report["totals"] == {
        "sources": 2,
        "shards": 3,
        "records": 243_078,
        "embedded": 243_075,
        "dead_letters": 3,
        "dead_letters_by_reason": {"empty_text": 2, "missing_text": 1},
        "output_bytes": 110,
        "seconds": 4.0,
        "documents_per_second": 60768.8,
        "dollars": 2.0,
        "tokens": 300,
        "requests": 30,
        "retries": 3,
        "queue_ms": 21,
        "inference_ms": 15,
        "throttled_ms": 9,
    }
    assert report["latency_ms"] == {"p50": 10, "p95": 20, "p99": 20, "histogram": {"10": 60, "20": 39, "500": 1}}
    assert (report["complete"], report["balanced"], report["price_per_hour"]) == (False, True, 1800.0)
    assert report["sources"][1] == {
        "path": SECOND.path,
        "name": "more/wiki_07",
        "bytes": 50,
        "shards": 1,
        "complete": False,
        "records": 10,
        "embedded": 7,
        "dead_letters": 3,
    }


def test_a_report_of_nothing_divides_by_nothing() -> None:
    empty = Ledger(Plan((), 100), ())
    report = make_report(empty, JOB, None)
    assert report["complete"]
    assert (report["totals"]["seconds"], report["totals"]["documents_per_second"]) == (0.0, None)
    assert report["totals"]["dollars"] is None
    assert report["latency_ms"] == {"p50": None, "p95": None, "p99": None, "histogram": {}}
    assert list(summary(empty, report, 0, 0.0)) == [
        "total: embeddings = 0, documents = 0, dead letters = 0",
        "this run: 0 documents in 0.0 s, 0 documents/s",
    ]


def test_a_shard_that_does_not_balance_shows() -> None:
    source = SourceLedger(FIRST, {0: receipt(0, FIRST, records=9)}, True)
    assert not make_report(Ledger(Plan((FIRST,), 100), (source,)), JOB, None)["balanced"]


@given(st.dictionaries(st.integers(1, 1000), st.integers(1, 50), min_size=1))
def test_quantiles_are_the_buckets_in_which_they_lie(histogram: dict[int, int]) -> None:
    one = receipt(0, FIRST, statistics=RequestStatistics(latency_ms=Counter(histogram)))
    report = make_report(Ledger(Plan((FIRST,), 100), (SourceLedger(FIRST, {0: one}, True),)), JOB, None)
    values = sorted(bound for bound, count in histogram.items() for _ in range(count))
    for name, percent in (("p50", 50), ("p95", 95), ("p99", 99)):
        rank = -(-len(values) * percent // 100)
        assert report["latency_ms"][name] == values[rank - 1]


def test_the_summary_is_what_the_user_of_the_tutorial_knows() -> None:
    report = make_report(ledger(), JOB, price_per_hour=1800.0)
    assert list(summary(ledger(), report, 243_075, 185.4)) == [
        "wiki_00.ndjson: embeddings = 243068, documents = 243068",
        "more/wiki_07.ndjson.gz: embeddings = 7, documents = 10, dead letters = 3",
        "total: embeddings = 243075, documents = 243078, dead letters = 3",
        "  empty_text: 2",
        "  missing_text: 1",
        "this run: 243075 documents in 3 min 05 s, 1,311 documents/s",
        "cost: $2.00 at $1,800.00 an hour",
    ]


def test_the_summary_of_a_resumed_run_tells_both() -> None:
    report = make_report(ledger(), JOB, None)
    assert list(summary(ledger(), report, 75, 0.5))[-2:] == [
        "this run: 75 documents in 0.5 s, 150 documents/s",
        "the whole job: 243075 documents in 4.0 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (61.9, "1 min 01 s"), (6272.4, "104 min 32 s")],
)
def test_durations_are_minutes_and_seconds(seconds: float, words: str) -> None:
    assert minutes(seconds) == words


@pytest.mark.parametrize(
    ("path", "name", "shown"),
    [
        ("/in/a.ndjson", "a", "a.ndjson"),
        ("/in/x/y/a.ndjson.gz", "x/y/a", "x/y/a.ndjson.gz"),
        ("gs://b/x/a.json", "a", "a.json"),
    ],
)
def test_a_file_is_named_with_the_folders_that_its_outputs_keep(path: str, name: str, shown: str) -> None:
    assert file_name(SourceLedger(Source(path, name, 1, 1.0), {}, True)) == shown


def test_the_report_is_saved_as_json(tmp_path: Path) -> None:
    output = folder(tmp_path)
    report = make_report(ledger(), JOB, 1.3)
    write_report(report, output)
    saved: dict[str, Any] = json.loads(output.read(output.report) or b"")
    job = saved.pop("job")
    assert saved == {name: value for name, value in report.items() if name != "job"}
    assert (job["overlong"], job["model"]["model_id"]) == ("truncate", JOB.model.model_id)
