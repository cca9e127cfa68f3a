"""The command `redrive`: dead letters are sent again, and those that succeed take their place among the embedded."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import NoReturn

from pipeline.commands.options.redrive import RedriveOptions
from pipeline.commands.report import publish
from pipeline.errors import ExitCode, NotProven, PipelineFailed, UsageError
from pipeline.job import run_marker
from pipeline.job.doubt import discard_doubtful
from pipeline.job.ledger import Ledger, ReceiptCache, read_job_ledger, relocate
from pipeline.job.preparation import is_shard
from pipeline.job.shard_replacement import finish_replacements, replace_shard
from pipeline.job.sharding import make_plan, read_plan
from pipeline.job.spec import JobSpec, ServedModel, require_job
from pipeline.reporting.examples import read_dead_letters
from pipeline.reporting.numbers import count
from pipeline.reporting.report import VERIFIED
from pipeline.reporting.timeline import sum_statistics
from pipeline.runners.endpoint import open_endpoint, require_endpoint
from pipeline.runners.progress import CountBar
from pipeline.verification.shards import rows_of_output
from transforms.doubt import record_doubt
from transforms.elements import DeadLetter, Document, DocumentShard, EmbeddedShard, Reason, Shard
from transforms.embed_shards import merge_embeddings, reject_unfit
from transforms.ndjson.decompress import DamagedSource
from transforms.ndjson.lines import Line
from transforms.ndjson.parse import is_blank, parse_line
from transforms.output.folder import OutputFolder
from transforms.output.formats import Row, format_of
from transforms.output.receipts import MAX_TRUNCATED_PLACES, Receipt
from transforms.read_shards import MAX_LINE_BYTES, ShardTooDense, SourceChanged, lines_by_shard
from transforms.reuse.keys import KEY_BYTES, key_of
from transforms.storage import api as storage
from transforms.storage.api import WrittenFile
from transforms.tei.client import TeiClient
from transforms.tei.errors import VectorsDoubtful
from transforms.tei.handshake import EndpointProfile
from transforms.tei.vector_space import VectorSpace
from transforms.write_dead_letters import encode_dead_letter

_THREADS_FOR_BUCKETS = 4  # one waits while another one's lines are parsed


@dataclass
class _Tally:
    """How many dead letters were sent again, how many of them succeeded, and the others' reasons."""

    sent: int = 0
    embedded: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def add(self, other: _Tally) -> None:
        self.sent += other.sent
        self.embedded += other.embedded
        self.left += other.left


def redrive(options: RedriveOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Send dead letters again.

    Args:
        options: of which job, which of them, and where to.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE, whatever came of them.

    Raises:
        UsageError: if it is not an output folder, a reason does not exist, or another command is at work there.
        EndpointError: if the endpoint cannot do it, or serves another model than the job's.
        PipelineFailed: if a source is damaged, gone or changed.
        NotProven: if a shard's files are not what its receipt says, or vectors are in doubt.
    """
    reasons = _reasons(options.reasons)
    output = OutputFolder(options.output, run_marker.new_run_name())
    job = require_job(output)
    with run_marker.registered(output) as others:
        if others:
            raise UsageError(
                f"{others[0]} is writing to {output.root}, and a redrive beside it could undo its work. "
                f"{others[0].remedy(output)}"
            )
        plan = read_plan(output, job.shard_bytes)
        finished = finish_replacements(output, lambda shard: is_shard(plan, shard))
        run_marker.remove_leftovers(output)
        if finished:
            say(f"{count(finished, 'shard')} that an interrupted redrive had begun: finished")
        ledger = read_job_ledger(output, job)
        if ledger.doubt:
            raise NotProven(ledger.doubt)
        if options.inputs:
            now = make_plan(options.inputs, output.root, job.shard_bytes, exclude=job.exclude)
            ledger, problems = relocate(ledger, now)
            if problems:
                raise UsageError(f"{problems[0]}. Give the files that were embedded.")
        tally = _Tally()
        try:
            _send_again(ledger, reasons, output, job, options, tally, say)
        except VectorsDoubtful as error:
            discarded = discard_doubtful(output, {output.run: str(error)}, ReceiptCache())
            raise VectorsDoubtful(
                f"{error} What this redrive had replaced ({count(discarded.shards, 'shard')}) is discarded. "
                "Put the endpoint right, then run the job again."
            ) from error
        except SourceChanged as error:
            raise PipelineFailed(f"{error} If the inputs have moved, give their place with --input.") from error
        except (DamagedSource, ShardTooDense) as error:
            raise PipelineFailed(str(error)) from error
        finally:  # the report may be of before an interruption, this one or an earlier one
            after = read_job_ledger(output, job)
            publish(after, job, output, None, say)
    for line in _summary(tally, after, reasons):
        say(line)
    return ExitCode.DONE


def _summary(tally: _Tally, after: Ledger, reasons: set[str]) -> Iterator[str]:
    not_embedded = tally.sent - tally.embedded
    if tally.sent:
        yield f"{count(tally.sent, 'dead letter')} sent again: {tally.embedded:,} embedded now, {not_embedded:,} not"
    elif _count_of(after, reasons):
        yield "nothing to send again: no dead letter of such a reason has a text"
    elif after.dead_letters:
        yield "nothing to send again: no dead letter has such a reason"
    else:
        yield "nothing to send again: there are no dead letters"
    for reason, left in sorted(tally.left.items()):
        yield f"  {reason}: {left:,}"
    yield f"total: embeddings = {after.embedded}, documents = {after.records}, dead letters = {after.dead_letters}"


def _reasons(chosen: Collection[str]) -> set[str]:
    known = {reason.value for reason in Reason}
    for reason in chosen:
        if reason not in known:
            raise UsageError(f"--reason {reason} is not a reason. Choose from {', '.join(sorted(known))}.")
    return set(chosen) or known


def _send_again(
    ledger: Ledger,
    reasons: set[str],
    output: OutputFolder,
    job: JobSpec,
    options: RedriveOptions,
    tally: _Tally,
    say: Callable[[str], None],
) -> None:
    """Go through the shards that have such dead letters; several at once where a bucket is read or written."""
    if not _has_texts(ledger, reasons, output, job):
        return
    require_endpoint(options.endpoint, options.model, job.served)
    counting = threading.Lock()
    paths = [output.root, *(source.source.path for source in ledger.sources)]
    threads_count = 1 if all(map(storage.is_local, paths)) else _THREADS_FOR_BUCKETS
    with (
        ThreadPoolExecutor(threads_count) as threads,  # outermost: they end when the client is closed
        open_endpoint(job.apply_to(options.endpoint), None, model=options.model, say=say) as (usable, profile),
        closing(TeiClient(dataclasses.replace(usable, space=_space_of(job, profile, output)))) as client,
        CountBar(_count_of(ledger, reasons), "dead letter") as bar,
    ):

        def send(work: Shard, chosen: Mapping[int, Receipt]) -> None:
            try:
                for shard, lines in lines_by_shard(work, job.shard_bytes):
                    if shard.index in chosen:
                        one = _Redrive(chosen[shard.index], shard, output, job, client).run(lines, reasons)
                        with counting:
                            tally.add(one)
                            bar.add(one.sent)
            except VectorsDoubtful as error:  # at once: another thread may fail for another reason
                record_doubt(output, str(error))
                raise

        futures = [threads.submit(send, work, chosen) for work, chosen in _work(ledger, reasons)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _count_of(ledger: Ledger, reasons: set[str]) -> int:
    """Return how many dead letters have one of the reasons."""
    return sum(receipt.reasons.get(reason, 0) for receipt in ledger.receipts() for reason in reasons)


def _has_texts(ledger: Ledger, reasons: set[str], output: OutputFolder, job: JobSpec) -> bool:
    """Return whether any such dead letter has a text to send; one whose file is damaged may have one."""
    for receipt in ledger.receipts():
        if not reasons.isdisjoint(receipt.reasons):
            try:
                for letter in read_dead_letters(receipt, output):
                    if letter.reason.value in reasons and isinstance(_parsed(letter, job), Document):
                        return True
            except ValueError:
                return True
    return False


def _parsed(letter: DeadLetter, job: JobSpec) -> Document | DeadLetter:
    if letter.reason is Reason.LINE_TOO_LONG:
        return letter  # it holds the line's beginning only
    line = Line(letter.offset, letter.line, len(letter.line))
    return parse_line(line, letter.source, job.text_field, job.embedding_field, MAX_LINE_BYTES) or letter


def _space_of(job: JobSpec, profile: EndpointProfile, output: OutputFolder) -> VectorSpace:
    """Return the job's vector space, if the endpoint's vectors are of it.

    Raises:
        UsageError: if they are not.
    """
    if not job.space.is_same(profile.space):
        served = ServedModel.of(profile.identity, job.prompt_name, datetime.now(timezone.utc))
        reason = job.describe_other_space(output.root, profile.space, served)
        raise UsageError(f"{reason} Give --endpoint a server of the former model.")
    return job.space


def _work(ledger: Ledger, reasons: set[str]) -> Iterator[tuple[Shard, Mapping[int, Receipt]]]:
    """Yield the work items of the plan that have such dead letters, with the receipts of their shards that do."""
    for source in ledger.sources:
        chosen = {i: receipt for i, receipt in source.by_index.items() if not reasons.isdisjoint(receipt.reasons)}
        for work in ledger.plan.shards_of(source.source) if chosen else ():
            if work.end is None or work.index in chosen:
                yield work, chosen


class _Redrive:
    """Sends one shard's dead letters again."""

    def __init__(self, receipt: Receipt, shard: Shard, output: OutputFolder, job: JobSpec, client: TeiClient) -> None:
        self._receipt = receipt
        self._shard = shard
        self._output = output
        self._job = job
        self._client = client
        self._name = output.embedded(shard.name, job.output_format)
        self._format = format_of(self._name)
        self._new_keys = bytearray()

    def run(self, lines: Iterable[Line], reasons: set[str]) -> _Tally:
        """Send those of the reasons, and replace the shard's files if any of them succeeds.

        Args:
            lines: of the shard's source.
            reasons: whose dead letters to send.
        """
        letters = self._letters()
        chosen = [letter for letter in letters if letter.reason.value in reasons]
        result = self._embed(chosen)
        # As in the receipt: since then, the source may have moved.
        again = {
            letter.offset: dataclasses.replace(letter, source=self._receipt.source) for letter in result.dead_letters
        }
        embedded = {document.offset for document in result.documents}
        left = [again.get(letter.offset, letter) for letter in letters if letter.offset not in embedded]
        if embedded:
            unfit = Counter(self._receipt.unfit)
            rows = self._format.rows_of(result.documents, result.vectors, self._job.layout, unfit)
            documents = {document.offset: document for document in result.documents}
            new = dict(zip((document.offset for document in result.documents), rows, strict=True))
            gone = {letter.offset for letter in left}
            merged = self._merged(lines, new, gone, documents)
            # Receipts keep their times, so nothing else would show that the verification is of other outputs.
            self._output.delete([VERIFIED])
            replace_shard(
                self._output,
                self._new_receipt(result, left, unfit),
                self._format.encode(merged, self._job.layout, result.vectors.shape[1]),
                b"".join(map(encode_dead_letter, left)),
                lambda: bytes(self._new_keys),
            )
        reasons_left = Counter(letter.reason.value for letter in again.values())
        return _Tally(len(chosen), len(embedded), reasons_left)

    def _letters(self) -> list[DeadLetter]:
        try:
            letters = list(read_dead_letters(self._receipt, self._output))
        except ValueError as error:
            raise self._mismatch(self._output.dead_letters(self._shard.name)) from error
        if len(letters) != self._receipt.dead_letters:
            raise self._mismatch(self._output.dead_letters(self._shard.name))
        return letters

    def _embed(self, letters: Iterable[DeadLetter]) -> EmbeddedShard:
        """Parse and send the letters' lines as if they had just been read."""
        records = [_parsed(letter, self._job) for letter in letters]
        documents = tuple(record for record in records if isinstance(record, Document))
        unread = tuple(record for record in records if isinstance(record, DeadLetter))
        embeddings = self._client.submit([document.text for document in documents]).result()
        embeddings = reject_unfit(embeddings, self._job.vector_type)
        embedded, _ = merge_embeddings(
            DocumentShard(self._shard, documents, unread, len(records)), embeddings, self._receipt.started_at
        )
        return embedded

    def _new_receipt(self, result: EmbeddedShard, left: list[DeadLetter], unfit: Mapping[str, int]) -> Receipt:
        """Return the receipt as if the documents had succeeded the first time: its times stay, its costs add up."""
        return dataclasses.replace(
            self._receipt,
            output=self._receipt.output or WrittenFile(self._name, 0, ""),
            embedded=self._receipt.embedded + len(result.documents),
            sent=self._receipt.sent + len(result.documents),
            nan_lines=self._receipt.nan_lines + sum(document.has_nan for document in result.documents),
            dead_letters=len(left),
            reasons=Counter(letter.reason.value for letter in left),
            unfit=unfit,
            truncated=self._receipt.truncated + len(result.truncated),
            truncated_at=tuple(sorted((*self._receipt.truncated_at, *result.truncated))[:MAX_TRUNCATED_PLACES]),
            statistics=sum_statistics([self._receipt.statistics, result.statistics]),
            run=self._output.run,
        )

    def _merged(
        self, lines: Iterable[Line], new: Mapping[int, Row], gone: set[int], documents: Mapping[int, Document]
    ) -> Iterator[Row]:
        """Yield the shard's output rows with the new ones in their places; gather their keys on the way.

        Raises:
            NotProven: if the output is not what the receipt says.
            SourceChanged: if the dead letters are not lines of the source.
        """
        old, old_keys = self._old_rows(), self._old_keys()
        self._new_keys.clear()
        placed = 0
        for line in lines:
            if line.offset in new:
                document = documents[line.offset]
                placed += line.content == document.line
                self._new_keys += key_of(document.text)
                yield new[line.offset]
            elif line.offset not in gone and not is_blank(line):
                found = next(old, None)
                if found is None:
                    raise self._mismatch(self._name)
                self._new_keys += next(old_keys)
                yield self._format.stored(found)
        if next(old, None) is not None:
            raise self._mismatch(self._name)
        if placed < len(new):
            raise SourceChanged(
                f"{self._shard.source.path} is not the file that was embedded: dead letters are not among its lines. "
                "Say with --input where that file is."
            )

    def _old_keys(self) -> Iterator[bytes]:
        """Yield the keys of the old output's documents; zeros, which match no text, where the file is damaged."""
        data = self._output.read(self._output.keys(self._shard.name)) or b""
        if len(data) != KEY_BYTES * self._receipt.embedded:
            data = bytes(KEY_BYTES * self._receipt.embedded)
        for start in range(0, len(data), KEY_BYTES):
            yield data[start : start + KEY_BYTES]

    def _old_rows(self) -> Iterator[Row]:
        def refuse(_: str) -> NoReturn:
            raise self._mismatch(self._name)

        return rows_of_output(self._output, self._receipt.output, self._job.layout, refuse)

    def _mismatch(self, name: str) -> NotProven:
        return NotProven(
            f"{name} is not what its receipt says. "
            f"Delete {self._output.path(self._output.receipt(self._shard.name))} and run the job again."
        )
