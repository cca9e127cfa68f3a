"""NDJSON outputs: each record's line with its vector in it. A row is written as its bytes, and read as a `Line`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any

from transforms.elements import Document, Vectors
from transforms.ndjson.lines import Line, chunks_from, lines_beginning_in, split_lines
from transforms.ndjson.parse import BOM, TextField, Unusable, parse_object, text_of
from transforms.ndjson.splice import embedded_lines, json_key
from transforms.output.layout import Layout
from transforms.storage import api as storage
from transforms.storage.api import Crc32c, Digest

PLACE = "byte"
# An output line is an input line and a vector, whose size is not known where lines are cut.
MAX_OUTPUT_LINE_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 18  # as much as is still in the cache when it is written
_READ_BYTES = 1 << 16  # at a time, where one line is read: most lines have less


def rows_of(
    documents: Sequence[Document], vectors: Vectors, layout: Layout, unfit: MutableMapping[str, int]
) -> Iterator[bytes]:
    """Yield the lines of documents, newlines included."""
    del unfit  # there are no columns
    return embedded_lines(documents, vectors, json_key(layout.embedding_field))


def encode(rows: Iterable[bytes], layout: Layout, dimensions: int) -> Iterator[bytes]:
    """Join lines to blocks: a write a line costs more than encoding it."""
    del layout, dimensions
    block: list[bytes] = []
    size = 0
    for line in rows:
        block.append(line)
        size += len(line)
        if size >= _BLOCK_BYTES:
            yield b"".join(block)
            block, size = [], 0
    if block:
        yield b"".join(block)


def read_rows(
    path: str,
    embedding_field: str,
    complain: Callable[[str], None],
    digest: Digest | None,
    layout: Layout | None = None,
) -> Iterator[Line]:
    """Yield the lines of a file, and compare its checksum when it ends."""
    del embedding_field, layout
    crc, size, end = Crc32c(), 0, b"\n"

    def summed(chunks: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal size, end
        for chunk in chunks:
            crc.update(chunk)
            size += len(chunk)
            end = chunk[-1:]
            yield chunk

    with storage.open_for_reading(path) as file:
        yield from split_lines(summed(chunks_from(file)), 0, MAX_OUTPUT_LINE_BYTES)
    if end != b"\n":
        complain("its last line does not end with a newline")
    if digest is not None and digest != (size, crc.base64()):
        complain(f"its checksum is {crc.base64()}, but {digest.crc32c} in its receipt")


def place(row: Line) -> int:
    """Return the offset of a line's first byte."""
    return row.offset


def stored(row: Line) -> bytes:
    """Return a line with its newline."""
    return row.content + b"\n"


def text_and_vector(row: Line, text_field: TextField, embedding_field: str) -> tuple[str, Any]:
    """Return the text and the value of the embedding field, None if there is none."""
    try:
        record, _ = parse_object(row.content.removeprefix(BOM))
        return text_of(record, text_field), record.get(embedding_field)
    except Unusable as error:
        raise ValueError(f"the line is {error.reason.value}") from error


def read_at(path: str, place: int, embedding_field: str) -> Line | None:
    """Return the line that begins at a byte."""
    del embedding_field
    with storage.open_for_reading(path, _READ_BYTES) as file:
        return next(lines_beginning_in(file, place, place + 1, MAX_OUTPUT_LINE_BYTES, _READ_BYTES), None)
