"""A sample of a plan's records: which part of the sources to read, and what it says of the whole."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

from tqdm import tqdm

from pipeline.plan import Plan
from transforms import storage
from transforms.decompress import decompressed_chunks, is_compressed
from transforms.lines import Line, lines_beginning_in, split_lines
from transforms.parse import parse_line
from transforms.read import MAX_LINE_BYTES
from transforms.records import DeadLetter, Document, Source

BLOCK_BYTES = 1 << 15
BLOCKS = 96
COMPRESSED_FILES = 8
COMPRESSED_BYTES = 1 << 20  # decompressed, of each of those files
_SMALL_READ = 4096
_STANDARD_ERRORS = 1.96  # on each side of a 95 % interval


@dataclass(frozen=True, slots=True)
class Count:
    """An estimated number, and the 95 % interval in which it lies."""

    value: float
    low: float
    high: float

    def __add__(self, other: Count) -> Count:
        return Count(self.value + other.value, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Record:
    """One sampled record: its line's length in bytes with the newline, and what parsing made of it."""

    length: int
    parsed: Document | DeadLetter


@dataclass(frozen=True, slots=True)
class Sample:
    """Records in the order in which they were read, and how many there are in all sources, as far as they tell."""

    records: tuple[Record, ...]
    total: Count


@dataclass(frozen=True, slots=True)
class _Block:
    """Bytes of a source; the lines that begin in them are read."""

    source: Source
    start: int
    end: int


def take_sample(plan: Plan, text_field: str, embedding_field: str, seed: int = 0) -> Sample:
    """Read some blocks of the sources, chosen at random, and the beginnings of some compressed ones.

    The blocks lie on a grid over all bytes and each is as likely as any other, so the lines that begin in them are a
    fair sample, whatever their lengths are. A small plan is read whole.

    Args:
        plan: which sources.
        text_field: what is embedded.
        embedding_field: the field that gets the vector.
        seed: of the choice.

    Raises:
        DamagedSource: if a compressed source cannot be read.
    """
    rng = random.Random(seed)
    blocks = [block for source in plan.sources if not is_compressed(source.path) for block in _grid(source)]
    packed = [source for source in plan.sources if is_compressed(source.path)]
    records: list[Record] = []
    in_block: list[float] = []
    a_byte: list[float] = []
    with tqdm(desc="sampling", unit=" blocks", disable=None, leave=False) as bar:
        for block in _some(blocks, BLOCKS, rng):
            found = [*_records(_lines_in(block), block.source, text_field, embedding_field)]
            records += found
            in_block.append(len(found))
            bar.update()
        for source in _some(packed, COMPRESSED_FILES, rng):
            lines, stored = _beginning(source)
            found = [*_records(lines, source, text_field, embedding_field)]
            records += found
            a_byte.append(len(found) / stored)
            bar.update()
    plain = _scaled(in_block, len(blocks), len(blocks))
    compressed = _scaled(a_byte, len(packed), sum(source.size for source in packed))
    return Sample(tuple(records), plain + compressed)


Item = TypeVar("Item")


def _some(items: Sequence[Item], most: int, rng: random.Random) -> list[Item]:
    """Return at most so many, any of them as likely as any other, in their order."""
    return [items[index] for index in sorted(rng.sample(range(len(items)), min(most, len(items))))]


def _grid(source: Source) -> Iterator[_Block]:
    for start in range(0, source.size, BLOCK_BYTES):
        yield _Block(source, start, min(start + BLOCK_BYTES, source.size))


def _lines_in(block: _Block) -> Iterator[Line]:
    with storage.open_for_reading(block.source.path) as file:
        yield from lines_beginning_in(file, block.start, block.end, MAX_LINE_BYTES, BLOCK_BYTES)


class _InSmallReads:
    """A file that gives little at a time: how far a decoder read ahead would count as read, and may be all of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Return at most 4 KiB."""
        return self._file.read(_SMALL_READ if size < 0 else min(size, _SMALL_READ))

    def tell(self) -> int:
        """Return how many bytes were given."""
        return self._file.tell()


def _beginning(source: Source) -> tuple[list[Line], int]:
    """Return the first lines of a compressed source, and the stored bytes that they took."""
    lines: list[Line] = []
    with storage.open_for_reading(source.path) as file:
        chunks = decompressed_chunks(cast(BinaryIO, _InSmallReads(file)), source.path, source.size)
        for line in split_lines(chunks, 0, MAX_LINE_BYTES):
            lines.append(line)
            if line.offset + line.length > COMPRESSED_BYTES:
                return lines, file.tell()
    return lines, source.size


def _records(lines: Iterable[Line], source: Source, text_field: str, embedding_field: str) -> Iterator[Record]:
    for line in lines:
        parsed = parse_line(line, source.path, text_field, embedding_field, MAX_LINE_BYTES)
        if parsed is not None:
            yield Record(line.length + 1, parsed)


def _scaled(found: Sequence[float], population: int, scale: float) -> Count:
    """Return the total of which `found` is a sample.

    Args:
        found: one number a block or source that was read.
        population: of blocks or sources.
        scale: what the mean of such numbers is to be multiplied with.
    """
    if not found:
        return Count(0, 0, 0)
    mean = statistics.fmean(found)
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    error = _STANDARD_ERRORS * spread / math.sqrt(len(found)) * math.sqrt(1 - len(found) / population)
    return Count(mean * scale, max(0.0, mean - error) * scale, (mean + error) * scale)
