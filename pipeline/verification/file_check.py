"""What `verify` does with NDJSON files that another tool wrote: every line has a text and a vector of one size.

With the files that the tool read, each pair of lines is compared as well: their values, not their bytes, because tools
write JSON in their own ways.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from pipeline.verification.findings import OUTPUT_LINE_BYTES, Findings, Pick, Sample, wrong_vector
from transforms.ndjson.decompress import DamagedSource, decompressed_chunks, is_compressed
from transforms.ndjson.lines import Line, chunks_from, lines_beginning_in, split_lines
from transforms.ndjson.parse import BOM, TextField, Unusable, is_blank
from transforms.ndjson.parse import text_of as text_in
from transforms.storage import api as storage

_TELL_LINES = 1000
_LONG_INTEGER = re.compile(rb"(?<![\d.])\d{19}")  # orjson reads some of them as floats


@dataclass(frozen=True, slots=True)
class FileWork:
    """A work item: the lines of a file that begin in some of its bytes.

    Attributes:
        path: of the file.
        start: of those bytes.
        end: behind them; None for all lines of a file that is read from its beginning.
        size: of what is read, as stored.
        source: the file that it was made of, to be compared line by line; only where `end` is None.
        text_field: what was embedded.
        embedding_field: where the vectors are.
        sample: how many lines to pick at most.
        seed: of the choice.
    """

    path: str
    start: int
    end: int | None
    size: int
    source: str | None
    text_field: TextField
    embedding_field: str
    sample: int = 0
    seed: int = 0


@dataclass
class FileOutcome:
    """What came of a work item.

    Attributes:
        lines: that are not blank.
        sizes: of the vectors, each with their number and the first one's offset.
        findings: in the order of the lines; what is wrong with the pairs of lines comes last.
        picks: lines to embed again.
    """

    lines: int = 0
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    picks: list[Pick] = field(default_factory=list)


def check_file(item: FileWork, done: Callable[[int], None]) -> FileOutcome:
    """Check the lines of a work item as a stream.

    Args:
        item: what to check.
        done: is told how many stored bytes were checked.
    """
    return _FileCheck(item, done).run()


class _FileCheck:
    def __init__(self, item: FileWork, done: Callable[[int], None]) -> None:
        self._item = item
        self._outcome = FileOutcome()
        self._sample = Sample(item.sample, f"{item.seed} {item.path} {item.start}")
        self._wrong_pair: str | None = None
        self._file: BinaryIO | None = None
        self._told = 0
        self._done: Callable[[int], None] = done

    def run(self) -> FileOutcome:
        """Check it; of pairs that do not match only the first is a finding: the others follow from it."""
        outcome, item = self._outcome, self._item
        try:
            with storage.open_for_reading(item.path) as self._file:
                lines = self._lines(self._file)
                if item.source is None:
                    for line in lines:
                        self._check(line)
                else:
                    with _opened_whole(item.source) as sources:
                        self._compare(sources, lines)
        except (DamagedSource, FileNotFoundError) as error:
            outcome.findings.add(str(error))
        if self._wrong_pair:
            outcome.findings.add(self._wrong_pair)
        outcome.picks = self._sample.picks
        self._done(item.size - self._told)
        return outcome

    def _lines(self, file: BinaryIO) -> Iterator[Line]:
        item = self._item
        if item.end is None:
            return _records(all_lines(file, item.path))
        return _records(lines_beginning_in(file, item.start, item.end, OUTPUT_LINE_BYTES))

    def _tell(self, file: BinaryIO) -> None:
        """Tell how far the file was read; a range's last line may end beyond it."""
        read = max(self._told, min(file.tell() - self._item.start, self._item.size))
        self._done(read - self._told)
        self._told = read

    def _compare(self, sources: Iterable[Line], lines: Iterable[Line]) -> None:
        """Check the lines, each beside the source line that it must have been made of."""
        path, surplus = self._item.path, 0
        for source, line in itertools.zip_longest(sources, lines):
            record = None if line is None else self._check(line)
            if line is None:
                self._note(f"{path}: the line at byte {source.offset} of {self._item.source} is missing")
            elif source is None:
                surplus += 1
            elif self._wrong_pair is None and record is not None and not self._same(source, record):
                place = f"{path}, byte {line.offset}"
                self._note(
                    f"{place}: this is not the line at byte {source.offset} of {self._item.source} with a vector"
                )
        if surplus:
            self._note(f"{path}: {surplus} lines more than {self._item.source} has")

    def _note(self, wrong: str) -> None:
        self._wrong_pair = self._wrong_pair or wrong

    def _same(self, source: Line, record: dict[str, Any]) -> bool:
        """Whether a record is that of a source line, but for its vector."""
        name = self._item.embedding_field
        try:
            before = value_of(source)
        except ValueError:
            return False
        if not isinstance(before, dict):
            return False
        return same_value({**before, name: None}, {**record, name: None})

    def _check(self, line: Line) -> dict[str, Any] | None:
        """Check one line and return its record; None if it is none."""
        self._outcome.lines += 1
        if self._file and self._outcome.lines % _TELL_LINES == 0:
            self._tell(self._file)
        try:
            record = value_of(line)
        except ValueError as error:
            self._find(line, f"the line is no JSON: {error}")
            return None
        if not isinstance(record, dict):
            self._find(line, "the line is no JSON object")
            return None
        wrong = self._wrong(line, record)
        if wrong:
            self._find(line, wrong)
        else:
            self._sample.offer(self._item.path, line.offset)
        return record

    def _wrong(self, line: Line, record: dict[str, Any]) -> str | None:
        name = self._item.embedding_field
        if name not in record:
            return f"there is no field {name!r}"
        problem = wrong_vector(record[name])
        if problem:
            return problem
        count, first = self._outcome.sizes.get(len(record[name]), (0, line.offset))
        self._outcome.sizes[len(record[name])] = (count + 1, first)
        if text_of(record, self._item.text_field) is None:
            return f"there is no text in the field {self._item.text_field!r}, which --text_field names"
        return None

    def _find(self, line: Line, wrong: str) -> None:
        self._outcome.findings.add(f"{self._item.path}, byte {line.offset}: {wrong}")


def value_of(line: Line) -> Any:
    """Return the JSON value of a line, its integers exact whatever their size.

    Raises:
        ValueError: if it is no JSON.
    """
    content = line.content.removeprefix(BOM)
    if not _LONG_INTEGER.search(content):
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            pass  # such as NaN, which some tools write and the other parser reads
    return json.loads(content.decode("utf-8"))


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: to Python, true is 1 and 1 is 1.0, and NaN is not NaN."""
    pairs = [(one, other)]
    while pairs:
        a, b = pairs.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, dict):
            if a.keys() != b.keys():
                return False
            pairs += [(value, b[key]) for key, value in a.items()]
        elif isinstance(a, list):
            if len(a) != len(b):
                return False
            pairs += zip(a, b, strict=True)
        elif a != b and (a == a or b == b):
            return False
    return True


def text_of(record: Any, text_field: TextField) -> str | None:
    """Return the text of a record; None if it has none."""
    try:
        return text_in(record, text_field) if isinstance(record, dict) else None
    except Unusable:
        return None


@contextmanager
def _opened_whole(path: str) -> Iterator[Iterator[Line]]:
    with storage.open_for_reading(path) as file:
        yield _records(all_lines(file, path))


def all_lines(file: Any, path: str) -> Iterator[Line]:
    """Yield a file's lines, decompressed where its name says that it is compressed."""
    found = storage.stat(path)
    chunks = decompressed_chunks(file, path, found.size if found else 0) if is_compressed(path) else chunks_from(file)
    return split_lines(chunks, 0, OUTPUT_LINE_BYTES)


def _records(lines: Iterable[Line]) -> Iterator[Line]:
    return (line for line in lines if not is_blank(line))
