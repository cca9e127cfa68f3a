"""Files on this machine and objects in buckets alike: gs:// and s3:// through one client a process."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import BinaryIO, Protocol, cast

import google_crc32c
from apache_beam.io.filesystem import FileSystem

from transforms.storage.base import BUFFER_BYTES
from transforms.storage.base import FileStat as FileStat  # a part of this module's interface
from transforms.storage.base import StorageError as StorageError

_STORES = {"gs": "transforms.storage.gcs", "s3": "transforms.storage.s3"}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_WILDCARD = re.compile(r"[*?\[]")
_CREATION_ATTEMPTS = 20
_SPOOL_BYTES = 8 << 20  # of a file on its way to a bucket; what is larger waits on disk


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


class Store(Protocol):
    """What a module for one kind of bucket has."""

    def stat(self, path: str) -> FileStat | None:
        """Return what is known of one object; None if there is none."""

    def list_below(self, prefix: str) -> Iterable[FileStat]:
        """Yield the objects whose paths begin so, in the order of their names."""

    def read(self, path: str) -> bytes | None:
        """Return an object's bytes as stored; None if there is none."""

    def open_for_reading(self, path: str, buffer_bytes: int) -> BinaryIO:
        """Open an object for reading, seekable; so many bytes are fetched at a time."""

    def put(self, path: str, file: BinaryIO, size: int, crc32c: str) -> None:
        """Upload a whole file in one piece: it is there whole or not at all."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error."""


def is_local(path: str) -> bool:
    """Whether the path is on this machine's own file system."""
    return _SCHEME.match(path) is None


def _store_of(path: str) -> Store:
    scheme = path.partition("://")[0]
    if scheme not in _STORES:
        raise StorageError(f"{path}: {scheme}:// is not known here. Give a local path, gs://… or s3://….")
    # Imported when it is needed: Google's library takes half a second, and boto3 is an extra.
    return cast(Store, import_module(_STORES[scheme]))


def open_for_reading(path: str, buffer_bytes: int = BUFFER_BYTES) -> BinaryIO:
    """Open the bytes as stored: nothing is decompressed, whatever the name says.

    Args:
        path: of the file.
        buffer_bytes: of an object that are fetched at a time; few for who reads little here and there.
    """
    return open(path, "rb") if is_local(path) else _store_of(path).open_for_reading(path, buffer_bytes)


def read_bytes(path: str) -> bytes | None:
    """Return a small file's bytes; None if there is none."""
    if not is_local(path):
        return _store_of(path).read(path)
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def stat(path: str) -> FileStat | None:
    """Return what is known of one file, whose name is taken literally; None if there is none."""
    if not is_local(path):
        return _store_of(path).stat(path)
    try:
        local = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileStat(path, local.st_size, local.st_mtime)


def match(*patterns: str) -> list[FileStat]:
    """Return the files that any variant of a pattern matches, each once, in the order of their names.

    The variants of a pattern in a bucket are all looked for in one listing.
    """
    found: dict[str, FileStat] = {}
    for pattern in filter(is_local, patterns):
        prefix = fixed_prefix(pattern)
        # What lies deeper than the pattern reaches is not looked at: it may be large, or not to be read.
        depth = None if "**" in pattern else pattern.count("/") - prefix.count("/")
        found |= _matching(_walk(prefix.rstrip("/") or prefix or os.curdir, depth), [pattern])
    remote = [pattern for pattern in patterns if not is_local(pattern)]
    if remote:
        prefix = min((_WILDCARD.split(pattern)[0] for pattern in remote), key=len)
        found |= _matching(_store_of(prefix).list_below(prefix), remote)
    return [found[path] for path in sorted(found)]


def _matching(files: Iterable[FileStat], patterns: Iterable[str]) -> dict[str, FileStat]:
    # Beam's `*` stops at a backslash, which is a character like any other in names of files and objects.
    wanted = [re.compile(FileSystem.translate_pattern(pattern).replace(r"[^/\\]", "[^/]")) for pattern in patterns]
    return {file.path: file for file in files if any(pattern.match(file.path) for pattern in wanted)}


def fixed_prefix(pattern: str) -> str:
    """Return the folder above a pattern's first wildcard, with its final slash."""
    fixed = _WILDCARD.split(pattern)[0]
    return fixed[: fixed.rfind("/") + 1]


def list_below(folder: str) -> list[FileStat]:
    """Return every file below a folder; empty if there is no such folder. The folder's name is taken literally."""
    if not is_local(folder):
        return list(_store_of(folder).list_below(f"{folder}/"))
    return list(_walk(folder))


def _walk(folder: str, depth: int | None = None) -> Iterator[FileStat]:
    """Yield the local files below a folder, through links too, at most so many folders deep.

    Raises:
        StorageError: naming a folder that cannot be listed, or a link that leads nowhere: what is there and cannot be
            seen must not be taken for nothing.
    """

    def fail(error: OSError) -> None:
        if not (error.filename == folder and isinstance(error, (FileNotFoundError, NotADirectoryError))):
            raise StorageError(f"{error.filename} cannot be listed: {error.strerror}. Mend it, or leave it out.")

    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if depth is not None and parent != folder and os.path.relpath(parent, folder).count("/") + 1 >= depth:
            folders.clear()
        if depth == 0:
            folders.clear()
        for link in (os.path.join(parent, name) for name in folders):
            if os.path.islink(link) and f"{os.path.realpath(parent)}/".startswith(f"{os.path.realpath(link)}/"):
                raise StorageError(f"{link} is a link to a folder that it lies in. Remove it, or leave it out.")
        for name in names:
            path = os.path.join(parent, name).removeprefix("./")
            try:
                found = stat(path)
            except OSError as error:
                raise StorageError(f"{path} cannot be read: {error.strerror}. Mend it, or remove it.") from error
            if found is not None:
                yield found
            elif os.path.islink(path):
                raise StorageError(f"{path} is a link that leads nowhere. Mend it, or remove it.")


def write_whole(path: str, temporary: str, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write a file so that it is there whole or not at all, replacing what was there.

    A local file is written as `temporary` and gets its name when it is complete. An object is gathered here and
    uploaded in one piece: a store shows an upload only when it has all of it.

    Returns:
        its size in bytes and its CRC-32C in base64.

    Raises:
        StorageError: the disk is full, or whatever else keeps it from being written.
    """
    if is_local(path):
        try:
            with _create(temporary) as file:
                written = _write(file, chunks)
            _make_parent(path)
            os.replace(temporary, path)
        except BaseException as error:  # an interruption too: half a file is of no use to anybody
            delete([temporary])
            if isinstance(error, OSError):
                raise StorageError(
                    f"{path} cannot be written: {error.strerror or error}. Make room, or mend its permissions."
                ) from error
            raise
        return written
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        size, crc32c = _write(cast(BinaryIO, spool), chunks)
        spool.seek(0)
        _store_of(path).put(path, cast(BinaryIO, spool), size, crc32c)
    return size, crc32c


def _create(path: str) -> BinaryIO:
    """Open a new local file; another process may delete the folder, while it is empty, before the file is in it."""
    for _ in range(_CREATION_ATTEMPTS - 1):
        # A folder that goes just as it is made may be told as one that is there.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            _make_parent(path)
            return open(path, "wb")
    _make_parent(path)
    return open(path, "wb")


def _write(file: BinaryIO, chunks: Iterable[bytes]) -> tuple[int, str]:
    crc, size = Crc32c(), 0
    for chunk in chunks:
        file.write(chunk)
        crc.update(chunk)
        size += len(chunk)
    return size, crc.base64()


def delete(paths: Iterable[str]) -> None:
    """Delete files, all of them local or all in buckets of one kind; those that are not there are no error."""
    paths = list(paths)
    if paths and not is_local(paths[0]):
        _store_of(paths[0]).delete(paths)
        return
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def delete_empty_folder(path: str) -> None:
    """Delete a folder if nothing is in it; object stores have no folders."""
    if is_local(path):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
