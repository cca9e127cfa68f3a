"""The index of former vectors: which text is in which row of which file. Written by the launcher, mapped by workers.

One file, so that it works in every storage: the length of its description (8 bytes), the description in JSON, and three
arrays, sorted by key: uint64 keys, uint32 numbers of files in the description, uint32 rows. 16 bytes a document.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import orjson

from transforms.ndjson.lines import chunks_from
from transforms.ndjson.parse import TextField
from transforms.output.folder import JOB, OutputFolder
from transforms.output.json_fields import build_dataclass, require_string
from transforms.reuse.keys import KEY_BYTES
from transforms.storage import api as storage
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/reuse"
Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]
_ALIGNMENT = 8  # bytes: of the keys, which are mapped
_logger = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class FormerFile:
    """A file that holds vectors.

    Attributes:
        path: where it is.
        bytes: its size.
        crc32c: its checksum, big-endian in base64.
        text_field: the field that was embedded; None for the vectors of an unfinished shard, which have no records.
        embedding_field: the field that holds the vector.
    """

    path: str
    bytes: int
    crc32c: str
    text_field: TextField | None
    embedding_field: str


class ReuseIndex:
    """The index in memory, most of it mapped from a file on disk.

    Attributes:
        files: those that hold the vectors.
        keys: uint64[n], sorted.
        file_numbers: uint32[n], the index in `files` of the file that has the key's text.
        rows: uint32[n], which document of that file it is, from 0.
    """

    def __init__(self, files: Sequence[FormerFile], keys: Keys, file_numbers: Numbers, rows: Numbers) -> None:
        self.files = files
        self.keys = keys
        self.file_numbers = file_numbers
        self.rows = rows

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class IndexHandle:
    """Where an index is. Picklable; each process opens it once."""

    output: OutputFolder
    name: str

    def open(self) -> ReuseIndex | None:
        """Return the index; None if it no longer exists, or is damaged: then nothing is reused."""
        with _lock:  # lru_cache lets several threads open one each
            return _opened(self.output.path(self.name))


def make_index(entries: Iterable[tuple[FormerFile, bytes]]) -> ReuseIndex | None:
    """Return an index in memory; None if there is nothing in it.

    Args:
        entries: files, and for each the keys of its documents in their order.
    """
    files: list[FormerFile] = []
    keys, file_numbers, rows = [], [], []
    for file, content in entries:
        found = np.frombuffer(content, dtype="<u8")
        keys.append(found)
        file_numbers.append(np.full(len(found), len(files), dtype="<u4"))
        rows.append(np.arange(len(found), dtype="<u4"))
        files.append(file)
    if not sum(map(len, keys)):
        return None
    every_key = np.concatenate(keys)
    order = np.argsort(every_key, kind="stable")
    return ReuseIndex(files, every_key[order], np.concatenate(file_numbers)[order], np.concatenate(rows)[order])


def write_index(output: OutputFolder, index: ReuseIndex, name: str) -> IndexHandle:
    """Write an index for the workers, and return where it is.

    Args:
        output: the folder.
        index: what they look up.
        name: of the index, no other run's.
    """
    description = orjson.dumps({"files": [asdict(file) for file in index.files], "documents": len(index)})
    description += b" " * (-len(description) % _ALIGNMENT)
    handle = IndexHandle(output, f"{FOLDER}/{name}.index")
    arrays = (array.tobytes() for array in (index.keys, index.file_numbers, index.rows))
    output.write(handle.name, [len(description).to_bytes(_ALIGNMENT, "little"), description, *arrays])
    return handle


# A failure is kept, too: a process warns of an index once, and does not try it again. Two are kept, because a process
# may live longer than a run.
@functools.lru_cache(maxsize=2)
def _opened(path: str) -> ReuseIndex | None:
    try:
        with _on_disk(path) as local:
            return _map(local)
    except (StorageError, OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("%s cannot be read (%s): former vectors are not used, and all texts are sent", path, error)
        return None


@contextlib.contextmanager
def _on_disk(path: str) -> Iterator[str]:
    """Give the path of a local file; of an object, of a copy that is deleted as soon as it is mapped."""
    if storage.is_local(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="tayyar-", delete=False) as copy:
        try:
            with storage.open_for_reading(path) as file:
                for chunk in chunks_from(file):
                    copy.write(chunk)
            copy.flush()
            yield copy.name
        finally:
            os.unlink(copy.name)


def _map(path: str) -> ReuseIndex:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(_ALIGNMENT), "little")
        if not 0 < length <= os.fstat(file.fileno()).st_size:
            raise ValueError("the description's length is wrong")
        description = orjson.loads(file.read(length))
    files = tuple(_file(fields) for fields in description["files"])
    count, start = int(description["documents"]), _ALIGNMENT + length
    if os.path.getsize(path) != start + (KEY_BYTES + 4 + 4) * count:
        raise ValueError("the file's size is wrong")
    keys = np.memmap(path, "<u8", "r", start, (count,))
    file_numbers = np.memmap(path, "<u4", "r", start + KEY_BYTES * count, (count,))
    rows = np.memmap(path, "<u4", "r", start + (KEY_BYTES + 4) * count, (count,))
    if int(file_numbers.max(initial=0)) >= len(files):
        raise ValueError("a file is missing in the description")
    return ReuseIndex(files, keys, file_numbers, rows)


def _file(fields: dict[str, object]) -> FormerFile:
    if isinstance(fields["text_field"], list):
        fields["text_field"] = tuple(require_string(name) for name in fields["text_field"])
    return build_dataclass(FormerFile, fields)
