from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.strategies import BOM, sources
from transforms.ndjson.lines import Line, chunks_from, lines_beginning_in, split_lines

UNLIMITED = 1 << 30


def lines_by_brute_force(data: bytes) -> Iterator[Line]:
    """Byte after byte."""
    start = 0
    for position, byte in enumerate(data):
        if byte == 0x0A:
            yield Line(start, data[start:position], position - start)
            start = position + 1
    if start < len(data):
        yield Line(start, data[start:], len(data) - start)


@given(sources(), st.integers(1, 100), st.integers(1, 40))
@example(b"", 1, 1)
@example(b"\n", 1, 1)
@example(b"\n\n\n", 2, 1)
@example(BOM + b"a\r\nb", 1, 3)
@example(b"longer than any shard\nx", 3, 2)
@example(b"ab\ncd\n", 3, 1)
def test_every_line_begins_in_exactly_one_shard(data: bytes, shard_bytes: int, chunk_bytes: int) -> None:
    found = []
    for start in range(0, len(data), shard_bytes):
        end = min(start + shard_bytes, len(data))
        lines = list(lines_beginning_in(io.BytesIO(data), start, end, UNLIMITED, chunk_bytes))
        assert all(start <= line.offset < end for line in lines)
        found += lines
    assert found == list(lines_by_brute_force(data))


@given(sources(), st.lists(st.integers(0, 12), max_size=40), st.integers(0, 1 << 40), st.integers(1, 50))
def test_a_stream_is_cut_alike_however_it_comes(data: bytes, cuts: list[int], offset: int, most: int) -> None:
    chunks, position = [], 0
    for size in cuts:
        chunks.append(data[position : position + size])
        position += size
    chunks.append(data[position:])
    expected = [Line(offset + o, content[:most], length) for o, content, length in lines_by_brute_force(data)]
    assert list(split_lines(chunks, offset, most)) == expected


def test_a_carriage_return_and_other_line_ends_of_unicode_end_no_line() -> None:
    data = "a\r\nb\rc\x0bd\x85e\u2028f\n".encode()
    assert [line.content for line in split_lines([data], 0, UNLIMITED)] == [b"a\r", data[3:-1]]


class CountingFile(io.BytesIO):
    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


@pytest.mark.parametrize(("start", "end"), [(0, 1000), (50_000, 51_000), (99_000, 100_000)])
def test_a_shard_is_read_alone(start: int, end: int) -> None:
    file = CountingFile(b"0123456789abcde\n" * 6250)
    assert len(list(lines_beginning_in(file, start, end, UNLIMITED, chunk_bytes=100))) in (62, 63)
    assert file.bytes_read <= end - start + 3 * 100


def test_a_range_inside_one_long_line_reads_no_further_than_its_end() -> None:
    file = CountingFile(b"x" * 100_000 + b"\ny\n")
    assert list(lines_beginning_in(file, 10_000, 20_000, UNLIMITED, chunk_bytes=1000)) == []
    assert file.bytes_read <= 10_000


def test_an_endless_line_takes_no_memory() -> None:
    block = b"x" * (1 << 20)
    tracemalloc.start()
    try:
        (line,) = split_lines((block for _ in range(200)), 0, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line == Line(0, block[:1000], 200 << 20)
    assert peak < 4 << 20


def test_chunks_come_until_the_end() -> None:
    assert list(chunks_from(io.BytesIO(b"abcde"), 2)) == [b"ab", b"cd", b"e"]
