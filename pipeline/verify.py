"""The command `verify`: proof that every source line is there once, unchanged but for its vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import orjson
from tqdm import tqdm

from pipeline.errors import ExitCode, NotProven
from pipeline.job import Job, require_job
from pipeline.ledger import Ledger, SourceLedger, read_ledger, stale_files
from pipeline.plan import Plan, read_plan
from transforms import storage
from transforms.decompress import DamagedSource
from transforms.lines import Line, chunks_from, split_lines
from transforms.output import OutputFolder
from transforms.parse import is_blank
from transforms.read import SourceChanged, lines_of
from transforms.receipts import Receipt
from transforms.records import DeadLetter, Reason, Shard
from transforms.splice import json_key, split_at_vector
from transforms.storage import Crc32c, WrittenFile
from transforms.write_dead_letters import decode_dead_letter

_SHOWN = 10
_OUTPUT_LINE_BYTES = 1 << 30  # an output line is an input line and a vector, whose size is not known here


@dataclass
class Findings:
    """What is wrong: how many things, and the first ten with their places."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, finding: str) -> None:
        """Note one more."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(finding)


def verify(root: str, say: Callable[[str], None] = print) -> ExitCode:
    """Prove an output folder.

    Args:
        root: the folder.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        UsageError: if it is no output folder.
        NotProven: with the first ten findings.
    """
    output = OutputFolder(root, run="verify")
    job = require_job(output)
    plan = read_plan(output, job.shard_bytes)
    files = output.list()
    ledger = read_ledger(plan, output, job.digest, files)
    findings = Findings()
    for path in ledger.gone:
        findings.add(f"{path}: is no input any more, but receipts and embedded documents of it are here")
    for name in stale_files(ledger, output, files):
        findings.add(f"{name}: no valid receipt stands for this file")
    with tqdm(total=sum(source.size for source in plan.sources), unit="B", unit_scale=True, disable=None) as bar:
        for source in ledger.sources:
            _verify_source(source, plan, output, job, findings)
            bar.update(source.source.size)
    if findings.count:
        shown = "\n".join(f"  {finding}" for finding in findings.first)
        raise NotProven(f"{findings.count} findings in {root}, the first of them:\n{shown}")
    say(_proof(ledger, job))
    return ExitCode.DONE


def _proof(ledger: Ledger, job: Job) -> str:
    return (
        f"verified: {ledger.records} records in {len(ledger.sources)} files = "
        f"{ledger.embedded} embedded, each line unchanged and once, "
        f"with a vector of {job.model.dimensions} finite numbers, + {ledger.dead_letters} dead letters"
    )


def _verify_source(source: SourceLedger, plan: Plan, output: OutputFolder, job: Job, findings: Findings) -> None:
    try:
        for work in plan.shards_of(source.source):
            for shard, lines in lines_of(work, plan.shard_bytes):
                receipt = source.receipts.get(shard.index)
                if receipt is None:
                    name = output.receipt(shard.name)
                    findings.add(f"{name}: shard {shard.index} of {source.source.path} has no valid receipt")
                else:
                    _ShardCheck(shard, receipt, output, job, findings).run(lines)
    except (DamagedSource, SourceChanged) as error:
        findings.add(str(error))


class _ShardCheck:
    """Compares one shard's source lines with its output and its dead letters, all three as streams."""

    def __init__(self, shard: Shard, receipt: Receipt, output: OutputFolder, job: Job, findings: Findings) -> None:
        self._shard = shard
        self._receipt = receipt
        self._output = output
        self._findings = findings
        self._key = json_key(job.embedding_field)
        self._dimensions = job.model.dimensions

    def run(self, lines: Iterable[Line]) -> None:
        """Check the shard; of lines that do not match only the first is a finding: the others follow from it."""
        embedded = self._lines_of(self._receipt.output)
        letters = self._dead_letters()
        letter = next(letters, None)
        counts = {"records": 0, "embedded": 0, "dead_letters": 0}
        wrong = None
        for line in lines:
            if is_blank(line):
                continue
            counts["records"] += 1
            if letter is not None and letter.offset == line.offset:
                counts["dead_letters"] += 1
                wrong = wrong or _wrong_letter(letter, line)
                letter = next(letters, None)
            else:
                found = next(embedded, None)
                counts["embedded"] += found is not None
                wrong = wrong or self._wrong_line(line, found)
        if letter is not None:
            wrong = (
                wrong or f"{self._output.dead_letters(self._shard.name)}: no source line begins at byte {letter.offset}"
            )
        surplus = sum(1 for _ in embedded)
        if surplus:
            wrong = wrong or f"{self._output.embedded(self._shard.name)}: {surplus} lines more than the source has"
        if wrong:
            self._findings.add(wrong)
        self._compare(counts)

    def _wrong_line(self, line: Line, found: Line | None) -> str | None:
        name, source = self._output.embedded(self._shard.name), self._shard.source.path
        if found is None:
            return f"{name}: the line at byte {line.offset} of {source} is missing"
        problem = wrong_vector_line(line.content, found.content, self._key, self._dimensions)
        return problem and f"{name}, byte {found.offset}: {problem} (byte {line.offset} of {source})"

    def _compare(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            said = getattr(self._receipt, name)
            if said != count:
                self._findings.add(f"{self._output.receipt(self._shard.name)}: says {name} = {said}, there are {count}")
        if not self._receipt.balances:
            self._findings.add(f"{self._output.receipt(self._shard.name)}: does not balance")

    def _dead_letters(self) -> Iterator[DeadLetter]:
        for line in self._lines_of(self._receipt.dead_letter_output):
            try:
                yield decode_dead_letter(line.content)
            except ValueError as error:
                self._findings.add(f"{self._output.dead_letters(self._shard.name)}, byte {line.offset}: {error}")

    def _lines_of(self, written: WrittenFile | None) -> Iterator[Line]:
        """Yield the lines of an output file, and hold its checksum against the receipt's when it ends."""
        if written is None:
            return
        crc = Crc32c()
        with storage.open_for_reading(self._output.path(written.path)) as file:
            yield from split_lines(_summed(chunks_from(file), crc), 0, _OUTPUT_LINE_BYTES)
        if crc.base64() != written.crc32c:
            self._findings.add(f"{written.path}: its checksum is {crc.base64()}, its receipt says {written.crc32c}")


def _summed(chunks: Iterable[bytes], crc: Crc32c) -> Iterator[bytes]:
    for chunk in chunks:
        crc.update(chunk)
        yield chunk


def _wrong_letter(letter: DeadLetter, line: Line) -> str | None:
    same = (
        line.content.startswith(letter.line) if letter.reason is Reason.LINE_TOO_LONG else line.content == letter.line
    )
    return None if same else f"the dead letter of byte {line.offset} of {letter.source} does not hold that line"


def wrong_vector_line(source: bytes, found: bytes, key: bytes, dimensions: int) -> str | None:
    """Say what is wrong with an output line, or None.

    Args:
        source: the source line.
        found: the output line.
        key: the embedding field's name as `json_key` gives it.
        dimensions: numbers that the vector must have.
    """
    try:
        before, behind = split_at_vector(source, key)
    except ValueError:
        return "the source line is no JSON object, so it cannot have a vector"
    if len(found) < len(before) + len(behind) or not found.startswith(before) or not found.endswith(behind):
        return "the line is not the source line with a vector"
    return _wrong_vector(found[len(before) : len(found) - len(behind)], dimensions)


def _wrong_vector(text: bytes, dimensions: int) -> str | None:
    try:
        numbers = orjson.loads(text)
        if not isinstance(numbers, list) or not all(type(number) in (float, int) for number in numbers):
            return "the vector is no array of numbers"
    except orjson.JSONDecodeError:
        return "the vector is no JSON"
    if len(numbers) != dimensions:
        return f"the vector has {len(numbers)} numbers, not {dimensions}"
    with np.errstate(over="ignore"):  # what overflows is a finding, not a warning
        vector = np.array(numbers, dtype=np.float32)
    if not np.isfinite(vector).all():
        return "the vector has numbers that no float32 holds"
    return None if vector.any() else "the vector is all zeros"
