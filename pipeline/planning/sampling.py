"""A sample of a plan's records: which part of the sources to read, and what follows from it for the whole."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipeline.job.sharding import Plan
from pipeline.reporting.numbers import count
from transforms.elements import DeadLetter, Document, Source
from transforms.ndjson.decompress import DamagedSource, decompressed_chunks
from transforms.ndjson.lines import Line, lines_beginning_in, split_lines
from transforms.ndjson.parse import TextField, parse_line
from transforms.read_shards import MAX_LINE_BYTES
from transforms.storage import api as storage

BLOCK_BYTES = 1 << 15  # some ten records of usual size
BLOCKS = 96  # 3 MB in all, which a bucket gives in some seconds
COMPRESSED_FILES = 8  # of which nothing but the beginning can be read
COMPRESSED_BYTES = 1 << 20  # decompressed, of each of those files
_SMALL_READ = 4096  # bytes: see `_InSmallReads`
_FETCHED_BYTES = 1 << 18  # of a compressed file in a bucket at a time: a few such hold its beginning
_STANDARD_ERRORS = 1.96  # on each side of a 95 % interval


@dataclass(frozen=True, slots=True)
class EstimatedCount:
    """An estimated number, and the 95 % interval in which it lies."""

    value: float
    low: float
    high: float

    def __add__(self, other: EstimatedCount) -> EstimatedCount:
        return EstimatedCount(self.value + other.value, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Record:
    """One sampled record: its line's length in bytes with the newline, and what parsing made of it."""

    length: int
    parsed: Document | DeadLetter


@dataclass(frozen=True, slots=True)
class Sample:
    """Records in the order in which they were read, and how many there are in all sources, as estimated from them."""

    records: tuple[Record, ...]
    total: EstimatedCount


@dataclass(frozen=True, slots=True)
class _Block:
    """Bytes of a source, or, where `end` is None, the beginning of a compressed one.

    The lines that begin in them are read.
    """

    source: Source
    start: int
    end: int | None


def take_sample(
    plan: Plan,
    text_field: TextField,
    embedding_field: str,
    seed: int = 0,
    show: Callable[[str], None] = lambda _: None,
) -> Sample:
    """Read some blocks of the sources, chosen at random, and the beginnings of some compressed ones.

    The blocks lie on a grid over all bytes and each is as likely as any other, so the lines that begin in them are a
    fair sample, whatever their lengths are. A small plan is read whole.

    Args:
        plan: which sources.
        text_field: what is embedded.
        embedding_field: the field that gets the vector.
        seed: of the choice.
        show: takes how far it is, again and again.

    Raises:
        DamagedSource: if a compressed source cannot be read.
    """
    records: list[Record] = []
    # A byte of a compressed source holds several times as many records as one of a plain source.
    plain, compressed = (
        _CountEstimator(sum(source.size for source in plan.sources if source.compressed is packed))
        for packed in (False, True)
    )
    for block in _chosen_blocks(plan, seed):
        found, stored_bytes = _read(block, text_field, embedding_field)
        records += found
        (compressed if block.source.compressed else plain).add(len(found), stored_bytes)
        show(f"reading a sample, {count(len(records), 'record')}")
    return Sample(tuple(records), plain.total() + compressed.total())


def sample_lines(plan: Plan, text_field: TextField, embedding_field: str, seed: int = 0) -> Iterator[bytes]:
    """Yield the lines of the documents in such a sample; a source that cannot be read yields none.

    Nothing is read before the first line is asked for.
    """
    for block in _chosen_blocks(plan, seed):
        with contextlib.suppress(DamagedSource):  # the run will report it
            records, _ = _read(block, text_field, embedding_field)
            yield from (record.parsed.line for record in records if isinstance(record.parsed, Document))


def _chosen_blocks(plan: Plan, seed: int) -> Iterator[_Block]:
    """Yield some blocks of the plain sources, and the beginnings of some compressed ones."""
    rng = random.Random(seed)
    yield from _blocks([source for source in plan.sources if not source.compressed], rng)
    packed = [source for source in plan.sources if source.compressed]
    for index in _some(len(packed), COMPRESSED_FILES, rng):
        yield _Block(packed[index], 0, None)


def _some(total: int, max_count: int, rng: random.Random) -> list[int]:
    """Return at most so many of the numbers below a total, any of them as likely as any other, in their order."""
    return sorted(rng.sample(range(total), min(max_count, total)))


def _blocks(sources: Sequence[Source], rng: random.Random) -> Iterator[_Block]:
    """Yield some blocks, any as likely as any other, in their order; only these are made: there may be millions."""
    ends = [*itertools.accumulate(-(-source.size // BLOCK_BYTES) for source in sources)]
    for index in _some(ends[-1] if ends else 0, BLOCKS, rng):
        which = bisect.bisect_right(ends, index)
        source = sources[which]
        start = (index - (ends[which - 1] if which else 0)) * BLOCK_BYTES
        yield _Block(source, start, min(start + BLOCK_BYTES, source.size))


def _read(block: _Block, text_field: TextField, embedding_field: str) -> tuple[list[Record], int]:
    """Return the records of a block, and the stored bytes that they took."""
    path = block.source.path
    if block.end is None:
        lines, stored_bytes = _first_lines(block.source)
    else:
        stored_bytes = block.end - block.start
        with storage.open_for_reading(path, BLOCK_BYTES) as file:
            lines = [*lines_beginning_in(file, block.start, block.end, MAX_LINE_BYTES, BLOCK_BYTES)]
    parsed = ((line, parse_line(line, path, text_field, embedding_field, MAX_LINE_BYTES)) for line in lines)
    return [Record(line.length + 1, record) for line, record in parsed if record is not None], stored_bytes


class _InSmallReads:
    """A file that gives little at a time: how far a decoder read ahead would count as read, and may be all of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Return at most 4 KiB."""
        return self._file.read(_SMALL_READ if size < 0 else min(size, _SMALL_READ))

    def seek(self, offset: int) -> int:
        """Go to a byte."""
        return self._file.seek(offset)

    def tell(self) -> int:
        """Return how many bytes were given."""
        return self._file.tell()


def _first_lines(source: Source) -> tuple[list[Line], int]:
    """Return the first lines of a compressed source, and the stored bytes that they took."""
    lines: list[Line] = []
    with storage.open_for_reading(source.path, _FETCHED_BYTES) as file:
        chunks = decompressed_chunks(cast(BinaryIO, _InSmallReads(file)), source.path, source.size)
        for line in split_lines(chunks, 0, MAX_LINE_BYTES):
            lines.append(line)
            if line.offset + line.length > COMPRESSED_BYTES:
                return lines, file.tell()
    return lines, source.size


class _CountEstimator:
    """Estimates how many records files have in all, from what was found in some parts of them.

    Args:
        size: of all of them, as stored.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: list[int] = []
        self._read: list[int] = []

    def add(self, found: int, read: int) -> None:
        """Add the records of one part, and the stored bytes that were read of it."""
        self._found.append(found)
        self._read.append(read)

    def total(self) -> EstimatedCount:
        """Return how many records there are in all; of what was read whole that is certain."""
        read, parts = sum(self._read), len(self._read)
        if not read:
            return EstimatedCount(0, 0, 0)
        rate = sum(self._found) / read
        spread = sum((found - rate * size) ** 2 for found, size in zip(self._found, self._read, strict=True))
        deviation = math.sqrt(spread / (parts - 1)) if parts > 1 else 0.0
        unread = max(0.0, 1 - read / self._size)
        error = _STANDARD_ERRORS * deviation * math.sqrt(parts * unread) / read
        return EstimatedCount(rate * self._size, max(0.0, rate - error) * self._size, (rate + error) * self._size)
