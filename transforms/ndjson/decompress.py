"""Compressed sources as streams of bytes: in bounded memory, and never a truncated file as a shorter one."""

from __future__ import annotations

import bz2
import functools
import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from backports import zstd

from transforms.ndjson.lines import CHUNK_BYTES

COMPRESSIONS = (".gz", ".bz2", ".zst")
_INPUT_BYTES = 1 << 16


class DamagedSource(Exception):
    """A compressed source cannot be read to its end."""


def is_compressed(path: str) -> bool:
    """Whether the name says that the source is compressed, and so cannot be split."""
    return path.endswith(COMPRESSIONS)


def decompressed_chunks(file: BinaryIO, path: str, stored_bytes: int) -> Iterator[bytes]:
    """Yield the decompressed bytes, at most 1 MiB at a time, however far a small file expands.

    Args:
        file: the compressed bytes; several members or frames one behind the other are one stream.
        path: the source's name, whose ending names the codec.
        stored_bytes: the compressed size; an empty file is a truncated one.

    Raises:
        DamagedSource: where the stream is truncated or corrupt, after everything before that place was yielded.
    """
    offset = 0
    try:
        if stored_bytes == 0:
            raise EOFError("the file is empty")
        for chunk in _decoded(file, path):
            offset += len(chunk)
            yield chunk
    except (EOFError, OSError, ValueError, zlib.error, zstd.ZstdError) as error:
        raise DamagedSource(
            f"{path} is truncated or corrupt: {str(error) or type(error).__name__}; {offset} decompressed bytes could "
            f"be read, up to about byte {file.tell()} of {stored_bytes} in the file. Replace the file and run again."
        ) from error


def _decoded(file: BinaryIO, path: str) -> Iterator[bytes]:
    if path.endswith(".gz"):
        # read1 gives what is at hand: a larger read would drop, together with the damage, the good bytes before it.
        return iter(functools.partial(gzip.GzipFile(fileobj=file).read1, CHUNK_BYTES), b"")
    return _streams(file, bz2.BZ2Decompressor if path.endswith(".bz2") else zstd.ZstdDecompressor)


class _Decompressor(Protocol):
    """What the decompressors of one .bz2 stream and of one .zst frame have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _streams(file: BinaryIO, start: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Decompress one stream behind the other; the library's own BZ2File takes a damaged second one for rubbish."""
    data = file.read(_INPUT_BYTES)
    while data:
        decompressor = start()
        while not decompressor.eof:
            if decompressor.needs_input and not data and not (data := file.read(_INPUT_BYTES)):
                raise EOFError("it ends in the middle of a stream")
            if chunk := decompressor.decompress(data, CHUNK_BYTES):
                yield chunk
            data = b""
        data = decompressor.unused_data or file.read(_INPUT_BYTES)
