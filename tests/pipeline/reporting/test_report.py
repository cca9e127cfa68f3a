from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job.ledger import Ledger, SourceLedger
from pipeline.job.sharding import Plan
from pipeline.reporting.report import (
    VERIFIED,
    FormerReport,
    file_name,
    make_report,
    read_former_report,
    read_verified,
    run_of,
    summary,
    write_report,
)
from pipeline.reporting.schema import LastRun, Latency, SourceReport
from pipeline.reporting.timeline import active_seconds
from tests.pipeline.job.test_spec import JOB
from tests.pipeline.reporting.reports import unfinished_report
from tests.shards import folder, receipt
from transforms.elements import RequestStatistics, Source
from transforms.storage.api import WrittenFile
from transforms.tei.settings import Overlong

FIRST = Source("/in/wiki_00.ndjson", "wiki_00", 200, "1.0")
SECOND = Source("/in/more/wiki_07.ndjson.gz", "more/wiki_07", 50, "2.0", compressed=True)


def statistics(**latency: int) -> RequestStatistics:
    counts = Counter({int(bound[1:]): count for bound, count in latency.items()})
    return RequestStatistics(
        tokens=100, requests=10, retries=1, queue_ms=7, inference_ms=5, throttled_ms=3, flight_ms=50,
        busy_ms=20, slot_ms=30, latency_ms=counts,
    )  # fmt: skip


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
    report = make_report(ledger(), JOB, "/out", 1800.0)
    assert dataclasses.asdict(report.totals) == {
        "sources": 2,
        "sources_complete": 1,
        "shards": 3,
        "shards_expected": None,
        "records": 243_078,
        "records_expected": 303_835,  # of the compressed file as many a byte as of the other
        "embedded": 243_075,
        "sent": 243_075,
        "reused": 0,
        "duplicates": 0,
        "truncated": 0,
        "nan_lines": 0,
        "unfit": {},
        "dead_letters": 3,
        "dead_letters_by_reason": {"empty_text": 2, "missing_text": 1},
        "output_bytes": 110,
        "seconds": 4.0,
        "documents_per_second": 60768.75,
        "dollars": 2.0,
        "dollars_per_document": 2.0 / 243_075,
        "dollars_not_spent": 0.0,
        "tokens": 300,
        "requests": 30,
        "retries": 3,
        "queue_ms": 21,
        "inference_ms": 15,
        "flight_ms": 150,
        "busy_ms": 60,
        "slot_ms": 90,
        "throttled_ms": 9,
    }
    assert report.latency_ms == Latency(10, 20, 20, {10: 60, 20: 39, 500: 1})
    assert (report.complete, report.balanced, report.price_per_hour) == (False, True, 1800.0)
    assert report.sources[1] == SourceReport(SECOND.path, "more/wiki_07", 50, 1, None, False, 10, 7, 7, 0, 0, 0, 3)


def test_vectors_that_were_reused_say_nothing_of_the_endpoint() -> None:
    one = receipt(0, FIRST, embedded=100, sent=10, reused=80, duplicates=10, records=100, statistics=statistics())
    report = make_report(Ledger(Plan((FIRST,), 100), (SourceLedger(FIRST, {0: one}, True),)), JOB, "/out", None)
    assert (report.totals.sent, report.totals.reused, report.totals.duplicates) == (10, 80, 10)
    (source,) = report.sources
    assert (source.sent, source.reused, source.duplicates) == (10, 80, 10)
    found = report.bottleneck
    assert (found.queue_ms_per_text, found.inference_ms_per_text, found.round_trip_ms_per_text) == (0.7, 0.5, 5.0)


def reused_ledger() -> Ledger:
    """A shard that took 2 s and another one that took 10 and sent nothing."""
    sent = receipt(
        0, FIRST, embedded=100, sent=40, reused=50, duplicates=10, records=100, started_at=0.0, finished_at=2.0,
        truncated=12, truncated_at=tuple(range(0, 20, 2)),
    )  # fmt: skip
    none = receipt(1, FIRST, embedded=30, sent=0, reused=30, records=30, started_at=10.0, finished_at=20.0)
    gone = receipt(0, SECOND, embedded=7, records=8, dead_letters=1, reasons={"empty_text": 1})
    done = SourceLedger(FIRST, {0: sent, 1: none}, True)
    return Ledger(Plan((FIRST,), 100), (done,), (SECOND.path,), gone_receipts=(gone,))


def test_what_was_not_sent_would_have_cost_what_the_others_did() -> None:
    report = make_report(reused_ledger(), JOB, "/out", 3600.0)
    assert report.totals.dollars_per_document == pytest.approx(2.0 / 40)
    assert report.totals.dollars_not_spent == pytest.approx(90 * 2.0 / 40)
    run = run_of(Ledger(Plan((FIRST,), 100), ()), reused_ledger(), [], [], 0.0, 21.0)
    assert (run.documents, run.sent, run.reused, run.duplicates) == (130, 40, 80, 10)
    lines = list(summary(report, run))
    assert (
        "this run: 130 documents (40 sent, 80 reused, 10 of equal texts) in 12 s of work, 10.8 documents/s; "
        "21 s from start to end"
    ) in lines
    assert "not spent: $4.50 for reused vectors and equal texts" in lines
    assert make_report(reused_ledger(), JOB, "/out", None).totals.dollars_not_spent is None


def test_where_nothing_was_sent_the_price_of_a_document_is_that_of_the_former_report(tmp_path: Path) -> None:
    output = folder(tmp_path)
    write_report(make_report(reused_ledger(), JOB, "/out", 3600.0), output)
    none = receipt(0, FIRST, embedded=30, sent=0, reused=30, records=30)
    only_reused = Ledger(Plan((FIRST,), 100), (SourceLedger(FIRST, {0: none}, True),))
    former = read_former_report(output).dollars_per_document
    report = make_report(only_reused, JOB, "/out", 3600.0, former_price=former)
    assert report.totals.dollars_not_spent == pytest.approx(30 * 0.05)
    assert make_report(only_reused, JOB, "/out", 3600.0).totals.dollars_not_spent is None


def test_truncated_texts_are_counted_by_file_and_the_first_ten_have_places() -> None:
    report = make_report(reused_ledger(), JOB, "/out", None)
    assert (report.totals.truncated, report.sources[0].truncated, report.truncation.method) == (12, 12, "tokens")
    assert [(place.source, place.offset) for place in report.truncation.first] == [
        (FIRST.path, offset) for offset in range(0, 20, 2)
    ]
    lines = list(summary(report, None))
    assert (
        lines[0] == "wiki_00.ndjson: embeddings = 130, documents = 130, reused = 80, equal texts = 10, truncated = 12"
    )
    assert (
        "truncated: about 12 documents of 40 sent, by the tokens of replies and the lengths of texts; "
        "the first is at byte 0 of /in/wiki_00.ndjson"
    ) in lines


@pytest.mark.parametrize(
    ("tokens", "overlong", "method"),
    [(9, Overlong.TRUNCATE, "tokens"), (0, Overlong.TRUNCATE, "characters"), (9, Overlong.DEAD_LETTER, "refused")],
)
def test_a_report_names_the_way_in_which_truncated_texts_are_found(
    tokens: int, overlong: Overlong, method: str
) -> None:
    one = receipt(0, FIRST, statistics=RequestStatistics(tokens=tokens, requests=1), truncated=1, truncated_at=(7,))
    job = dataclasses.replace(JOB, overlong=overlong)
    report = make_report(Ledger(Plan((FIRST,), 100), (SourceLedger(FIRST, {0: one}, True),)), job, "/out", None)
    assert report.truncation.method == method
    if method == "characters":
        assert any("there may be more" in line for line in summary(report, None))


def test_what_is_kept_of_inputs_that_are_gone_is_counted_apart() -> None:
    report = make_report(reused_ledger(), JOB, "/out", None)
    assert dataclasses.asdict(report.gone) == {"sources": 1, "records": 8, "embedded": 7, "dead_letters": 1}
    assert (report.totals.records, report.totals.embedded, report.totals.dead_letters) == (130, 130, 0)
    assert "kept: 7 documents of 1 input that no longer exists" in list(summary(report, None))


def test_a_report_names_the_space_and_all_names_of_its_model() -> None:
    former = dataclasses.replace(JOB.served, model_id="/repository", revision=None, since="2025-12-01T00:00:00+00:00")
    job = dataclasses.replace(JOB, history=(former, JOB.served))
    found = make_report(ledger(), job, "/out", None).job
    assert found.space == JOB.space.digest == JOB.provenance.space
    assert [(names.model_id, names.sha, names.since) for names in found.history] == [
        ("/repository", None, "2025-12-01T00:00:00+00:00"),
        (JOB.served.model_id, "abc", JOB.served.since),
    ]


def test_a_report_of_nothing_divides_by_nothing() -> None:
    report = make_report(Ledger(Plan((), 100), ()), JOB, "/out", None)
    assert report.complete
    assert (report.totals.seconds, report.totals.documents_per_second, report.totals.dollars) == (0.0, None, None)
    assert report.latency_ms == Latency(None, None, None, {})
    assert list(summary(report, None)) == [
        "total: embeddings = 0, documents = 0, dead letters = 0",
        "the job: 0 documents in 0 s of work",
    ]


def test_a_shard_that_does_not_balance_shows() -> None:
    source = SourceLedger(FIRST, {0: receipt(0, FIRST, records=9)}, True)
    assert not make_report(Ledger(Plan((FIRST,), 100), (source,)), JOB, "/out", None).balanced


@given(st.dictionaries(st.integers(1, 1000), st.integers(1, 50), min_size=1))
def test_quantiles_are_the_buckets_in_which_they_lie(histogram: dict[int, int]) -> None:
    one = receipt(0, FIRST, statistics=RequestStatistics(latency_ms=Counter(histogram)))
    report = make_report(Ledger(Plan((FIRST,), 100), (SourceLedger(FIRST, {0: one}, True),)), JOB, "/out", None)
    values = sorted(bound for bound, count in histogram.items() for _ in range(count))
    for name, percent in (("p50", 50), ("p95", 95), ("p99", 99)):
        rank = -(-len(values) * percent // 100)
        assert getattr(report.latency_ms, name) == values[rank - 1]


WHOLE_RUN = LastRun("", (), 0.0, 185.4, 4.0, 243_075, 243_075, 0, 0)


def test_the_summary_is_what_the_user_of_the_tutorial_knows() -> None:
    report = make_report(ledger(), JOB, "/out", 1800.0)
    assert list(summary(report, WHOLE_RUN)) == [
        "wiki_00.ndjson: embeddings = 243068, documents = 243068",
        "more/wiki_07.ndjson.gz: embeddings = 7, documents = 10, dead letters = 3 (1 of an unknown number of shards)",
        "total: embeddings = 243075, documents = 243078, dead letters = 3",
        "  empty_text: 2",
        "  missing_text: 1",
        "this run: 243,075 documents in 4 s of work, 60,769 documents/s; 3 min 05 s from start to end",
        "cost: $2.00 for the time of work, at $1,800 an hour",
        "not complete: 3 of an unknown number of shards are done (80% of about 303,835 records); "
        "/in/more/wiki_07.ndjson.gz lacks shards; the same run command continues from here",
    ]


def test_an_unfinished_job_says_how_much_is_missing() -> None:
    *_, last = summary(unfinished_report(), None)
    assert last == (
        "not complete: 15 of 19 shards are done (78% of about 57 records); /in/a.ndjson lacks shards; "
        "the same run command continues from here"
    )


def test_of_many_files_those_that_are_not_complete_come_first() -> None:
    sources = tuple(Source(f"/in/{n:03}.ndjson", f"{n:03}", 100, "1.0") for n in range(100))
    ledgers = tuple(SourceLedger(source, {}, source.name != "077") for source in sources)
    lines = list(summary(make_report(Ledger(Plan(sources, 100), ledgers), JOB, "/out", None), None))
    assert lines[0] == "077.ndjson: embeddings = 0, documents = 0 (0 of 1 shard)"
    assert lines[30] == "… and 70 more files; report.json has them all"


def test_the_summary_of_a_resumed_run_tells_both() -> None:
    report = make_report(ledger(), JOB, "/out", None)
    lines = list(summary(report, LastRun("", (), 0.0, 2.5, 0.5, 75, 75, 0, 0)))
    assert "this run: 75 documents in 0.5 s of work, 150 documents/s; 2.5 s from start to end" in lines
    assert "the job: 243,075 documents in 4 s of work, 60,769 documents/s" in lines


def test_a_run_that_found_everything_done_says_so() -> None:
    whole = Ledger(ledger().plan, (ledger().sources[0],))
    done = run_of(whole, whole, [], [], started_at=100.0, now=101.5)
    assert (done.documents, done.work_seconds, done.wall_seconds) == (0, 0.0, 1.5)
    lines = list(summary(make_report(whole, JOB, "/out", None), done))
    assert "this run: nothing to do, every shard was done already; 1.5 s" in lines


def test_what_a_run_did_is_the_difference_of_two_ledgers() -> None:
    first, second = ledger().sources
    before = Ledger(ledger().plan, (first, SourceLedger(second.source, {}, False)))
    arguments = [
        "run", "--input", "/in/*", "--endpoint", "https://me:secret@h:8443/x", "--token", "env:T",
        "--s3_secret_access_key=abc", "--environment_config", '{"env": {"KEY": "abc"}}',
    ]  # fmt: skip
    done = run_of(before, ledger(), arguments, ["https://me:secret@h:8443/x"], started_at=1009.0, now=1013.0)
    assert (done.documents, done.work_seconds, done.wall_seconds, done.endpoints) == (7, 2.0, 4.0, ("h:8443",))
    assert done.command == (
        "tayyar run --input '/in/*' --endpoint https://…@h:8443/x --token … --s3_secret_access_key=… "
        "--environment_config …"
    )


def test_plan_and_cost_have_one_price() -> None:
    estimate = {"seconds": 7200.0, "price_per_hour": 9.0, "dollars": 18.0}
    plan = make_report(ledger(), JOB, "/out", 1800.0, estimate=estimate).plan
    assert plan is not None
    assert (plan.dollars.planned, plan.dollars.actual) == (3600.0, 2.0)


@pytest.mark.parametrize(
    ("saved", "findings", "current"),
    [
        (b'{"at": "2026-01-02T03:04:05+00:00", "findings": 0}', 0, True),
        (b'{"at": "1970-01-01T00:00:05+00:00", "findings": 2, "more": 1}', 2, False),
    ],
)
def test_the_last_verification_is_read(tmp_path: Path, saved: bytes, findings: int, current: bool) -> None:
    output = folder(tmp_path)
    output.write(VERIFIED, [saved])
    found = read_verified(output, ledger())
    assert found is not None
    assert (found.passed, found.findings, found.current) == (not findings, findings, current)


@pytest.mark.parametrize(
    "saved",
    [
        b"",
        b"[]",
        b"{}",
        b'{"at": 5, "findings": 0}',
        b'{"at": "today", "findings": 0}',
        b'{"at": "2026-01-02", "findings": -1}',
        b'{"at": "2026-01-02", "findings": 1e999}',
    ],
)
def test_a_damaged_verification_is_none(tmp_path: Path, saved: bytes) -> None:
    output = folder(tmp_path)
    output.write(VERIFIED, [saved])
    assert read_verified(output, ledger()) is None


@pytest.mark.parametrize("saved", [b"", b"[]", b"{", b'{"last_run": {"command": 1}}', b'{"last_run": 7}'])
def test_a_damaged_former_report_is_none(tmp_path: Path, saved: bytes) -> None:
    output = folder(tmp_path)
    output.write(output.report, [saved])
    assert read_former_report(output) == FormerReport(None, None, None)


@pytest.mark.parametrize(
    ("path", "name", "shown"),
    [
        ("/in/a.ndjson", "a", "a.ndjson"),
        ("/in/x/y/a.ndjson.gz", "x/y/a", "x/y/a.ndjson.gz"),
        ("gs://b/x/a.json", "a", "a.json"),
    ],
)
def test_a_file_is_named_with_the_folders_that_its_outputs_keep(path: str, name: str, shown: str) -> None:
    assert file_name(SourceReport(path, name, 1, 1, 1, True, 0, 0, 0, 0, 0, 0, 0)) == shown


def test_the_report_is_saved_as_json_and_its_successor_reads_it(tmp_path: Path) -> None:
    output = folder(tmp_path)
    write_report(make_report(ledger(), JOB, "/out", 1.3, last_run=WHOLE_RUN), output)
    saved: dict[str, Any] = json.loads(output.read(output.report) or b"")
    assert (saved["job"]["overlong"], saved["job"]["model"]["model_id"]) == ("truncate", JOB.model.model_id)
    assert saved["latency_ms"]["histogram"] == {"10": 60, "20": 39, "500": 1}
    assert read_former_report(output) == FormerReport(1.3, 1.3 * 4 / 3600 / 243_075, WHOLE_RUN)


@pytest.mark.parametrize(
    "change", [{"started_at": 1e300}, {"started_at": -1.0}, {"wall_seconds": 1e300}, {"documents": 1 << 60}]
)
def test_a_last_run_that_cannot_be_shown_is_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    output = folder(tmp_path)
    run = dataclasses.asdict(WHOLE_RUN) | change
    output.write(output.report, [json.dumps({"price_per_hour": 1.3, "last_run": run}).encode()])
    assert read_former_report(output) == FormerReport(1.3, None, None)
