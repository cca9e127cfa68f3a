"""What `verify` does with one shard: each of its source lines is there once, unchanged but for its vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.job.spec import JobSpec
from pipeline.verification.findings import OUTPUT_LINE_BYTES, Findings, Pick, Sample, wrong_vector_line
from transforms.elements import DeadLetter, Document, Shard, Stage
from transforms.ndjson.decompress import DamagedSource
from transforms.ndjson.lines import Line, chunks_from, split_lines
from transforms.ndjson.parse import parse_line
from transforms.ndjson.splice import json_key
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt
from transforms.read_shards import MAX_LINE_BYTES, SourceChanged, lines_of
from transforms.storage import api as storage
from transforms.storage.api import Crc32c, WrittenFile
from transforms.write_dead_letters import decode_dead_letter

_TELL_LINES = 1000


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A work item: one shard, or all shards of an unsplittable source.

    Attributes:
        work: the shard or the source.
        shard_bytes: decompressed bytes a shard.
        receipts: the valid ones of these shards, by index.
        output: the folder.
        job: what the vectors are.
        sample: how many lines to pick at most.
        seed: of the choice.
    """

    work: Shard
    shard_bytes: int
    receipts: Mapping[int, Receipt]
    output: OutputFolder
    job: JobSpec
    sample: int = 0
    seed: int = 0


@dataclass
class Outcome:
    """What came of a work item.

    Attributes:
        findings: in the order of the lines.
        broken: why the source cannot be read, which each of its shards would say again; None if it can.
        picks: lines to embed again.
    """

    findings: Findings = field(default_factory=Findings)
    broken: str | None = None
    picks: list[Pick] = field(default_factory=list)


def check_shards(item: ShardWork, done: Callable[[int], None]) -> Outcome:
    """Check the shards of a work item, all their files as streams.

    Args:
        item: what to check.
        done: is told how many records were checked.
    """
    outcome, sample = Outcome(), Sample(item.sample, f"{item.seed} {item.work.name}")
    try:
        for shard, lines in lines_of(item.work, item.shard_bytes):
            receipt = item.receipts.get(shard.index)
            if receipt is None:
                name = item.output.receipt(shard.name)
                outcome.findings.add(f"{name}: shard {shard.index} of {shard.source.path} has no valid receipt")
            else:
                _ShardCheck(shard, receipt, item, outcome.findings, sample).run(_telling(lines, receipt.records, done))
    except (DamagedSource, SourceChanged) as error:
        outcome.broken = str(error)
    outcome.picks = sample.picks
    return outcome


def _telling(lines: Iterable[Line], records: int, done: Callable[[int], None]) -> Iterator[Line]:
    """Yield lines, and tell of them in portions that come to the number of records in the end."""
    told = 0
    for count, line in enumerate(lines, 1):
        if count % _TELL_LINES == 0 and told + _TELL_LINES <= records:
            done(_TELL_LINES)
            told += _TELL_LINES
        yield line
    done(records - told)


class _ShardCheck:
    """Compares one shard's source lines with its output and its dead letters, all three as streams."""

    def __init__(self, shard: Shard, receipt: Receipt, item: ShardWork, findings: Findings, sample: Sample) -> None:
        self._shard = shard
        self._receipt = receipt
        self._output = item.output
        self._job = item.job
        self._findings = findings
        self._sample = sample
        self._key = json_key(item.job.embedding_field)
        self._reasons: Counter[str] = Counter()

    def run(self, lines: Iterable[Line]) -> None:
        """Check the shard; of lines that do not match only the first is a finding: the others follow from it."""
        embedded = lines_of_output(self._output, self._receipt.output, self._findings.add)
        letters = self._dead_letters()
        letter = next(letters, None)
        counts = {"records": 0, "embedded": 0, "dead_letters": 0}
        wrong = None
        for line in lines:
            parsed = self._parsed(line)
            if parsed is None:
                continue
            counts["records"] += 1
            if letter is not None and letter.offset == line.offset:
                counts["dead_letters"] += 1
                wrong = wrong or self._wrong_letter(letter, line, parsed)
                letter = next(letters, None)
            else:
                found = next(embedded, None)
                counts["embedded"] += found is not None
                wrong = wrong or self._wrong_line(line, found, parsed)
        if letter is not None:
            name = self._output.dead_letters(self._shard.name)
            wrong = wrong or f"{name}: no source line begins at byte {letter.offset}"
        surplus = sum(1 for _ in embedded)
        if surplus:
            wrong = wrong or f"{self._output.embedded(self._shard.name)}: {surplus} lines more than the source has"
        if wrong:
            self._findings.add(wrong)
        self._compare(counts)

    def _parsed(self, line: Line) -> Document | DeadLetter | None:
        job = self._job
        return parse_line(line, self._shard.source.path, job.text_field, job.embedding_field, MAX_LINE_BYTES)

    def _wrong_line(self, line: Line, found: Line | None, parsed: Document | DeadLetter) -> str | None:
        name, source = self._output.embedded(self._shard.name), self._shard.source.path
        if found is None:
            return f"{name}: the line at byte {line.offset} of {source} is missing"
        problem = wrong_vector_line(line.content, found.content, self._key, self._job.model.dimensions)
        if problem is None and isinstance(parsed, DeadLetter):
            problem = f"the source line is {parsed.reason.value}, so it cannot have a vector"
        if problem:
            return f"{name}, byte {found.offset}: {problem} (byte {line.offset} of {source})"
        self._sample.offer(self._output.path(name), found.offset)
        return None

    def _wrong_letter(self, letter: DeadLetter, line: Line, parsed: Document | DeadLetter) -> str | None:
        """Hold a dead letter against what the parser says of its line."""
        name = self._output.dead_letters(self._shard.name)
        place = f"{name}: the dead letter of byte {line.offset} of {self._shard.source.path}"
        if letter.source != self._shard.source.path:
            return f"{place} names another source, {letter.source}"
        if letter.line != parsed.line:
            return f"{place} does not hold that line"
        refused = parsed.reason if isinstance(parsed, DeadLetter) else None
        if letter.stage is Stage.READ and refused is None:
            return f"{place} says {letter.reason.value}, but that line is a document; tayyar redrive sends it"
        if refused is not None and (letter.stage, letter.reason) != (Stage.READ, refused):
            return f"{place} says {letter.reason.value}, but that line is {refused.value}"
        return None

    def _compare(self, counts: dict[str, int]) -> None:
        name = self._output.receipt(self._shard.name)
        for what, count in counts.items():
            said = getattr(self._receipt, what)
            if said != count:
                self._findings.add(f"{name}: says {what} = {said}, there are {count}")
        if dict(self._receipt.reasons) != self._reasons:
            said, found = _shown(self._receipt.reasons), _shown(self._reasons)
            self._findings.add(f"{name}: says reasons = {said}, there are {found}")
        if not self._receipt.balances:
            self._findings.add(f"{name}: does not balance")

    def _dead_letters(self) -> Iterator[DeadLetter]:
        for line in lines_of_output(self._output, self._receipt.dead_letter_output, self._findings.add):
            try:
                letter = decode_dead_letter(line.content)
            except ValueError as error:
                self._findings.add(f"{self._output.dead_letters(self._shard.name)}, byte {line.offset}: {error}")
            else:
                self._reasons[letter.reason.value] += 1
                yield letter


def _shown(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none"


def lines_of_output(
    output: OutputFolder, written: WrittenFile | None, complain: Callable[[str], None]
) -> Iterator[Line]:
    """Yield the lines of an output file, and hold its checksum against its receipt's when it ends.

    Args:
        output: the folder.
        written: what the receipt says of the file; None for no file, which has no lines.
        complain: is told what is wrong with the file as a whole.
    """
    if written is None:
        return
    crc = Crc32c()
    try:
        with storage.open_for_reading(output.path(written.path)) as file:
            yield from split_lines(_summed(chunks_from(file), crc), 0, OUTPUT_LINE_BYTES)
    except FileNotFoundError:
        complain(f"{written.path}: was there a moment ago and is gone now")
        return
    if crc.base64() != written.crc32c:
        complain(f"{written.path}: its checksum is {crc.base64()}, its receipt says {written.crc32c}")


def _summed(chunks: Iterable[bytes], crc: Crc32c) -> Iterator[bytes]:
    for chunk in chunks:
        crc.update(chunk)
        yield chunk
