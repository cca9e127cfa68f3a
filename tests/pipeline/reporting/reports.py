"""Reports for tests, from receipts that are made up."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.job.ledger import Ledger, SourceLedger
from pipeline.job.sharding import Plan
from pipeline.reporting.report import make_report
from pipeline.reporting.schema import Example, LastRun, Report, Verified
from tests.pipeline.job.test_spec import JOB
from tests.shards import receipt
from transforms.elements import RequestStatistics, Source

ARABIC = "التيّار يبلغ البحر، والنهر يجري من الجبل."
SCRIPT = "<script>document.title = 'injected'</script><img src=x onerror=\"document.title = 'injected'\">"
ESTIMATE = {"records": 100, "tokens": 5000, "requests": 12, "output_bytes": 90, "seconds": 3.0, "dollars": 0.01}


def example(**fields: Any) -> Example:
    plain: dict[str, Any] = {
        "source": "/in/wiki.ndjson", "offset": 7, "stage": "embed", "detail": "too long", "http_status": 422,
        "attempts": 3, "text": None, "line": "{}",
    }  # fmt: skip
    return Example(**(plain | fields))


def nasty_report(estimate: Mapping[str, Any] | None = ESTIMATE) -> Report:
    """A report whose every text is somebody else's: right-to-left, or out to be run."""
    sources = [Source("/in/ويكي.ndjson", "ويكي", 200, "1.0"), Source(f"/in/{SCRIPT}.ndjson", SCRIPT, 200, "1.0")]
    ledgers = []
    for start, source in enumerate(sources):
        statistics = RequestStatistics(
            tokens=900, requests=60, retries=2, queue_ms=9000, inference_ms=3000, throttled_ms=1500,
            flight_ms=13_000, busy_ms=2950, slot_ms=3000,
            latency_ms=Counter({16: 5, 64: 40, 91: 12, 256: 3}),
        )  # fmt: skip
        shards = {
            index: receipt(
                index,
                source,
                records=60,
                embedded=57,
                dead_letters=3,
                reasons={"overlong_text": 2, "invalid_json": 1},
                started_at=1000.0 + 100 * start + 3 * index,
                finished_at=1004.0 + 100 * start + 3 * index,
                last=index == 1,
                statistics=statistics,
            )
            for index in range(2)
        }
        ledgers.append(SourceLedger(source, shards, True))
    examples = {
        "overlong_text": [example(text=ARABIC, detail=ARABIC), example(text=SCRIPT, detail=SCRIPT, source=SCRIPT)],
        "invalid_json": [example(line=SCRIPT, stage="read", http_status=None, attempts=0)],
    }
    served = dataclasses.replace(JOB.served, model_id=SCRIPT, prompt_name=SCRIPT, since="2026-01-03T03:04:05+00:00")
    job = dataclasses.replace(JOB, history=(JOB.served, served), text_field=SCRIPT)
    return make_report(
        Ledger(Plan(tuple(sources), 100), tuple(ledgers)),
        job,
        f"/out/{SCRIPT}",
        1.3,
        examples=examples,
        estimate=estimate,
        verified=Verified("2026-01-02T03:04:05+00:00", passed=True, findings=0, current=True),
        last_run=LastRun(f"tayyar run {SCRIPT}", (SCRIPT,), 1000.0, 120.0, 107.0, 228, 228, 0, 0),
    )


def unfinished_report(**fields: Any) -> Report:
    """A report of 15 of 19 shards: the first of two files lacks four."""
    sources = (Source("/in/a.ndjson", "a", 1500, "1.0"), Source("/in/b.ndjson", "b", 400, "1.0"))
    took = RequestStatistics(
        tokens=30, requests=2, queue_ms=20, inference_ms=10, flight_ms=40, busy_ms=700, slot_ms=1000,
        latency_ms=Counter({16: 1, 23: 1}),
    )  # fmt: skip
    first = {index: receipt(index, sources[0], statistics=took) for index in range(11)}
    second = {index: receipt(index, sources[1], last=index == 3, statistics=took) for index in range(4)}
    ledgers = (SourceLedger(sources[0], first, False), SourceLedger(sources[1], second, True))
    return make_report(Ledger(Plan(sources, 100), ledgers), JOB, "/out", None, **fields)


def grown_report() -> Report:
    """A report of two files, of which one has millions of documents of every origin, and the other only new ones."""
    name = "wikipedia/2026-11-01/arabic_articles_of_all_categories_part_000"
    sources = (Source(f"/in/{name}.ndjson", name, 10**10, "1.0"), Source("/in/b.ndjson", "b", 400, "1.0"))
    many = receipt(
        0, sources[0], records=4_094_596, embedded=4_093_362, sent=1_030_343, reused=2_040_686, duplicates=1_022_333,
        truncated=1_001_234, truncated_at=(7,), dead_letters=1234, reasons={"empty_text": 1234}, last=True,
    )  # fmt: skip
    ledgers = tuple(
        SourceLedger(source, {0: one}, True)
        for source, one in zip(sources, (many, receipt(0, sources[1], last=True)), strict=True)
    )
    return make_report(Ledger(Plan(sources, 10**10), ledgers), JOB, "/out", 1.3)
