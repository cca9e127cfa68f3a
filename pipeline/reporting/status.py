"""How far a job is, computed from what its output folder holds: the command `status` only shows it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.job.ledger import Ledger, ReceiptCache, read_ledger
from pipeline.job.run_marker import RunMarker, read_marker
from pipeline.job.sharding import read_plan
from pipeline.job.spec import JobSpec, require_job
from pipeline.reporting.numbers import count, duration, number, percent, rate
from pipeline.reporting.timeline import active_seconds, bottleneck, sum_statistics
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt
from transforms.reuse.partial import count_partial
from transforms.storage import api as storage

STATUS_VERSION = 1  # of the form of `status --json`
RECENT_SECONDS = 300.0  # several shards, and yet soon after a change
# A run that has no success for ten minutes gives up by itself (--give_up_after); a slow shard may take longer.
STALLED_AFTER_SECONDS = 600.0
STALLED_AFTER_SHARDS = 3  # times the longest shard
_CONTINUES = "the same run command continues from here"


class State(enum.Enum):
    """What a job is doing."""

    FINISHED = "finished"
    RUNNING = "running"
    STALLED = "stalled"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Status:
    """How far a job is; the value that `--json` prints.

    Attributes:
        version: of this value's form.
        state: finished, running, stalled or stopped; `why` gives the grounds.
        model: the model's id.
        sources: input files; `sources_done` of them are complete.
        shards: how many there are; None while a compressed file's are not counted. `shards_done` have their receipt.
        records: lines that are not blank, in the shards done; `records_expected` estimates all of them, by bytes or
            from `tayyar plan`.
        embedded: documents that have their vector, in the shards done: `sent` by the endpoint, `reused` from former
            outputs, or `duplicates` with an equal text in their shard.
        partial: documents of unfinished shards whose vectors are saved.
        dead_letters: by reason.
        recent_rate: documents sent a second over the last five minutes; None unless a run is at work that began before.
        overall_rate: documents sent a second of work, in which at least one shard was under way.
        work_seconds: that time.
        seconds_left: at the records a second, reused ones among them, of the same time as the recent rate, or else the
            overall one; None where nothing is known.
        tokens: as the endpoint counted them; `requests` and `retries` likewise are sums.
        throttled_seconds: requests waited so long because the endpoint asked for it, summed over requests.
        queue_ms: mean time of a text in the endpoint's queue; `inference_ms` likewise in its device. None where the
            endpoint reports no times.
        texts_in_flight: texts sent and not answered, on average over the time of work; `texts_in_queue` of these wait
            in the endpoint's queue.
        device_busy: the share of the time in which the endpoint's device was at work, as far as replies show.
    """

    version: int
    state: State
    why: str
    model: str
    sources: int
    sources_done: int
    shards: int | None
    shards_done: int
    records: int
    records_expected: int | None
    embedded: int
    sent: int
    reused: int
    duplicates: int
    partial: int
    dead_letters: dict[str, int]
    recent_rate: float | None
    overall_rate: float | None
    work_seconds: float
    seconds_left: float | None
    tokens: int
    requests: int
    retries: int
    throttled_seconds: float
    queue_ms: float | None
    inference_ms: float | None
    texts_in_flight: float | None
    texts_in_queue: float | None
    device_busy: float | None


def read_status(
    output: OutputFolder, now: float, planned_records: float | None = None, cache: ReceiptCache | None = None
) -> Status:
    """Return how far the job in a folder is.

    Args:
        output: the folder.
        now: seconds since the epoch.
        planned_records: what `plan` expected.
        cache: of the receipts that an earlier call read.

    Raises:
        UsageError: if it is not an output folder.
    """
    job = require_job(output)
    plan = read_plan(output, job.shard_bytes)
    files = output.list()
    ledger = read_ledger(plan, output, job.digest, files, cache)
    partial = count_partial(output, files, {receipt.shard for receipt in ledger.receipts()}, job.space.digest)
    return status_of(ledger, job, read_marker(output), now, planned_records, partial)


def status_of(
    ledger: Ledger,
    job: JobSpec,
    marker: RunMarker | None,
    now: float,
    planned_records: float | None = None,
    partial: int = 0,
) -> Status:
    """Return how far a job is.

    Args:
        ledger: of the job.
        job: what shapes the vectors.
        marker: of the run at work; None if there is none.
        now: seconds since the epoch.
        planned_records: what `plan` expected.
        partial: documents of unfinished shards whose vectors are saved.
    """
    receipts = list(ledger.receipts())
    state, why = decide_state(ledger.complete, receipts, marker, now)
    if ledger.doubt:
        why = f"{why}. {ledger.doubt}"
    busy = active_seconds(receipts)
    running = marker if state in (State.RUNNING, State.STALLED) else None
    expected = ledger.records_expected(planned_records)
    per_second = _recent_rate(receipts, running, now, "records") or (ledger.records / busy if busy else None)
    sums = sum_statistics(receipt.statistics for receipt in receipts)
    limit = bottleneck(sums, ledger.sent, busy)
    left = (expected - ledger.records) / per_second if expected is not None and per_second else None
    return Status(
        version=STATUS_VERSION,
        state=state,
        why=why,
        model=job.model.model_id,
        sources=len(ledger.sources),
        sources_done=sum(source.complete for source in ledger.sources),
        shards=ledger.shards_expected,
        shards_done=len(receipts),
        records=ledger.records,
        records_expected=expected,
        embedded=ledger.embedded,
        sent=ledger.sent,
        reused=ledger.reused,
        duplicates=ledger.duplicates,
        partial=partial,
        dead_letters=dict(sorted(ledger.reasons().items())),
        recent_rate=_rounded(_recent_rate(receipts, running, now, "sent"), 2),
        overall_rate=_rounded(ledger.sent / busy if busy else None, 2),
        work_seconds=round(busy, 3),
        seconds_left=_rounded(left),
        tokens=sums.tokens,
        requests=sums.requests,
        retries=sums.retries,
        throttled_seconds=round(sums.throttled_ms / 1000, 1),
        queue_ms=_rounded(limit.queue_ms_per_text),
        inference_ms=_rounded(limit.inference_ms_per_text),
        texts_in_flight=limit.texts_in_flight,
        texts_in_queue=limit.texts_in_queue,
        device_busy=limit.device_busy,
    )


def decide_state(complete: bool, receipts: list[Receipt], marker: RunMarker | None, now: float) -> tuple[State, str]:
    """Return the state of a job and the grounds for it.

    Args:
        complete: whether every shard has its receipt.
        receipts: those there are.
        marker: of the run at work; None if there is none.
        now: seconds since the epoch.
    """
    if complete:
        return State.FINISHED, "every shard has its receipt"
    last = max((receipt.finished_at for receipt in receipts), default=0.0)
    limit = _max_silent_seconds(receipts)
    if marker is None:
        # A job that a service started from a template leaves no marker, so a shard finished just now may be its.
        is_recent = not all(storage.is_local(receipt.source) for receipt in receipts) and now - last <= limit
        elsewhere = f" (last shard {duration(now - last)} ago; a job started from a template may still be running)"
        return State.STOPPED, f"no run is at work; {_CONTINUES}{elsewhere if is_recent else ''}"
    if marker.is_gone and not (marker.is_remote and now - last <= limit):
        return State.STOPPED, f"{marker}, is gone; {_CONTINUES}"
    silent = now - max(last, marker.since_seconds)
    # Before its first shard, nobody knows how long one takes.
    if receipts and silent > limit:
        return State.STALLED, (
            f"{marker}, has finished no shard for {duration(silent)} (limit {duration(limit)}); see its log and the "
            "endpoint's"
        )
    if marker.is_gone:
        return State.RUNNING, f"{marker}, is gone, but shards are being finished"
    if not receipts and silent > limit:
        return State.RUNNING, f"{marker}, has finished no shard yet; see its log if the endpoint is not that slow"
    return State.RUNNING, str(marker)


def _max_silent_seconds(receipts: list[Receipt]) -> float:
    """Return how long no shard may be finished before a run counts as stalled: longer where shards take long."""
    longest = max((receipt.finished_at - receipt.started_at for receipt in receipts), default=0.0)
    return max(STALLED_AFTER_SECONDS, STALLED_AFTER_SHARDS * longest)


def _recent_rate(
    receipts: list[Receipt], marker: RunMarker | None, now: float, counted: Literal["sent", "records"]
) -> float | None:
    """Return how many documents or records were counted a second in the last minutes of the run that is at work.

    A run that began later has none: the time in which it started, and shards that are under way, would count as slow.
    """
    start = now - RECENT_SECONDS
    if marker is None or marker.since_seconds > start:
        return None
    documents: int = sum(getattr(receipt, counted) for receipt in receipts if start < receipt.finished_at <= now)
    return documents / RECENT_SECONDS


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


def render_status(status: Status) -> Iterator[str]:
    """Yield the lines that a person reads."""
    yield f"{status.state.value}: {status.why}"
    yield (
        f"records: {status.records:,}{_of_expected(status)}; {status.shards_done:,} of "
        f"{count(status.shards, 'shard')}, {status.sources_done:,} of {count(status.sources, 'file')}"
    )
    yield f"rate: {', '.join(_rates(status))}"
    not_sent = [f"{status.reused:,} took a former output's vector"] if status.reused else []
    not_sent += [f"{status.duplicates:,} that of an equal text"] if status.duplicates else []
    if not_sent:
        yield f"not sent: {', '.join(not_sent)}"
    if status.partial:
        yield f"saved: {count(status.partial, 'vector')} of unfinished shards"
    if status.dead_letters:
        reasons = ", ".join(f"{reason} {many:,}" for reason, many in status.dead_letters.items())
        yield f"dead letters: {sum(status.dead_letters.values()):,} ({reasons})"
    else:
        yield "dead letters: none"
    if status.requests:
        requests = f"{count(status.requests, 'request')}, {status.retries:,} repeated"
        yield f"endpoint: {', '.join(_endpoint(status))}; {requests}"


def _endpoint(status: Status) -> Iterator[str]:
    if status.texts_in_flight is not None:
        yield f"{number(status.texts_in_flight)} texts in flight"
    if status.texts_in_queue is None or status.device_busy is None:
        yield "times in its queue and its device not reported"
    else:
        yield f"{number(status.texts_in_queue)} waiting in its queue"
        yield f"device busy {percent(status.device_busy)}"
    if status.throttled_seconds:
        yield f"throttled {duration(status.throttled_seconds)}"


def _of_expected(status: Status) -> str:
    if status.records_expected is None:
        return " so far; how many there are is not known yet"
    about = "" if status.state is State.FINISHED else "about "
    share = f" ({percent(status.records / status.records_expected)})" if status.records_expected else ""
    return f" of {about}{status.records_expected:,}{share}"


def _rates(status: Status) -> Iterator[str]:
    if not status.sent or status.overall_rate is None:
        yield "nothing was sent" if status.embedded or status.state is State.FINISHED else "not known yet"
        return
    # Where others took a vector that was there, the report's rate, which counts them, is a higher one.
    noun = "documents sent" if status.reused or status.duplicates else "documents"
    if status.recent_rate is not None:
        yield f"{rate(status.recent_rate, noun)} over the last minutes"
    yield f"{rate(status.overall_rate, noun)} over {duration(status.work_seconds)} of work"
    if status.state is not State.FINISHED and status.seconds_left is not None:
        yield f"{duration(status.seconds_left)} left" + (" at that rate" if status.state is State.STOPPED else "")
