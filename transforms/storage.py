"""Files through Beam's FileSystems: local paths and object stores alike."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, cast

import google_crc32c
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem


@dataclass(frozen=True, slots=True)
class FileStat:
    """One file as a listing shows it: size in bytes, modification time in seconds since the epoch."""

    path: str
    size: int
    mtime: float


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written whole.

    Attributes:
        path: relative to the output folder.
        bytes: its size.
        crc32c: checksum of its bytes, big-endian in base64: the form in which object stores show it.
    """

    path: str
    bytes: int
    crc32c: str


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


def is_local(path: str) -> bool:
    """Whether the path is on this machine's own file system."""
    return isinstance(FileSystems.get_filesystem(path), LocalFileSystem)


def open_for_reading(path: str) -> BinaryIO:
    """Open the bytes as stored: nothing is decompressed, whatever the name says."""
    return cast(BinaryIO, FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED))


def read_bytes(path: str) -> bytes:
    """Return a small file's bytes."""
    with open_for_reading(path) as file:
        return file.read()


def stat(path: str) -> FileStat | None:
    """Return what is known of one file, whose name is taken literally; None if there is none."""
    if is_local(path):
        try:
            local = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileStat(path, local.st_size, local.st_mtime)
    try:
        metadata = FileSystems.get_filesystem(path).metadata(path)
    except BeamIOError:
        if FileSystems.exists(path):
            raise
        return None
    return FileStat(path, metadata.size_in_bytes, metadata.last_updated_in_seconds or 0.0)


def match(pattern: str) -> list[FileStat]:
    """Return the files that a pattern matches, in the order of their names."""
    (result,) = FileSystems.match([pattern])
    found = [FileStat(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0) for m in result.metadata_list]
    return sorted((file for file in found if not os.path.isdir(file.path)), key=lambda file: file.path)


def list_below(folder: str) -> list[FileStat]:
    """Return every file below a folder; empty if there is no such folder. The folder's name is taken literally."""
    if not is_local(folder):
        return match(f"{folder}/**")
    return [
        FileStat(path, (local := os.stat(path)).st_size, local.st_mtime)
        for parent, _, names in sorted(os.walk(folder))
        for path in (f"{parent}/{name}" for name in sorted(names))
        if os.path.exists(path)
    ]


def write_whole(path: str, temporary: str, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write a file so that it is there whole or not at all, replacing what was there.

    The bytes go to `temporary`, which gets the final name only when they are complete: a writer that dies, or an
    exception while an object store's writer is open, can leave half a file, but never under the final name.

    Returns:
        its size in bytes and its CRC-32C in base64.
    """
    crc, size = Crc32c(), 0
    _make_parent(temporary)
    with cast(
        BinaryIO, FileSystems.create(temporary, "application/octet-stream", CompressionTypes.UNCOMPRESSED)
    ) as file:
        for chunk in chunks:
            file.write(chunk)
            crc.update(chunk)
            size += len(chunk)
    _make_parent(path)
    FileSystems.rename([temporary], [path])
    return size, crc.base64()


def delete(paths: Iterable[str]) -> None:
    """Delete files; those that are not there are no error."""
    for path in paths:
        if is_local(path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        elif FileSystems.exists(path):
            FileSystems.delete([path])


def delete_empty_folder(path: str) -> None:
    """Delete a folder if nothing is in it; object stores have no folders."""
    if is_local(path):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _make_parent(path: str) -> None:
    if is_local(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
