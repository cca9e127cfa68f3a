"""Chunks of bytes on their way into a file: their size and checksum, and a place to gather them."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple, cast

import google_crc32c

_MAX_SPOOL_BYTES = 8 << 20  # of a file on its way to a bucket; a larger one waits on disk


class Crc32c:
    """A running CRC-32C."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        """Add the next bytes."""
        self._value = google_crc32c.extend(self._value, data)

    def base64(self) -> str:
        """Return the checksum so far, big-endian in base64."""
        return base64.b64encode(self._value.to_bytes(4, "big")).decode()


class Digest(NamedTuple):
    """What shows that a file is the one that was written: its size in bytes, and its CRC-32C in base64."""

    size: int
    crc32c: str


def digest_of(chunks: Iterable[bytes]) -> Digest:
    """Return the digest of a file that holds these chunks."""
    crc, size = Crc32c(), 0
    for chunk in chunks:
        crc.update(chunk)
        size += len(chunk)
    return Digest(size, crc.base64())


def copy_chunks(chunks: Iterable[bytes], file: BinaryIO) -> Digest:
    """Write chunks to a file and return its digest."""

    def written() -> Iterator[bytes]:
        for chunk in chunks:
            file.write(chunk)
            yield chunk

    return digest_of(written())


@contextlib.contextmanager
def spooled(chunks: Iterable[bytes]) -> Iterator[tuple[BinaryIO, int, str]]:
    """Gather chunks in a temporary file of this process, because stores want an upload's size and checksum first.

    Yields:
        the file at its beginning, its size in bytes and its CRC-32C in base64.
    """
    with tempfile.SpooledTemporaryFile(_MAX_SPOOL_BYTES) as spool:
        file = cast(BinaryIO, spool)
        size, crc32c = copy_chunks(chunks, file)
        file.seek(0)
        yield file, size, crc32c
