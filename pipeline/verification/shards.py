"""What `verify` does with one shard: each of its source lines is there once, unchanged but for its vector."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.reporting.numbers import count
from pipeline.verification.findings import Findings, WrongLine
from pipeline.verification.rows import row_check
from pipeline.verification.sampling import Pick, Reservoir
from pipeline.verification.vectors import (
    ROW,
    SharedVectors,
    VectorRows,
    digest_vectors,
    find_wrong_vector,
)
from transforms.elements import DeadLetter, Document, Shard, Stage
from transforms.ndjson.decompress import DamagedSource
from transforms.ndjson.lines import Line
from transforms.ndjson.parse import TextField, parse_line
from transforms.output.folder import OutputFolder
from transforms.output.formats import Row, format_of
from transforms.output.layout import NDJSON, Layout
from transforms.output.receipts import Receipt
from transforms.read_shards import MAX_LINE_BYTES, ShardTooDense, SourceChanged, lines_by_shard
from transforms.storage import api as storage
from transforms.storage.api import WrittenFile
from transforms.write_dead_letters import decode_dead_letter

_BLOCK = 128  # vectors that numpy works on at once: they stay in the cache


@dataclass(frozen=True, slots=True)
class Expected:
    """The job's settings, against which its output is checked.

    Attributes:
        text_field: what was embedded.
        layout: what its output looks like.
        shard_bytes: decompressed bytes that make a shard.
        dimensions: numbers of a vector.
        norm_tolerance: how far a vector's norm may be from 1; None for vectors that are not normalized.
        models: the ids that the model went by, one of which each receipt has.
    """

    text_field: TextField
    layout: Layout
    shard_bytes: int
    dimensions: int
    norm_tolerance: float | None
    models: frozenset[str]


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A work item: one shard, or all shards of an unsplittable source.

    Attributes:
        work: the shard or the source.
        source_number: the source's place in the plan.
        receipts: the valid ones of these shards, by index.
        output: the folder.
        expected: the job's settings.
        without_source: whether the source is gone; then the output is checked alone.
        sample: how many lines to pick at most.
        seed: of the choice.
    """

    work: Shard
    source_number: int
    receipts: Mapping[int, Receipt]
    output: OutputFolder
    expected: Expected
    without_source: bool = False
    sample: int = 0
    seed: int = 0


@dataclass
class CheckedShards:
    """The result of a work item.

    Attributes:
        findings: in the order of the lines.
        broken: why the source cannot be read, which would be the same for each of its shards; None if it can.
        picks: lines to embed again.
        rows: of embedded documents, to find equal vectors of different shards.
        records: that were checked.
    """

    findings: Findings = field(default_factory=Findings)
    broken: str | None = None
    picks: list[Pick] = field(default_factory=list)
    rows: VectorRows = field(default_factory=lambda: np.empty(0, ROW))
    records: int = 0


def check_shards(item: ShardWork) -> CheckedShards:
    """Check the shards of a work item, all their files as streams."""
    result, sample, expected = CheckedShards(), Reservoir(item.sample, f"{item.seed} {item.work.name}"), item.expected

    def path_of(_: int, shard: int) -> str:
        return item.output.path(_output_name(item, Shard(item.work.source, shard, 0, None)))

    shared = SharedVectors(path_of, expected.text_field, expected.layout.embedding_field)
    shards: Iterable[tuple[Shard, Iterable[Line] | None]]
    shards = [(item.work, None)] if item.without_source else lines_by_shard(item.work, expected.shard_bytes)
    try:
        for shard, lines in shards:
            receipt = item.receipts.get(shard.index)
            if receipt is None:  # that it is missing was found before
                continue
            check = _ShardCheck(shard, receipt, item, result.findings, sample)
            rows = check.run(lines)
            result.records += receipt.records
            if problem := shared.judge(rows):
                result.findings.add(f"{_output_name(item, shard)}: {problem}")
            else:
                shared.add(rows)
    except (DamagedSource, ShardTooDense, SourceChanged) as error:
        result.broken = str(error)
    result.picks, result.rows = sample.picks, shared.rows
    return result


def _output_name(item: ShardWork, shard: Shard) -> str:
    return item.output.embedded(shard.name, item.expected.layout.format)


class _ShardCheck:
    """Compares one shard's source lines with its output and its dead letters, all three as streams."""

    def __init__(self, shard: Shard, receipt: Receipt, item: ShardWork, findings: Findings, sample: Reservoir) -> None:
        self._shard = shard
        self._receipt = receipt
        self._output = item.output
        self._expected = item.expected
        self._source_number = item.source_number
        self._findings = findings
        self._sample = sample
        self._layout = item.expected.layout
        self._name = _output_name(item, shard)
        self._path = item.output.path(self._name)
        self._format = format_of(self._name)
        self._row_check = row_check(self._layout, item.expected.dimensions)
        self._packed: list[bytes] = []  # vectors not yet checked as numbers
        self._offsets = array("Q")
        self._texts = bytearray()
        self._digests: list[np.ndarray] = []
        self._wrong: str | None = None
        self._reasons: Counter[str] = Counter()

    def run(self, lines: Iterable[Line] | None) -> VectorRows:
        """Check the shard and return its rows; of lines that do not match only the first is a finding.

        Args:
            lines: of its source; None if that is gone.
        """
        embedded = rows_of_output(self._output, self._receipt.output, self._layout, self._findings.add)
        letters = self._dead_letters()
        counts = self._alone(embedded, letters) if lines is None else self._beside(lines, embedded, letters)
        self._check_block()
        if self._wrong:
            self._findings.add(self._wrong)
        self._compare(counts, known_end=lines is not None)
        return self._rows()

    def _beside(self, lines: Iterable[Line], embedded: Iterator[Row], letters: Iterator[DeadLetter]) -> dict[str, int]:
        """Compare the output with the source, and return how many lines of each kind there are."""
        source, expected = self._shard.source.path, self._expected
        letter = next(letters, None)
        records = found_count = letter_count = nan_lines = 0
        for line in lines:
            parsed = parse_line(line, source, expected.text_field, self._layout.embedding_field, MAX_LINE_BYTES)
            if parsed is None:
                continue
            records += 1
            if letter is not None and letter.offset == line.offset:
                letter_count += 1
                if problem := self._wrong_letter(letter, line, parsed):
                    self._note(problem)
                letter = next(letters, None)
                continue
            found = next(embedded, None)
            if found is None:
                self._note(f"{self._name}: the line at byte {line.offset} of {source} is missing")
                continue
            found_count += 1
            if isinstance(parsed, Document):
                nan_lines += parsed.has_nan
            if self._wrong is None:
                try:
                    self._check_line(parsed, found)
                except WrongLine as error:
                    self._note(f"{self._name}, {self._place(found)}: {error} (byte {line.offset} of {source})")
        if letter is not None:
            name = self._output.dead_letters(self._shard.name)
            self._note(f"{name}: no source line begins at byte {letter.offset}")
            letter_count += 1 + sum(1 for _ in letters)
        surplus = sum(1 for _ in embedded)
        if surplus:
            self._note(f"{self._name}: {count(surplus, 'line')} more than the source has")
        return {
            "records": records,
            "embedded": found_count + surplus,
            "nan_lines": nan_lines,
            "dead_letters": letter_count,
        }

    def _alone(self, embedded: Iterator[Row], letters: Iterator[DeadLetter]) -> dict[str, int]:
        """Check the output without its source: every line is a document with its vector."""
        expected, found_count, letter_count, nan_lines = self._expected, 0, 0, 0
        for found in embedded:
            found_count += 1
            parsed = self._row_check.parse(found, self._path, expected.text_field)
            if isinstance(parsed, Document):
                nan_lines += parsed.has_nan
            if self._wrong is None:
                try:
                    if not isinstance(parsed, Document):
                        raise WrongLine(f"the line is {parsed.reason.value if parsed else 'blank'}")
                    self._add_vector(self._row_check.vector_alone(found, parsed), parsed.text, found)
                except WrongLine as error:
                    self._note(f"{self._name}, {self._place(found)}: {error}")
        for letter in letters:
            letter_count += 1
            if letter.source != self._receipt.source:  # the source may have moved since
                name = self._output.dead_letters(self._shard.name)
                self._note(f"{name}: the dead letter of byte {letter.offset} names another source, {letter.source}")
        return {
            "records": found_count + letter_count,
            "embedded": found_count,
            "nan_lines": nan_lines,
            "dead_letters": letter_count,
        }

    def _check_line(self, parsed: Document | DeadLetter, found: Row) -> None:
        """Check that a row is its source line with a vector; the vector's numbers are checked later, in blocks.

        Raises:
            WrongLine: with the reason.
        """
        if isinstance(parsed, DeadLetter):
            raise WrongLine(f"the source line is {parsed.reason.value}, so it cannot have a vector")
        self._add_vector(self._row_check.vector_beside(found, parsed), parsed.text, found)

    def _add_vector(self, packed: bytes, text: str, found: Row) -> None:
        """Take the vector of a row, the bytes of float32[dimensions], to those that are checked in blocks."""
        place = self._format.place(found)
        self._packed.append(packed)
        self._offsets.append(place)
        self._texts += hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]
        self._sample.offer(self._path, place)
        if len(self._packed) == _BLOCK:
            self._check_block()

    def _check_block(self) -> None:
        """Check the vectors kept as numbers, all at once."""
        if not self._packed:
            return
        vectors = np.frombuffer(b"".join(self._packed), np.float32).reshape(len(self._packed), -1)
        wrong = find_wrong_vector(vectors, self._expected.norm_tolerance)
        if wrong is not None and self._wrong is None:
            index, problem = wrong
            place = self._offsets[len(self._offsets) - len(self._packed) + index]
            self._wrong = f"{self._name}, {self._format.PLACE} {place}: {problem}"
        self._digests.append(digest_vectors(vectors))
        self._packed.clear()

    def _place(self, row: Row) -> str:
        return f"{self._format.PLACE} {self._format.place(row)}"

    def _note(self, wrong: str) -> None:
        """Make this the finding, unless an earlier line has one: the block not yet checked holds earlier lines."""
        self._check_block()
        self._wrong = self._wrong or wrong

    def _rows(self) -> VectorRows:
        rows = np.empty(len(self._offsets), ROW)
        if len(rows):
            rows["vector"] = np.concatenate(self._digests)
            rows["text"] = np.frombuffer(self._texts, np.uint64)
            rows["offset"] = self._offsets
        rows["source"], rows["shard"] = self._source_number, self._shard.index
        return rows

    def _wrong_letter(self, letter: DeadLetter, line: Line, parsed: Document | DeadLetter) -> str | None:
        """Compare a dead letter with what the parser makes of its line."""
        name = self._output.dead_letters(self._shard.name)
        place = f"{name}: the dead letter of byte {line.offset} of {self._shard.source.path}"
        if letter.source != self._receipt.source:  # the source may have moved since
            return f"{place} names another source, {letter.source}"
        if letter.line != parsed.line:
            return f"{place} does not hold that line"
        refused = parsed.reason if isinstance(parsed, DeadLetter) else None
        if letter.stage is Stage.READ and refused is None:
            return f"{place} has the reason {letter.reason.value}, but that line is a document; tayyar redrive sends it"
        if refused is not None and (letter.stage, letter.reason) != (Stage.READ, refused):
            return f"{place} has the reason {letter.reason.value}, but that line is {refused.value}"
        return None

    def _compare(self, counts: dict[str, int], *, known_end: bool) -> None:
        """Compare the receipt with what was counted, and with the shard as it was read."""
        receipt, shard = self._receipt, self._shard
        found: dict[str, object] = {**counts, "index": shard.index}
        if known_end:
            found |= {"end": shard.end, "last": shard.last}
        name = self._output.receipt(shard.name)
        for what, value in found.items():
            if (recorded := getattr(receipt, what)) != value:
                self._findings.add(f"{name}: {what} is {recorded}, but should be {value}")
        if receipt.model not in self._expected.models:
            known = " or ".join(sorted(self._expected.models))
            self._findings.add(f"{name}: model is {receipt.model}, but should be {known}")
        if dict(receipt.reasons) != self._reasons:
            recorded, expected = _shown(receipt.reasons), _shown(self._reasons)
            self._findings.add(f"{name}: reasons are {recorded}, but should be {expected}")
        if not receipt.balances:
            self._findings.add(f"{name}: does not balance")
        # Documents that `redrive` put in have texts of their own, so there may be fewer.
        repeated = len(self._offsets) - len(np.unique(np.frombuffer(self._texts, np.uint64)))
        if self._wrong is None and receipt.duplicates > repeated:
            self._findings.add(f"{name}: duplicates is {receipt.duplicates}, but only {repeated} texts occur before")

    def _dead_letters(self) -> Iterator[DeadLetter]:
        for line in lines_of_letters(self._output, self._receipt.dead_letter_output, self._findings.add):
            try:
                letter = decode_dead_letter(line.content)
            except ValueError as error:
                self._findings.add(f"{self._output.dead_letters(self._shard.name)}, byte {line.offset}: {error}")
            else:
                self._reasons[letter.reason.value] += 1
                yield letter


def _shown(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none"


def is_own_file(output: OutputFolder, name: str) -> bool:
    """Return whether a file is in the folder itself, and not by way of a link."""
    if not storage.is_local(output.root):
        return True
    return os.path.realpath(f"{output.root}/{name}") == f"{os.path.realpath(output.root)}/{name}"


def rows_of_output(
    output: OutputFolder, written: WrittenFile | None, layout: Layout, complain: Callable[[str], None]
) -> Iterator[Row]:
    """Yield the rows of an output, and compare its checksum with its receipt's.

    Args:
        output: the folder.
        written: the file as its receipt describes it; None for no file, which has no rows.
        layout: of the file.
        complain: is called with what is wrong with the file as a whole.
    """
    if written is None:
        return
    try:
        yield from format_of(written.path).read_rows(
            output.path(written.path),
            layout.embedding_field,
            lambda problem: complain(f"{written.path}: {problem}"),
            written.digest,
            layout,
        )
    except FileNotFoundError:
        complain(f"{written.path}: was there a moment ago and is gone now")


def lines_of_letters(
    output: OutputFolder, written: WrittenFile | None, complain: Callable[[str], None]
) -> Iterator[Line]:
    """Yield the lines of a file of dead letters as `rows_of_output` does the rows of an output."""
    return rows_of_output(output, written, Layout(NDJSON, ""), complain)
