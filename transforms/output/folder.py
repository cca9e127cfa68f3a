"""The output folder: the names of its files, and the only way to read, write, list and delete them."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from transforms.storage import api as storage
from transforms.storage import local
from transforms.storage.base import MAX_SMALL_FILE_BYTES, StorageError

DATA = "data"
DEAD_LETTERS = "dead_letters"
JOB = "_job"
_MAX_PART_BYTES = 255  # of one part of a path, on the usual file systems
_OWN_NAME = re.compile(
    rf"(?:{DATA}/.+-\d{{5,}}\.(?:ndjson|parquet)|{DEAD_LETTERS}/.+-\d{{5,}}\.ndjson"
    # Below _job: Tayyar's files, its folders (one that is a link is a file), and everything in them.
    rf"|{JOB}/[a-z_]+(?:\.(?:json|ndjson|html|prom)|/.+)?)",
    re.DOTALL,
)


def check_name(name: str, *, on_disk: bool = True) -> None:
    """Check that a name, joined to a folder, is that of a file below the folder, and that a disk can hold it.

    Args:
        name: relative, with forward slashes.
        on_disk: whether it is on its way to a local disk; objects in buckets may have backslashes.

    Raises:
        ValueError: with the reason, which completes the sentence "its name …".
    """
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if b"" in parts:
        raise ValueError("begins or ends with a slash, or has two in a row, or is empty")
    if b"." in parts or b".." in parts:
        raise ValueError("has a part '.' or '..', which would lead elsewhere")
    if "\0" in name:
        raise ValueError("has a NUL character")
    if on_disk and "\\" in name:
        raise ValueError("has a backslash, which separates folders on some disks")
    longest = max(parts, key=len)
    if len(longest) > _MAX_PART_BYTES:
        raise ValueError(f"has a part of {len(longest)} bytes, where disks hold {_MAX_PART_BYTES}")


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The files in an output folder, by their names relative to it, with forward slashes.

    Names may come from outside: from objects in a bucket, receipts, or other files in `_job`. So every name is checked
    before it is used: it stays below the folder, and on a local disk no part of it is a link. Tayyar makes no links.

    Attributes:
        root: the folder, a local path or gs://… or s3://…, without a final slash.
        run: names this run's temporary files, so that two runs at once stay out of each other's way.
    """

    root: str
    run: str

    @property
    def job(self) -> str:
        """The name of the file that describes the job: see `pipeline.job.spec`."""
        return f"{JOB}/job.json"

    @property
    def plan(self) -> str:
        """The name of the file that lists the sources, a line for each."""
        return f"{JOB}/plan.ndjson"

    @property
    def report(self) -> str:
        """The name of the report for programs."""
        return f"{JOB}/report.json"

    @property
    def receipts(self) -> str:
        """The name of the folder with the receipts of all shards."""
        return f"{JOB}/receipts"

    @property
    def temporary(self) -> str:
        """The name of the folder in which all runs write files before these are whole."""
        return f"{JOB}/tmp"

    def embedded(self, shard: str, output_format: str = "ndjson") -> str:
        """Return the name of the file with a shard's embedded documents.

        Args:
            shard: its name, as `Shard.name` gives it; here and below.
            output_format: `ndjson` or `parquet`.
        """
        return f"{DATA}/{shard}.{output_format}"

    def dead_letters(self, shard: str) -> str:
        """Return the name of the file with a shard's dead letters."""
        return f"{DEAD_LETTERS}/{shard}.ndjson"

    def receipt(self, shard: str) -> str:
        """Return the name of a shard's receipt."""
        return f"{self.receipts}/{shard}.json"

    def keys(self, shard: str) -> str:
        """Return the name of the file with the keys of a shard's texts: see `transforms.reuse.keys`."""
        return f"{JOB}/keys/{shard}.u64"

    def path(self, name: str) -> str:
        """Return the whole path of a file in this folder, to read it.

        Raises:
            StorageError: if the name leads out of the folder, or a part of it is a link.
        """
        return self._join(name, name)

    def _path_to_replace(self, name: str) -> str:
        """Return the whole path of a file to write or delete.

        Here the last part of the name may be a link: writing replaces the link, and deleting removes it, whereas what
        it leads to stays. The folders above it may be none.
        """
        return self._join(name, name.rpartition("/")[0])

    def _join(self, name: str, without_links: str) -> str:
        """Return the folder's path and a name, both checked.

        Args:
            name: of a file in this folder.
            without_links: the part of the name, from its beginning, that must hold no link.

        Raises:
            StorageError: if the name leads out of the folder or cannot be on a disk, or there is a link.
        """
        on_disk = storage.is_local(self.root)
        try:
            check_name(name, on_disk=on_disk)
        except ValueError as error:
            raise StorageError(f"{self.root} cannot hold {name!a}: its name {error}. Rename or remove it.") from error
        link = local.first_link(self.root, without_links) if on_disk and without_links else None
        if link is not None:
            raise StorageError(f"{link} is a link, and none is followed in an output folder. Remove it.")
        return f"{self.root}/{name}"

    def stat(self, name: str) -> storage.FileStat | None:
        """Return the description of a file; None if it is not there. A link is not followed."""
        return storage.stat(self._path_to_replace(name), follow_links=False)

    def read(self, name: str, max_bytes: int = MAX_SMALL_FILE_BYTES) -> bytes | None:
        """Return a small file's bytes; None if it is not there.

        Raises:
            StorageError: if it has more than `max_bytes`, is not a regular file, or cannot be in this folder.
        """
        return storage.read_bytes(self.path(name), max_bytes)

    def write(self, name: str, chunks: Iterable[bytes]) -> storage.WrittenFile:
        """Write one file, whole or not at all."""
        # Process and thread keep apart two workers that were given the same shard; names of any length must fit.
        path = self._path_to_replace(name)
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        temporary = f"{self.temporary}/{self.run}-{os.getpid()}-{threading.get_ident()}-{digest}"
        size, crc32c = storage.write_whole(path, self._path_to_replace(temporary), chunks)
        return storage.WrittenFile(name, size, crc32c)

    def move(self, name: str, target: str) -> None:
        """Give a file of this folder another name; a missing file is not an error."""
        storage.move(self.path(name), self._path_to_replace(target))

    def tidy(self) -> None:
        """Delete the folder of temporary files if nothing is in it."""
        storage.delete_empty_folder(self.path(self.temporary))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files. Those whose names have not the form of Tayyar's own are somebody else's, and stay.

        Missing files are no error. Of a link, the link is deleted, and what it leads to stays.
        """
        storage.delete([self._path_to_replace(name) for name in names if _OWN_NAME.fullmatch(name)])

    def list(self, folder: str = "") -> dict[str, storage.FileStat]:
        """Return the descriptions of all files below a folder of the output, by their names.

        Args:
            folder: its name; empty for the whole output. No link below it is followed; each is listed as a link.
        """
        top = self._path_to_replace(folder) if folder else self.root
        # The root may be a link, as it was given; a folder below it may not.
        found = self.stat(folder) if folder and storage.is_local(self.root) else None
        if found is not None and found.is_link:
            return {folder: found}
        return {file.path[len(self.root) + 1 :]: file for file in storage.list_below(top, follow_links=False)}
