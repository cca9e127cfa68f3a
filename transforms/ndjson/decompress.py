"""Compressed sources as streams of bytes: in bounded memory, and never a truncated file as a shorter one."""

from __future__ import annotations

import bz2
import functools
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from backports import zstd

from transforms.ndjson.lines import CHUNK_BYTES

COMPRESSIONS = (".gz", ".bz2", ".zst")
# The size of a zstd file's window is the writer's choice (`zstd --long=31` makes the largest). Memory is only touched
# as far as the data fill it, so that a header that claims much costs little.
MAX_WINDOW_LOG = 31
MAGIC_BYTES = 18  # enough of a file to recognise its codec, and a zstd frame's window
_INPUT_BYTES = 1 << 16  # compressed, at a time
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # a zstd frame that holds no data, such as pzstd writes first


class DamagedSource(Exception):
    """A compressed source cannot be read to its end."""


def codec_of(head: bytes) -> str | None:
    """Return the codec that a file's first bytes show: gzip, bzip2 or zstd; None for none of these."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh") and head[3:4] in b"123456789" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    return "zstd" if head.startswith(_ZSTD_MAGIC) or _SKIPPABLE.match(head) else None


def decompressed_chunks(file: BinaryIO, path: str, stored_bytes: int) -> Iterator[bytes]:
    """Yield the decompressed bytes, at most `CHUNK_BYTES` at a time, however far a small file expands.

    Args:
        file: the compressed bytes; several members or frames one behind the other are one stream.
        path: the source's name, for messages; the codec is known by the first bytes.
        stored_bytes: the compressed size; an empty file is a truncated one.

    Raises:
        DamagedSource: where the stream is truncated or corrupt, after everything before that place was yielded.
    """
    offset = 0
    try:
        if stored_bytes == 0:
            raise EOFError("the file is empty")
        head = file.read(MAGIC_BYTES)
        file.seek(0)
        for chunk in _decoded(file, codec_of(head)):
            offset += len(chunk)
            yield chunk
    except MemoryError as error:
        raise DamagedSource(
            f"{path} cannot be decompressed in the memory that is left{str(error) and ': '}{error}. "
            "Give each worker more memory, or compress the file without --long."
        ) from error
    except (EOFError, OSError, ValueError, zlib.error, zstd.ZstdError) as error:
        raise DamagedSource(
            f"{path} is truncated or corrupt: {str(error) or type(error).__name__}; {offset} decompressed bytes could "
            f"be read, up to about byte {file.tell()} of {stored_bytes} in the file. Replace the file and run again."
        ) from error


def window_bytes(head: bytes) -> int:
    """Return how much memory the window of a zstd frame takes that begins so; 0 where it does not show."""
    if not head.startswith(_ZSTD_MAGIC) or len(head) < MAGIC_BYTES:
        return 0
    descriptor = head[4]
    if not descriptor & 0x20:
        exponent, mantissa = divmod(head[5], 8)
        return (1 << (10 + exponent)) * (8 + mantissa) // 8
    # A single segment: the window is the content, whose size follows the id of a dictionary.
    start = 5 + (0, 1, 2, 4)[descriptor & 3]
    size = (1, 2, 4, 8)[descriptor >> 6]
    return int.from_bytes(head[start : start + size], "little") + (256 if size == 2 else 0)


def _decoded(file: BinaryIO, codec: str | None) -> Iterator[bytes]:
    if codec is None:
        raise ValueError("it does not begin as a gzip, bzip2 or zstd file does")
    if codec == "gzip":
        # read1 returns what there is: a larger read would drop, together with the damage, the good bytes before it.
        return iter(functools.partial(gzip.GzipFile(fileobj=file).read1, CHUNK_BYTES), b"")
    return _streams(file, bz2.BZ2Decompressor if codec == "bzip2" else start_zstd)


def start_zstd() -> zstd.ZstdDecompressor:
    """Return a decompressor of one frame, of any window."""
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})


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
    """Yield the decompressed bytes of one stream after the other.

    Not by the library's own BZ2File, which silently drops a second stream that is damaged.
    """
    data = file.read(_INPUT_BYTES)
    while data:
        if len(data) < MAGIC_BYTES:  # what is behind a stream may be the first few bytes of the next one
            data += file.read(_INPUT_BYTES)
        head = data[:MAGIC_BYTES]
        decompressor = start()
        while not decompressor.eof:
            if decompressor.needs_input and not data and not (data := file.read(_INPUT_BYTES)):
                raise EOFError("it ends in the middle of a stream")
            try:
                chunk = decompressor.decompress(data, CHUNK_BYTES)
            except zstd.ZstdError as error:
                # libzstd has no other way to report it than its message.
                if "not enough memory" in str(error):
                    raise MemoryError(f"its window alone takes {window_bytes(head) >> 20} MiB") from error
                raise
            if chunk:
                yield chunk
            data = b""
        data = decompressor.unused_data or file.read(_INPUT_BYTES)
