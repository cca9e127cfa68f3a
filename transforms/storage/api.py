"""Local files and objects in gs:// and s3:// buckets alike: each call goes to the store of its path."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from transforms.storage import local
from transforms.storage.base import BUFFER_BYTES, MAX_SMALL_FILE_BYTES
from transforms.storage.base import FileStat as FileStat  # these five are a part of this module's interface
from transforms.storage.base import StorageError as StorageError
from transforms.storage.chunks import Crc32c as Crc32c
from transforms.storage.chunks import Digest as Digest
from transforms.storage.chunks import digest_of as digest_of

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
# `**/` begins a name; elsewhere, `**` is any characters.
_WILDCARD = re.compile(r"((?<![^/])\*\*/|\*\*|\*|\?)")
_MEANING = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


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

    @classmethod
    def of(cls, path: str, chunks: Iterable[builtins.bytes]) -> WrittenFile:
        """Return the description of a file that holds these chunks, wherever they are."""
        return cls(path, *digest_of(chunks))

    @property
    def digest(self) -> Digest:
        """Its size and checksum."""
        return Digest(self.bytes, self.crc32c)


class Store(Protocol):
    """The functions of a module for one kind of storage. A path is given and returned whole."""

    def stat(self, path: str, *, follow_links: bool = True) -> FileStat | None:
        """Return the description of one file; None if there is none."""

    def list_below(self, prefix: str, depth: int | None = None, *, follow_links: bool = True) -> Iterable[FileStat]:
        """Yield the files whose paths begin so; a store may yield more, and ignore what it has not (depth, links)."""

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """Return a small file's bytes as stored; None if there is none."""

    def read_beginning(self, path: str, count: int) -> bytes:
        """Return a file's first bytes, at most so many, by one request; of a file that has at least one."""

    def open_for_reading(self, path: str, buffer_bytes: int) -> BinaryIO:
        """Open a file for reading, seekable; of an object, so many bytes are fetched at a time."""

    def write_whole(self, path: str, temporary: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Write a file whole or not at all; return its size in bytes and its CRC-32C in base64."""

    def move(self, path: str, target: str) -> None:
        """Give a file another name in the same storage; a missing one is not an error."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; missing ones are no error."""

    def delete_empty_folder(self, path: str) -> None:
        """Delete a folder if nothing is in it."""


def is_local(path: str) -> bool:
    """Return whether the path is on this machine's own file system."""
    return _SCHEME.match(path) is None


def _store_of(path: str) -> Store:
    if is_local(path):
        return local
    scheme = path.partition("://")[0]
    # Imported when needed, not above: Google's library takes half a second, and boto3 is an extra.
    if scheme == "gs":
        from transforms.storage import gcs

        return gcs
    if scheme == "s3":
        from transforms.storage import s3

        return s3
    raise StorageError(f"{path}: {scheme}:// is not supported. Give a local path, gs://… or s3://….")


def open_for_reading(path: str, buffer_bytes: int = BUFFER_BYTES) -> BinaryIO:
    """Open the bytes as stored: nothing is decompressed, whatever the name ends in.

    Args:
        path: of the file.
        buffer_bytes: of an object that are fetched at a time; few for a reader of little here and there.
    """
    return _store_of(path).open_for_reading(path, buffer_bytes)


def read_bytes(path: str, max_bytes: int = MAX_SMALL_FILE_BYTES) -> bytes | None:
    """Return a small file's bytes; None if there is none.

    Raises:
        StorageError: if it has more than `max_bytes`, or is not a regular file.
    """
    return _store_of(path).read(path, max_bytes)


def read_beginning(path: str, count: int) -> bytes:
    """Return the first bytes of a file that is not empty, at most so many.

    Raises:
        FileNotFoundError: if there is none.
    """
    return _store_of(path).read_beginning(path, count)


def stat(path: str, *, follow_links: bool = True) -> FileStat | None:
    """Return the description of one file, whose name is taken literally; None if there is none."""
    return _store_of(path).stat(path, follow_links=follow_links)


def translate_pattern(pattern: str) -> str:
    """Return the regular expression of a pattern, for `re.DOTALL`.

    `*` stands for any characters within one name, `?` for one of them, `**` for any characters across folders, and
    `**/` for any number of folders, or none. Any other character stands for itself, `[` and the backslash as well: they
    occur in names of files and objects.
    """
    return "".join(_MEANING.get(piece, re.escape(piece)) for piece in _WILDCARD.split(pattern))


def match(pattern: str) -> list[FileStat]:
    """Return the files that a pattern matches, in the order of their names; see `translate_pattern`."""
    wanted = re.compile(translate_pattern(pattern), re.DOTALL)
    prefix = _WILDCARD.split(pattern)[0]
    depth = None if "**" in pattern else pattern.count("/") - prefix.count("/")
    files = _store_of(prefix).list_below(prefix, depth)
    return sorted((file for file in files if wanted.fullmatch(file.path)), key=lambda file: file.path)


def fixed_prefix(pattern: str) -> str:
    """Return the folder above a pattern's first wildcard, with its final slash."""
    fixed = _WILDCARD.split(pattern)[0]
    return fixed[: fixed.rfind("/") + 1]


def list_below(folder: str, *, follow_links: bool = True) -> list[FileStat]:
    """Return every file below a folder; empty if there is no such folder. The folder's name is taken literally.

    With `follow_links` off, no linked folder below it is entered, and each link is listed as such.
    """
    return list(_store_of(folder).list_below(f"{folder}/", follow_links=follow_links))


def write_whole(path: str, temporary: str, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write a file so that it is there whole or not at all, replacing what was there.

    A local file is written as `temporary` and gets its name when it is complete. An object is gathered here and
    uploaded then: a store shows an upload only when it has all of it.

    Returns:
        its size in bytes and its CRC-32C in base64.

    Raises:
        StorageError: the disk is full, or anything else keeps it from being written.
    """
    return _store_of(path).write_whole(path, temporary, chunks)


def move(path: str, target: str) -> None:
    """Give a file another name in the same storage; a missing one is not an error.

    An object is copied within its store, and then deleted: interrupted between the two, it has both names.
    """
    _store_of(path).move(path, target)


def delete(paths: Iterable[str]) -> None:
    """Delete files, all of them local or all in buckets of one kind; missing ones are no error.

    A link is removed itself; what it leads to is left alone.
    """
    paths = list(paths)
    if paths:
        _store_of(paths[0]).delete(paths)


def delete_empty_folder(path: str) -> None:
    """Delete a folder if nothing is in it; object stores have no folders."""
    _store_of(path).delete_empty_folder(path)


def ignores_case(folder: str) -> bool:
    """Return whether names that differ only in case would be the same file in a folder, which need not exist yet."""
    return is_local(folder) and local.ignores_case(folder)
