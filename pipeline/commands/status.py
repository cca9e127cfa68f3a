"""The command `status`: how far a job is, from its output folder alone, on any machine that can read it."""

from __future__ import annotations

import enum
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TextIO

import orjson

from pipeline.commands.options import StatusOptions
from pipeline.errors import ExitCode
from pipeline.job.ledger import Ledger, ReceiptCache, read_ledger
from pipeline.job.run_marker import AtWork, read_at_work
from pipeline.job.sharding import read_plan
from pipeline.job.spec import Job, require_job
from pipeline.reporting.report import active_seconds, minutes, request_sums
from pipeline.runners.progress import stored_bytes
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt

VERSION = 1
REDRAW_SECONDS = 3.0
RECENT_SECONDS = 300.0
# A run that has no success for ten minutes gives up by itself (--give_up_after); a slow shard may take longer.
STALL_SECONDS = 600.0
STALL_SHARDS = 3


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
        state: finished, running, stalled or stopped; `why` says how that was judged.
        model: the model's id.
        sources: input files; `sources_done` of them are complete.
        shards: how many there are; None while a compressed file's are not counted. `shards_done` have their receipt.
        records: lines that are not blank, in the shards done; `records_expected` estimates all of them by bytes.
        dead_letters: by reason.
        recent_rate: documents a second over the last five minutes; None without a run at work.
        overall_rate: documents a second while at least one shard was under way.
        seconds_left: by records, at the recent rate, or else the overall one; None where nothing tells.
        tokens: as the endpoint counted them; `requests` and `retries` likewise are sums.
        throttled_seconds: requests waited so long because the endpoint had said to wait, summed over requests.
        queue_ms: mean time of a text in the endpoint's queue; `inference_ms` likewise in its device.
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
    dead_letters: dict[str, int]
    recent_rate: float | None
    overall_rate: float | None
    seconds_left: float | None
    tokens: int
    requests: int
    retries: int
    throttled_seconds: float
    queue_ms: float | None
    inference_ms: float | None


def status(options: StatusOptions, stream: TextIO | None = None) -> ExitCode:
    """Show how far a job is, once or until it is finished.

    Args:
        options: which job, and how to show it.
        stream: where to; None for the standard output.

    Returns:
        DONE.

    Raises:
        UsageError: if it is no output folder.
    """
    stream = stream or sys.stdout
    output, cache = OutputFolder(options.output, run="status"), ReceiptCache()
    show = _as_json if options.json else Screen(stream).show
    try:
        while True:
            found = read_status(output, time.time(), cache)
            show(found, stream)
            if not options.watch or found.state is State.FINISHED:
                return ExitCode.DONE
            threading.Event().wait(REDRAW_SECONDS)
    except KeyboardInterrupt:
        return ExitCode.DONE


def read_status(output: OutputFolder, now: float, cache: ReceiptCache | None = None) -> Status:
    """Return how far the job in a folder is.

    Args:
        output: the folder.
        now: seconds since the epoch.
        cache: of the receipts that an earlier call read.

    Raises:
        UsageError: if it is no output folder.
    """
    job = require_job(output)
    plan = read_plan(output, job.shard_bytes)
    ledger = read_ledger(plan, output, job.digest, output.list(), cache)
    return status_of(ledger, job, read_at_work(output), now)


def status_of(ledger: Ledger, job: Job, at_work: AtWork | None, now: float) -> Status:
    """Return how far a job is.

    Args:
        ledger: of the job.
        job: what the vectors are.
        at_work: who said to be at work; None if nobody did.
        now: seconds since the epoch.
    """
    receipts = list(ledger.receipts())
    state, why = judge(ledger.complete, receipts, at_work, now)
    busy = active_seconds(receipts)
    overall = ledger.embedded / busy if busy else None
    recent = _recent_rate(receipts, at_work, now) if state in (State.RUNNING, State.STALLED) else None
    expected = _records_expected(ledger)
    rate = (recent or overall or 0) * (ledger.records / ledger.embedded if ledger.embedded else 1)  # records a second
    sums = request_sums(receipts)
    return Status(
        version=VERSION,
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
        dead_letters=dict(sorted(ledger.reasons().items())),
        recent_rate=_rounded(recent),
        overall_rate=_rounded(overall),
        seconds_left=_rounded((expected - ledger.records) / rate) if expected is not None and rate else None,
        tokens=sums["tokens"],
        requests=sums["requests"],
        retries=sums["retries"],
        throttled_seconds=round(sums["throttled_ms"] / 1000, 1),
        queue_ms=_rounded(sums["queue_ms"] / ledger.embedded if ledger.embedded else None),
        inference_ms=_rounded(sums["inference_ms"] / ledger.embedded if ledger.embedded else None),
    )


def judge(complete: bool, receipts: list[Receipt], at_work: AtWork | None, now: float) -> tuple[State, str]:
    """Return the state of a job and how it is known.

    Args:
        complete: whether every shard has its receipt.
        receipts: those there are.
        at_work: who said to be at work; None if nobody did.
        now: seconds since the epoch.
    """
    if complete:
        return State.FINISHED, "every shard has its receipt"
    last = max((receipt.finished_at for receipt in receipts), default=0.0)
    longest = max((receipt.finished_at - receipt.started_at for receipt in receipts), default=0.0)
    patience = max(STALL_SECONDS, STALL_SHARDS * longest)
    if at_work is None:
        return State.STOPPED, f"shards are missing and no run is at work; {_how_to_go_on(now - last, patience)}"
    if at_work.is_gone and not (at_work.is_remote and now - last <= patience):
        return State.STOPPED, f"{at_work}, is gone; the same run command goes on from here"
    silent = now - max(last, at_work.since_seconds)
    if silent <= patience:
        gone = "; that process is gone, but shards are being finished" if at_work.is_gone else ""
        return State.RUNNING, f"{at_work}{gone}"
    if not receipts:
        return State.RUNNING, (
            f"{at_work}; no shard finished yet, after {minutes(silent)}: if the endpoint is not that slow, look at its "
            "log"
        )
    return State.STALLED, (
        f"{at_work}, has finished no shard for {minutes(silent)}, longer than the {minutes(patience)} that are "
        "usual at most: look at its log, and at the endpoint's"
    )


def _how_to_go_on(silent: float, patience: float) -> str:
    if silent > patience:
        return "the same run command goes on from here"
    return (
        "the same run command goes on from here, unless a service works on it from a template, which nobody says here: "
        f"the last shard was finished {minutes(silent)} ago"
    )


def _recent_rate(receipts: list[Receipt], at_work: AtWork | None, now: float) -> float | None:
    """Return the documents a second of the last minutes of the run that is at work."""
    if at_work is None:
        return None
    start = max(now - RECENT_SECONDS, at_work.since_seconds)
    documents = sum(receipt.embedded for receipt in receipts if start < receipt.finished_at <= now)
    return documents / (now - start) if now > start else None


def _records_expected(ledger: Ledger) -> int | None:
    """Return how many records there will be, by the bytes that those so far took; None where nothing tells."""
    if ledger.complete:
        return ledger.records
    done = sum(stored_bytes(receipt) for receipt in ledger.receipts())
    total = sum(source.source.size for source in ledger.sources)
    return round(ledger.records * max(1.0, total / done)) if done else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _as_json(found: Status, stream: TextIO) -> None:
    stream.write(orjson.dumps(asdict(found), option=orjson.OPT_APPEND_NEWLINE).decode())
    stream.flush()


class Screen:
    """Draws a status over the one before where a person watches, and behind it elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._is_terminal = stream.isatty()
        self._height = 0

    def show(self, found: Status, stream: TextIO) -> None:
        """Draw a status."""
        text = "".join(f"{line}\n" for line in lines_of(found))
        if self._is_terminal and self._height:
            stream.write(f"\x1b[{self._height}F\x1b[J")
        stream.write(text)
        stream.flush()
        self._height = text.count("\n")


def lines_of(found: Status) -> Iterator[str]:
    """Yield the lines that a person reads."""
    yield f"{found.state.value}: {found.why}"
    about = "" if found.state is State.FINISHED else "about "
    yield (
        f"documents: {found.records:,} of {about}{_or_unknown(found.records_expected)}{_share(found)}; "
        f"{found.shards_done:,} of {_or_unknown(found.shards)} shards, {found.sources_done} of {found.sources} files"
    )
    yield f"rate: {', '.join(_rates(found))}"
    if found.dead_letters:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.dead_letters.items())
        yield f"dead letters: {sum(found.dead_letters.values()):,} ({reasons})"
    else:
        yield "dead letters: none"
    if found.queue_ms is not None:
        yield (
            f"endpoint: a text waits {found.queue_ms:,} ms in its queue and {found.inference_ms:,} ms in its device; "
            f"throttled {minutes(found.throttled_seconds)}, {found.requests:,} requests, {found.retries:,} repeats"
        )


def _rates(found: Status) -> Iterator[str]:
    if found.recent_rate is not None:
        yield f"{found.recent_rate:,.0f} documents/s over the last minutes"
    yield f"{found.overall_rate:,.0f} documents/s overall" if found.overall_rate is not None else "not known yet"
    if found.state is not State.FINISHED and found.seconds_left is not None:
        yield f"{minutes(found.seconds_left)} left" + (" at that rate" if found.state is State.STOPPED else "")


def _share(found: Status) -> str:
    return f" ({found.records / found.records_expected:.0%})" if found.records_expected else ""


def _or_unknown(count: int | None) -> str:
    return "an unknown number of" if count is None else f"{count:,}"
