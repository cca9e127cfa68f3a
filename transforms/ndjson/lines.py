"""Lines and their byte offsets, from a byte range or from a stream. Plain functions, bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

CHUNK_BYTES = 1 << 18  # as much as is still in the cache when its lines are parsed


class Line(NamedTuple):
    """One line.

    Attributes:
        offset: of its first byte.
        content: its bytes without the newline, at most as many as were asked for.
        length: how many there were.
    """

    offset: int
    content: bytes
    length: int


def chunks_from(file: BinaryIO, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield a file's bytes from where it stands."""
    while chunk := file.read(chunk_bytes):
        yield chunk


def split_lines(chunks: Iterable[bytes], offset: int, max_line_bytes: int) -> Iterator[Line]:
    r"""Cut a stream of bytes into lines at `\n`, which alone ends a line: `\r` stays in the line that it ends.

    Args:
        chunks: the stream; lines may span any number of chunks.
        offset: of the stream's first byte.
        max_line_bytes: how much of a line is kept; of a longer one the rest is counted and dropped.
    """
    parts: list[bytes] = []
    kept = length = 0
    for chunk in chunks:
        *finished, rest = chunk.split(b"\n")
        for piece in finished:
            if parts:
                length += len(piece)
                parts.append(piece[: max_line_bytes - kept])
                yield Line(offset, b"".join(parts), length)
                parts, kept = [], 0
            else:
                length = len(piece)
                yield Line(offset, piece[:max_line_bytes] if length > max_line_bytes else piece, length)
            offset += length + 1
            length = 0
        if rest:
            parts.append(rest[: max_line_bytes - kept])
            kept += len(parts[-1])
            length += len(rest)
    if length:
        yield Line(offset, b"".join(parts), length)


def lines_beginning_in(
    file: BinaryIO, start: int, end: int, max_line_bytes: int, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Line]:
    """Yield the lines of a seekable file that begin in the bytes `[start, end)`; the last of them may end behind it."""
    first = _first_line_start(file, start, end, chunk_bytes)
    if first is None:
        return
    file.seek(first)
    for line in split_lines(chunks_from(file, chunk_bytes), first, max_line_bytes):
        if line.offset >= end:
            return
        yield line


def _first_line_start(file: BinaryIO, start: int, end: int, chunk_bytes: int) -> int | None:
    """Return where the first line begins that begins in `[start, end)`; reads no further than `end`."""
    if start == 0:
        return 0 if end > 0 else None
    position = start - 1
    file.seek(position)
    while position < end - 1 and (chunk := file.read(min(chunk_bytes, end - 1 - position))):
        newline = chunk.find(b"\n")
        if newline >= 0:
            return position + newline + 1
        position += len(chunk)
    return None
