"""What a job came to: for people as lines, for programs as report.json. Computed from plan and receipts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import orjson

from pipeline.job.ledger import Ledger, SourceLedger
from pipeline.job.spec import Job
from pipeline.reporting.timeline import bottleneck, stretches_of, timeline
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt

VERSION = 1
PLANNED = ("records", "tokens", "requests", "output_bytes", "seconds", "dollars")
_SUMMED = ("tokens", "requests", "retries", "queue_ms", "inference_ms", "throttled_ms")


def active_seconds(receipts: Iterable[Receipt]) -> float:
    """Return the seconds in which at least one shard was being embedded; pauses between runs do not count."""
    return sum(stretch.seconds for stretch in stretches_of(receipts))


def request_sums(receipts: Sequence[Receipt]) -> dict[str, int]:
    """Return what all requests took, by the names of the statistics."""
    return {name: sum(getattr(receipt.statistics, name) for receipt in receipts) for name in _SUMMED}


def make_report(
    ledger: Ledger,
    job: Job,
    price_per_hour: float | None,
    examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the report as the value that report.json holds; report.schema.json says what each field means.

    Args:
        ledger: of the job.
        job: what the vectors are.
        price_per_hour: of the endpoint, in dollars; None if nobody asks.
        examples: of dead letters, by reason.
        estimate: what `plan` expected; None if it was not asked.
    """
    receipts = list(ledger.receipts())
    latency = _latency(receipts)
    totals = _totals(ledger, receipts, price_per_hour)
    return {
        "version": VERSION,
        "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": ledger.complete,
        "balanced": all(receipt.balances for receipt in receipts),
        "period": _period(receipts),
        "totals": totals,
        "latency_ms": {**_quantiles(latency), "histogram": {str(bound): latency[bound] for bound in sorted(latency)}},
        "timeline": timeline(receipts),
        "bottleneck": bottleneck(
            ledger.embedded, totals["queue_ms"], totals["inference_ms"], latency, totals["seconds"]
        ),
        "price_per_hour": price_per_hour,
        "dead_letters": [
            {"reason": reason, "count": count, "examples": list((examples or {}).get(reason, ()))}
            for reason, count in totals["dead_letters_by_reason"].items()
        ],
        "plan": None if estimate is None else _plan_against_actual(estimate, totals),
        "sources": [_source_line(source) for source in ledger.sources],
        "job": asdict(job),
    }


def _latency(receipts: Iterable[Receipt]) -> Counter[int]:
    latency: Counter[int] = Counter()
    for receipt in receipts:
        latency.update(receipt.statistics.latency_ms)
    return latency


def _totals(ledger: Ledger, receipts: Sequence[Receipt], price_per_hour: float | None) -> dict[str, Any]:
    seconds = active_seconds(receipts)
    return {
        "sources": len(ledger.sources),
        "shards": len(receipts),
        "records": ledger.records,
        "embedded": ledger.embedded,
        "dead_letters": ledger.dead_letters,
        "dead_letters_by_reason": dict(sorted(ledger.reasons().items())),
        "output_bytes": sum(receipt.output.bytes for receipt in receipts if receipt.output is not None),
        "seconds": round(seconds, 3),
        "documents_per_second": round(ledger.embedded / seconds, 1) if seconds else None,
        "dollars": None if price_per_hour is None else round(price_per_hour * seconds / 3600, 4),
        **request_sums(receipts),
    }


def _period(receipts: Sequence[Receipt]) -> dict[str, float | None]:
    return {
        "started_at": min((receipt.started_at for receipt in receipts), default=None),
        "finished_at": max((receipt.finished_at for receipt in receipts), default=None),
    }


def _plan_against_actual(estimate: Mapping[str, Any], totals: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `plan` expected beside what happened; None where it expected nothing."""
    return {name: {"planned": estimate.get(name), "actual": totals[name]} for name in PLANNED}


def write_report(report: dict[str, Any], output: OutputFolder) -> None:
    """Save report.json."""
    output.write(output.report, [orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)])


def summary(ledger: Ledger, report: Mapping[str, Any], documents: int, seconds: float) -> Iterator[str]:
    """Yield the lines that a person reads at the end of a run.

    Args:
        ledger: of the job.
        report: of the job.
        documents: embedded by this run, which may have resumed another.
        seconds: that this run took, from the command to this line.
    """
    yield from counts(ledger, report)
    totals = report["totals"]
    rate = documents / seconds if seconds else 0.0
    yield f"this run: {documents} documents in {minutes(seconds)}, {rate:,.0f} documents/s"
    if documents != totals["embedded"]:
        yield f"the whole job: {totals['embedded']} documents in {minutes(totals['seconds'])}"
    if totals["dollars"] is not None:
        yield f"cost: ${totals['dollars']:,.2f} at ${report['price_per_hour']:,.2f} an hour"


def counts(ledger: Ledger, report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that say how many documents there are of each file, of all, and of each reason."""
    for source in ledger.sources:
        dead = f", dead letters = {source.dead_letters}" if source.dead_letters else ""
        yield f"{file_name(source)}: embeddings = {source.embedded}, documents = {source.records}{dead}"
    totals = report["totals"]
    embedded, records, dead_letters = (totals[name] for name in ("embedded", "records", "dead_letters"))
    yield f"total: embeddings = {embedded}, documents = {records}, dead letters = {dead_letters}"
    for reason, count in totals["dead_letters_by_reason"].items():
        yield f"  {reason}: {count}"


def file_name(source: SourceLedger) -> str:
    """Return a source's file name with the folders that its outputs keep."""
    folders = source.source.name.rpartition("/")[0]
    name = source.source.path.rpartition("/")[2]
    return f"{folders}/{name}" if folders else name


def minutes(seconds: float) -> str:
    """Return a duration as minutes and seconds, or as seconds with a decimal where it is short."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _source_line(source: SourceLedger) -> dict[str, Any]:
    return {
        "path": source.source.path,
        "name": source.source.name,
        "bytes": source.source.size,
        "shards": len(source.receipts),
        "complete": source.complete,
        "records": source.records,
        "embedded": source.embedded,
        "dead_letters": source.dead_letters,
    }


def _quantiles(latency: Counter[int]) -> dict[str, int | None]:
    """Return the upper bounds of the buckets in which the quantiles lie, in milliseconds."""
    total = sum(latency.values())
    found: dict[str, int | None] = {}
    for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        below = 0
        found[name] = None
        for bound in sorted(latency):
            below += latency[bound]
            if below >= share * total:
                found[name] = bound
                break
    return found
