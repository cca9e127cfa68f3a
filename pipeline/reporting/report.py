"""What a job came to: for people as lines, for programs as report.json. Computed from plan and receipts."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple, TypeGuard, cast
from urllib.parse import urlsplit

import orjson

from pipeline.job.ledger import Ledger, SourceLedger
from pipeline.job.spec import JobSpec
from pipeline.reporting.explain import explain_dead_letters
from pipeline.reporting.numbers import count, dollars, duration, percent, rate
from pipeline.reporting.schema import (
    REPORT_VERSION,
    Comparison,
    DeadLetterReason,
    Example,
    Gone,
    JobSettings,
    LastRun,
    Latency,
    Model,
    ModelNames,
    Period,
    Place,
    PlanComparison,
    Report,
    SourceReport,
    Totals,
    Truncation,
    Verified,
    encode_json,
)
from pipeline.reporting.timeline import active_seconds, bottleneck, sum_statistics, timeline
from transforms.elements import RequestStatistics
from transforms.output.folder import JOB, OutputFolder
from transforms.output.json_fields import build_dataclass
from transforms.output.receipts import MAX_SECONDS, Receipt
from transforms.tei.settings import Overlong

VERIFIED = f"{JOB}/verified.json"  # written by `verify`
PLANNED = ("records", "tokens", "requests", "output_bytes", "seconds", "dollars")
_MAX_AMOUNT = 1 << 53  # of anything that is counted or paid: beyond that, it is no amount
_MAX_FILES = 30  # lines of the summary
_MAX_PLACES = 10  # of truncated texts
_SECRET = re.compile(r"--\w*(secret|password|token|key|credential|environment_(config|options))\w*", re.IGNORECASE)


def make_report(
    ledger: Ledger,
    job: JobSpec,
    output: str,
    price_per_hour: float | None,
    *,
    examples: Mapping[str, Sequence[Example]] | None = None,
    estimate: Mapping[str, Any] | None = None,
    verified: Verified | None = None,
    last_run: LastRun | None = None,
    former_price: float | None = None,
) -> Report:
    """Return the report as the value that report.json holds; `schema` describes each field.

    Args:
        ledger: of the job.
        job: what shapes the vectors.
        output: the folder.
        price_per_hour: of the endpoint, in dollars; None if it is not known.
        examples: of dead letters, by reason.
        estimate: what `plan` expected; None if it saved nothing.
        verified: the last `verify`; None if there was none.
        last_run: the last run that reached its end; None if none did.
        former_price: dollars of a document that was sent, from the former report; None if it is not known.
    """
    receipts = list(ledger.receipts())
    sums = sum_statistics(receipt.statistics for receipt in receipts)
    totals = _totals(ledger, receipts, sums, price_per_hour, estimate, former_price)
    return Report(
        version=REPORT_VERSION,
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        output=output,
        complete=ledger.complete,
        balanced=all(receipt.balances for receipt in receipts),
        job=_settings(job),
        period=Period(
            min((receipt.started_at for receipt in receipts), default=None),
            max((receipt.finished_at for receipt in receipts), default=None),
        ),
        totals=totals,
        price_per_hour=price_per_hour,
        latency_ms=_quantiles(sums.latency_ms),
        timeline=timeline(receipts),
        bottleneck=bottleneck(sums, totals.sent, totals.seconds),
        dead_letters=tuple(
            DeadLetterReason(reason, number, tuple((examples or {}).get(reason, ())))
            for reason, number in totals.dead_letters_by_reason.items()
        ),
        truncation=_truncation(receipts, job, sums),
        gone=_gone(ledger),
        plan=None if estimate is None else _comparison(estimate, totals, price_per_hour),
        verified=verified,
        last_run=last_run,
        sources=tuple(_source_report(ledger, source) for source in ledger.sources),
    )


def _settings(job: JobSpec) -> JobSettings:
    model = job.model
    return JobSettings(
        model=Model(model.model_id, model.sha, model.dtype, model.pooling, model.dimensions, model.server_version),
        history=tuple(
            ModelNames(
                served.model_id, served.revision, served.dtype, served.server_version, served.prompt_name, served.since
            )
            for served in job.history
        ),
        space=job.space.digest,
        inputs=job.inputs,
        text_fields=(job.text_field,) if isinstance(job.text_field, str) else job.text_field,
        embedding_field=job.embedding_field,
        prompt_name=job.prompt_name,
        normalize=job.normalize,
        overlong=job.overlong.value,
        wire_format=job.wire_format,
        version=job.version,
    )


def _totals(
    ledger: Ledger,
    receipts: Sequence[Receipt],
    sums: RequestStatistics,
    price_per_hour: float | None,
    estimate: Mapping[str, Any] | None,
    former_price: float | None,
) -> Totals:
    seconds = active_seconds(receipts)
    price = former_price
    if price_per_hour is not None and ledger.sent:
        # The time of shards whose vectors all were there already says nothing about the endpoint's.
        price = price_per_hour * active_seconds(receipt for receipt in receipts if receipt.sent) / 3600 / ledger.sent
    return Totals(
        sources=len(ledger.sources),
        sources_complete=sum(source.complete for source in ledger.sources),
        shards=len(receipts),
        shards_expected=ledger.shards_expected,
        records=ledger.records,
        records_expected=ledger.records_expected((estimate or {}).get("records")),
        embedded=ledger.embedded,
        sent=ledger.sent,
        reused=ledger.reused,
        duplicates=ledger.duplicates,
        truncated=ledger.truncated,
        nan_lines=sum(receipt.nan_lines for receipt in receipts),
        unfit=ledger.unfit(),
        dead_letters=ledger.dead_letters,
        dead_letters_by_reason=dict(sorted(ledger.reasons().items())),
        output_bytes=sum(receipt.output.bytes for receipt in receipts if receipt.output is not None),
        seconds=round(seconds, 3),
        documents_per_second=round(ledger.embedded / seconds, 2) if seconds else None,
        dollars=None if price_per_hour is None else round(price_per_hour * seconds / 3600, 6),
        dollars_per_document=price,
        dollars_not_spent=None if price is None else round(price * (ledger.reused + ledger.duplicates), 6),
        **{field.name: getattr(sums, field.name) for field in fields(sums) if field.name != "latency_ms"},
    )


def _truncation(receipts: Sequence[Receipt], job: JobSpec, sums: RequestStatistics) -> Truncation:
    places = (Place(receipt.source, offset) for receipt in receipts for offset in receipt.truncated_at)
    method: Literal["tokens", "characters", "refused"] = "tokens" if sums.tokens or not sums.requests else "characters"
    if job.overlong is Overlong.DEAD_LETTER:
        method = "refused"
    return Truncation(method, tuple(itertools.islice(places, _MAX_PLACES)))


def _gone(ledger: Ledger) -> Gone:
    receipts = ledger.gone_receipts
    return Gone(
        sources=len({receipt.source for receipt in receipts}),
        records=sum(receipt.records for receipt in receipts),
        embedded=sum(receipt.embedded for receipt in receipts),
        dead_letters=sum(receipt.dead_letters for receipt in receipts),
    )


def _comparison(estimate: Mapping[str, Any], totals: Totals, price_per_hour: float | None) -> PlanComparison:
    """Return what `plan` expected beside what happened, both at one price."""
    planned = {name: estimate.get(name) for name in PLANNED}
    seconds = planned["seconds"]
    planned["dollars"] = None if price_per_hour is None or seconds is None else price_per_hour * seconds / 3600
    return PlanComparison(**{name: Comparison(planned[name], getattr(totals, name)) for name in PLANNED})


def _source_report(ledger: Ledger, source: SourceLedger) -> SourceReport:
    return SourceReport(
        path=source.source.path,
        name=source.source.name,
        bytes=source.source.size,
        shards=len(source.by_index),
        shards_expected=len(source.by_index) if source.complete else ledger.plan.shard_count(source.source),
        complete=source.complete,
        records=source.records,
        embedded=source.embedded,
        sent=source.sent,
        reused=source.reused,
        duplicates=source.duplicates,
        truncated=source.truncated,
        dead_letters=source.dead_letters,
    )


def _quantiles(latency: Counter[int]) -> Latency:
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
    return Latency(**found, histogram={bound: latency[bound] for bound in sorted(latency)})


def run_of(
    before: Ledger, after: Ledger, arguments: Sequence[str], urls: Iterable[str], started_at: float, now: float
) -> LastRun:
    """Return what one run did.

    Args:
        before: the ledger when the run began.
        after: the ledger at its end.
        arguments: of the command line, without the program.
        urls: of the endpoint's servers.
        started_at: when the command began, in seconds since the epoch.
        now: when it ended.
    """
    old = {(receipt.shard, receipt.finished_at) for receipt in before.receipts()}
    new = [receipt for receipt in after.receipts() if (receipt.shard, receipt.finished_at) not in old]
    return LastRun(
        command=_command_line(arguments),
        endpoints=tuple(urlsplit(url).netloc.rpartition("@")[2] for url in urls),
        started_at=started_at,
        wall_seconds=round(now - started_at, 3),
        work_seconds=round(active_seconds(new), 6),  # the rate of a short run must not differ from the bar's
        documents=sum(receipt.embedded for receipt in new),
        sent=sum(receipt.sent for receipt in new),
        reused=sum(receipt.reused for receipt in new),
        duplicates=sum(receipt.duplicates for receipt in new),
    )


def _command_line(arguments: Sequence[str]) -> str:
    """Return the call as one would type it, without the values of options that may be secrets, Beam's among them."""
    shown = []
    secret_follows = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if secret_follows and not argument.startswith("--"):
            shown.append("…")
        elif equals and _SECRET.fullmatch(option):
            shown.append(f"{option}=…")
        else:
            shown.append(re.sub(r"//[^/@\s]+@", "//…@", shlex.quote(argument)))
        secret_follows = not equals and _SECRET.fullmatch(option) is not None
    return " ".join(["tayyar", *shown]) if shown else ""


def read_verified(output: OutputFolder, ledger: Ledger) -> Verified | None:
    """Return what the last `verify` of a folder left; None if it left nothing that can be read."""
    try:
        found = orjson.loads(output.read(VERIFIED) or b"null")
        at, findings = found["at"], found["findings"]
        ended = datetime.fromisoformat(at).timestamp()
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    if not is_amount(findings) or type(findings) is not int:
        return None
    last = max((receipt.finished_at for receipt in ledger.receipts()), default=0.0)
    return Verified(at=at, passed=findings == 0, findings=findings, current=ended >= last)


def write_verified(output: OutputFolder, findings: int) -> None:
    """Save what a `verify` that ends now has found, for the reports that follow."""
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    output.write(VERIFIED, [orjson.dumps({"at": at, "findings": findings}, option=orjson.OPT_APPEND_NEWLINE)])


class FormerReport(NamedTuple):
    """What a report takes over from its predecessor.

    Attributes:
        price_per_hour: of the endpoint, in dollars; None if it is not known.
        dollars_per_document: of a document that was sent; None if it is not known.
        last_run: the last run that reached its end; None if none did.
    """

    price_per_hour: float | None
    dollars_per_document: float | None
    last_run: LastRun | None


def read_former_report(output: OutputFolder) -> FormerReport:
    """Return what the report that is in the folder hands on."""
    try:
        former = orjson.loads(output.read(output.report) or b"{}")
        price, run = former.get("price_per_hour"), former.get("last_run")
        per_document = former.get("totals", {}).get("dollars_per_document")
        kept = None if run is None else build_dataclass(LastRun, {**run, "endpoints": tuple(run["endpoints"])})
    except (ValueError, AttributeError, TypeError, KeyError):
        return FormerReport(None, None, None)
    if kept is not None and not _is_plausible(kept):
        kept = None
    return FormerReport(_amount_or_none(price), _amount_or_none(per_document), kept)


def is_amount(value: object) -> TypeGuard[float]:
    """Return whether a value from a file that may have been edited can be a number of records, seconds or dollars."""
    return type(value) in (int, float) and 0 <= cast(float, value) <= _MAX_AMOUNT


def _amount_or_none(value: object) -> float | None:
    return float(value) if is_amount(value) else None


def _is_plausible(run: LastRun) -> bool:
    """Return whether the numbers in a report that may have been edited can be shown."""
    amounts = (run.wall_seconds, run.work_seconds, run.documents, run.sent, run.reused, run.duplicates)
    return 0 <= run.started_at <= MAX_SECONDS and all(map(is_amount, amounts))


def write_report(report: Report, output: OutputFolder) -> None:
    """Save report.json."""
    output.write(output.report, [encode_json(report)])


def summary(report: Report, run: LastRun | None) -> Iterator[str]:
    """Yield the lines that a person reads at the end of a run or of `report`.

    Args:
        report: of the job.
        run: what this call did; None where it only reports.
    """
    yield from counts(report)
    totals = report.totals
    work = f"{count(totals.embedded, 'document')} in {duration(totals.seconds)} of work"
    the_job = f"{work}, {rate(totals.documents_per_second)}" if totals.seconds else work
    if run is None:
        yield f"the job: {the_job}"
    elif not run.work_seconds and not run.documents:
        yield f"this run: nothing to do, every shard was done already; {duration(run.wall_seconds)}"
        yield f"the job: {the_job}"
    else:
        per_second = f", {rate(run.documents / run.work_seconds)}" if run.work_seconds else ""
        yield (
            f"this run: {count(run.documents, 'document')}{origins(run)} in {duration(run.work_seconds)} of work"
            f"{per_second}; {duration(run.wall_seconds)} from start to end"
        )
        if run.documents != totals.embedded:
            yield f"the job: {the_job}"
    if totals.dollars is not None:
        yield f"cost: {dollars(totals.dollars)} for the time of work, at {dollars(report.price_per_hour)} an hour"
    if totals.dollars_not_spent:
        yield f"not spent: {dollars(totals.dollars_not_spent)} for reused vectors and equal texts"
    if not report.complete:
        yield f"not complete: {progress(report)}; the same run command continues from here"


def origins(sums: LastRun | Ledger) -> str:
    """Return where a run's or a job's vectors come from, in parentheses; nothing if the endpoint made all of them."""
    if not sums.reused and not sums.duplicates:
        return ""
    parts = [f"{sums.sent:,} sent"]
    parts += [f"{sums.reused:,} reused"] if sums.reused else []
    parts += [f"{sums.duplicates:,} of equal texts"] if sums.duplicates else []
    return f" ({', '.join(parts)})"


def truncated(report: Report) -> str | None:
    """Return one sentence on texts that were truncated; None if none is known."""
    many, first = report.totals.truncated, report.truncation.first
    if not many:
        return None
    by = "by the tokens of replies and the lengths of texts"
    if report.truncation.method == "characters":
        by = "of which only the beginning is sent; the endpoint counts no tokens, so there may be more"
    place = f"; the first is at byte {first[0].offset:,} of {first[0].source}" if first else ""
    about = "at least" if report.truncation.method == "characters" else "about"
    return f"{about} {count(many, 'document')} of {report.totals.sent:,} sent, {by}{place}"


def progress(report: Report) -> str:
    """Return how far a job is: 15 of 19 shards are done (78% of about 57 records); a.ndjson lacks shards."""
    totals = report.totals
    missing = [source for source in report.sources if not source.complete]
    share = (
        f" ({percent(totals.records / totals.records_expected)} of about {count(totals.records_expected, 'record')})"
        if totals.records_expected
        else ""
    )
    files = f"{count(len(missing), 'file')}, {missing[0].path} first," if len(missing) > 1 else missing[0].path
    expected = count(totals.shards_expected, "shard")
    lacks = "lack shards" if len(missing) > 1 else "lacks shards"
    return f"{totals.shards:,} of {expected} are done{share}; {files} {lacks}"


def counts(report: Report) -> Iterator[str]:
    """Yield the lines with the number of documents of each file and of all, and of dead letters by their reasons."""
    # Where there are too many files for a terminal, those that are not complete are the ones to see.
    many = len(report.sources) > _MAX_FILES
    sources = sorted(report.sources, key=lambda source: source.complete) if many else report.sources
    for source in sources[:_MAX_FILES]:
        some = {
            "dead letters": source.dead_letters,
            "reused": source.reused,
            "equal texts": source.duplicates,
            "truncated": source.truncated,
        }
        others = "".join(f", {name} = {number}" for name, number in some.items() if number)
        shards = "" if source.complete else f" ({source.shards:,} of {count(source.shards_expected, 'shard')})"
        yield f"{file_name(source)}: embeddings = {source.embedded}, documents = {source.records}{others}{shards}"
    if many:
        yield f"… and {count(len(sources) - _MAX_FILES, 'more file')}; report.json has them all"
    totals = report.totals
    yield f"total: embeddings = {totals.embedded}, documents = {totals.records}, dead letters = {totals.dead_letters}"
    yield from explain_dead_letters(report.dead_letters)
    if sentence := truncated(report):
        yield f"truncated: {sentence}"
    if gone := report.gone.sources:
        exist = "exists" if gone == 1 else "exist"
        yield f"kept: {count(report.gone.embedded, 'document')} of {count(gone, 'input')} that no longer {exist}"
    if totals.nan_lines:
        hold = "line holds" if totals.nan_lines == 1 else "lines hold"
        yield f"{totals.nan_lines:,} embedded {hold} NaN or Infinity, which strict JSON parsers refuse"
    for name, number in totals.unfit.items():
        yield f"column {name}: {count(number, 'value')} of another type, null there and whole in the record"


def file_name(source: SourceReport) -> str:
    """Return a source's file name with the folders that its outputs keep."""
    folders = source.name.rpartition("/")[0]
    name = source.path.rpartition("/")[2]
    return f"{folders}/{name}" if folders else name
