"""The output folder: where each file of a job is."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from transforms.storage import api as storage

DATA = "data"
DEAD_LETTERS = "dead_letters"
JOB = "_job"


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The names of the files in an output folder. Names are relative to it, with forward slashes.

    Attributes:
        root: the folder, a local path or gs://… or s3://…, without a final slash.
        run: names this run's temporary files, so that two runs at once stay out of each other's way.
    """

    root: str
    run: str

    @property
    def job(self) -> str:
        """What the vectors are."""
        return f"{JOB}/job.json"

    @property
    def plan(self) -> str:
        """One line a source."""
        return f"{JOB}/plan.ndjson"

    @property
    def report(self) -> str:
        """What the run came to."""
        return f"{JOB}/report.json"

    @property
    def receipts(self) -> str:
        """The folder of the receipts."""
        return f"{JOB}/receipts"

    @property
    def temporary(self) -> str:
        """The folder of the files that are not yet whole, of all runs."""
        return f"{JOB}/tmp"

    def embedded(self, shard: str) -> str:
        """The embedded documents of the shard with this name."""
        return f"{DATA}/{shard}.ndjson"

    def dead_letters(self, shard: str) -> str:
        """The dead letters of the shard with this name."""
        return f"{DEAD_LETTERS}/{shard}.ndjson"

    def receipt(self, shard: str) -> str:
        """The receipt of the shard with this name."""
        return f"{self.receipts}/{shard}.json"

    def path(self, name: str) -> str:
        """The whole path of a file in this folder."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None if it is not there."""
        return storage.read_bytes(self.path(name))

    def write(self, name: str, chunks: Iterable[bytes]) -> storage.WrittenFile:
        """Write one file, whole or not at all."""
        # Process and thread keep apart two workers that were given the same shard; names of any length must fit.
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        temporary = self.path(f"{self.temporary}/{self.run}-{os.getpid()}-{threading.get_ident()}-{digest}")
        size, crc32c = storage.write_whole(self.path(name), temporary, chunks)
        return storage.WrittenFile(name, size, crc32c)

    def tidy(self) -> None:
        """Delete the folder of temporary files if nothing is in it."""
        storage.delete_empty_folder(self.path(self.temporary))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""
        storage.delete(self.path(name) for name in names)

    def list(self, folder: str = "") -> dict[str, storage.FileStat]:
        """Every file below a folder of the output, by name."""
        top = self.path(folder) if folder else self.root
        return {file.path[len(self.root) + 1 :]: file for file in storage.list_below(top)}
