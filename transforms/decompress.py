"""Compressed sources as streams of bytes: in bounded memory, and never a truncated file as a shorter one."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from backports import zstd

from transforms.lines import CHUNK_BYTES

COMPRESSIONS = (".gz", ".bz2", ".zst")


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
        stream = _decoder(file, path)
        # read1 gives what is at hand: a larger read would drop, together with the damage, the good bytes before it.
        while chunk := stream.read1(CHUNK_BYTES):  # type: ignore[attr-defined] # all three have it, BinaryIO does not
            offset += len(chunk)
            yield chunk
    except (EOFError, OSError, ValueError, zlib.error, zstd.ZstdError) as error:
        raise DamagedSource(
            f"{path} is truncated or corrupt: {str(error) or type(error).__name__}; "
            f"{offset} decompressed bytes could be read, "
            f"up to about byte {file.tell()} of {stored_bytes} in the file. Replace the file and run again."
        ) from error


def _decoder(file: BinaryIO, path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if path.endswith(".bz2"):
        return cast(BinaryIO, bz2.BZ2File(file))
    return cast(BinaryIO, zstd.ZstdFile(file))
