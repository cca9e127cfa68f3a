"""What the stores have in common: a file's description, errors, and reading by ranges. Light to import."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PARALLEL = 32  # requests at once for many small files: each one waits and hardly computes
BUFFER_BYTES = 4 << 20  # bytes of an object that are fetched at a time
MAX_SMALL_FILE_BYTES = 256 << 20  # far more than a file in `_job` has; a forged one must not fill the memory


class StorageError(Exception):
    """A path cannot be read or written as it was given; the message gives the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class FileStat:
    """One file as a listing shows it.

    Attributes:
        path: the whole path.
        size: in bytes.
        mtime: modification time in seconds since the epoch, for people and for comparing ages.
        version: changes whenever the content does, and stays when only metadata change: an object's generation (gs://)
            or ETag (s3://), a local file's modification time in nanoseconds.
        is_link: whether it is a symbolic link that was not followed; `size`, `mtime` and `version` are the link's own.
    """

    path: str
    size: int
    mtime: float
    version: str
    is_link: bool = False


def split_url(path: str) -> tuple[str, str]:
    """Return bucket and name of `scheme://bucket/name`; the name may be empty."""
    bucket, _, name = path.partition("://")[2].partition("/")
    if not bucket:
        raise StorageError(f"{path} names no bucket. Write it as {path.partition('://')[0]}://BUCKET/FOLDER.")
    return bucket, name


def too_large(path: str, max_bytes: int) -> StorageError:
    """Return the error of a small file that is not small."""
    return StorageError(f"{path} has more than {max_bytes} bytes, which no file of its kind has. Remove it.")


def open_ranges(size: int, fetch: Callable[[int, int], bytes], buffer_bytes: int = BUFFER_BYTES) -> io.BufferedReader:
    """Return an object of this size as a seekable file.

    Args:
        size: in bytes.
        fetch: returns the bytes from its first argument up to, not including, its second.
        buffer_bytes: fetched at a time.
    """
    return io.BufferedReader(_Ranges(size, fetch), buffer_bytes)


class _Ranges(io.RawIOBase):
    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        data = self._fetch(self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
