"""Partial shards: the vectors of shards that are not finished, saved in the output folder from time to time.

A file is one line of JSON, the SHA-256 of each text as sent (32 bytes: the texts themselves are not kept, so a key of 8
bytes would not prove that two are equal), and the vectors, float32, little-endian.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import orjson

from transforms.doubt import read_doubts
from transforms.elements import Vectors, text_as_sent
from transforms.output.folder import JOB, OutputFolder
from transforms.output.json_fields import build_dataclass
from transforms.reuse.keys import KEY_BYTES
from transforms.storage import api as storage
from transforms.storage.api import Crc32c
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/partial"
LOOK_SECONDS = 5.0
SAVE_SECONDS = 20.0  # and the look after it: what has been computed is saved within 30 s
DIGEST_BYTES = 32  # of a SHA-256
MAX_BYTES = 1 << 34  # of a file: more than twice what 400,000 records of 4,096 dimensions take
_MAX_HEADER_BYTES = 4096  # a shard's name has 800 bytes at most
_logger = logging.getLogger(__name__)


class Pending(Protocol):
    """A shard whose texts are with the client."""

    def so_far(self) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Return the vectors, float32[len(texts), dimensions], and which of these rows are there, bool[len(texts)]."""


@dataclass(frozen=True, slots=True)
class PartialHeader:
    """The first line of a file of partial vectors.

    Attributes:
        shard: the name of the shard.
        space: digest of the vector space that the folder recorded.
        overlong: `truncate` or `dead_letter`.
        documents: vectors in the file.
        dimensions: numbers of each.
        crc32c: of everything behind the first line.
    """

    shard: str
    space: str
    overlong: str
    documents: int
    dimensions: int
    crc32c: str


@dataclass(slots=True)
class _WatchedShard:
    texts: Sequence[str]
    pending: Pending
    since: float
    saved: int = 0
    saving: threading.Lock = field(default_factory=threading.Lock)
    is_watched: bool = True


class PartialWriter:
    """Saves the vectors of unfinished shards, in a thread of its own.

    Args:
        output: the folder.
        space: digest of the folder's vector space.
        overlong: the policy under which the vectors are made.
        look_seconds: between two looks at the shards.
        save_seconds: between two savings of a shard; shards that finish sooner are never written.
        clock: seconds.
    """

    def __init__(
        self,
        output: OutputFolder,
        space: str,
        overlong: str,
        *,
        look_seconds: float = LOOK_SECONDS,
        save_seconds: float = SAVE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._space = space
        self._overlong = overlong
        self._look_seconds = look_seconds
        self._save_seconds = save_seconds
        self._clock = clock
        self._watched: dict[str, _WatchedShard] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="partial shards", daemon=True)
        self._thread.start()

    def add(self, shard: str, texts: Sequence[str], pending: Pending) -> None:
        """Watch a shard whose texts have been submitted."""
        with self._lock:
            self._watched[shard] = _WatchedShard(texts, pending, self._clock())

    def remove(self, shard: str) -> str | None:
        """Watch a shard no longer, and return the name of its file; None if none was written."""
        with self._lock:
            one = self._watched.pop(shard, None)
        if one is None:
            return None
        with one.saving:  # wait for a file that is being written, so that it is deleted with the others
            one.is_watched = False
        return self._name(shard) if one.saved else None

    def clear(self) -> None:
        """Watch nothing, and save nothing of what was watched: another worker may finish these shards."""
        with self._lock:
            for one in self._watched.values():
                one.is_watched = False
            self._watched.clear()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def look(self) -> None:
        """Save the vectors of each shard that has new ones and was not saved for long enough."""
        with self._lock:
            watched = list(self._watched.items())
        for shard, one in watched:
            if self._clock() - one.since < self._save_seconds:
                continue
            try:
                self._save(shard, one)
            except (StorageError, OSError, MemoryError) as error:
                # Only some work is lost, and only if the run ends here.
                _logger.warning("the vectors of %s so far cannot be saved: %s", shard, str(error) or "out of memory")
                one.since = self._clock()

    def _watch(self) -> None:
        while not self._closed.wait(self._look_seconds):
            self.look()

    def _save(self, shard: str, one: _WatchedShard) -> None:
        """Save the vectors of a shard if it has new ones."""
        vectors, there = one.pending.so_far()
        rows = np.flatnonzero(there)
        if len(rows) <= one.saved:
            return
        with one.saving:
            if one.is_watched:
                texts = [one.texts[row] for row in rows.tolist()]
                content = encode_partial(shard, self._space, self._overlong, texts, vectors[rows])
                self._output.write(self._name(shard), content)
                one.saved = len(rows)
                one.since = self._clock()

    def _name(self, shard: str) -> str:
        return f"{FOLDER}/{hashlib.sha256(shard.encode()).hexdigest()[:16]}-{self._output.run}"


def run_of(name: str) -> str | None:
    """Return the name of the run that has written a file of partial vectors; None for any other file."""
    return name.partition("-")[2] if name.startswith(f"{FOLDER}/") else None


def encode_partial(shard: str, space: str, overlong: str, texts: Sequence[str], vectors: Vectors) -> list[bytes]:
    """Return the content of a file of partial vectors, in pieces."""
    digests = b"".join(hashlib.sha256(text_as_sent(text)).digest() for text in texts)
    numbers = vectors.astype("<f4", copy=False).tobytes()
    crc = Crc32c()
    crc.update(digests)
    crc.update(numbers)
    header = PartialHeader(shard, space, overlong, len(texts), vectors.shape[1], crc.base64())
    return [orjson.dumps(asdict(header), option=orjson.OPT_APPEND_NEWLINE), digests, numbers]


def decode_partial(content: bytes) -> tuple[PartialHeader, list[bytes], Vectors]:
    """Return the header, the digests of the texts, and float32[documents, dimensions].

    Raises:
        ValueError: if the bytes are anything else, or damaged.
    """
    line, newline, payload = content.partition(b"\n")
    header = decode_header(line + newline)
    size = header.documents * (DIGEST_BYTES + 4 * header.dimensions)
    crc = Crc32c()
    crc.update(payload)
    if len(payload) != size or crc.base64() != header.crc32c:
        raise ValueError("the vectors are damaged")
    end = header.documents * DIGEST_BYTES
    digests = [payload[start : start + DIGEST_BYTES] for start in range(0, end, DIGEST_BYTES)]
    vectors = np.frombuffer(payload, "<f4", offset=end).reshape(header.documents, header.dimensions)
    return header, digests, vectors


def decode_header(line: bytes) -> PartialHeader:
    """Return the header in a file's first line.

    Raises:
        ValueError: if the line is none.
    """
    if len(line) > _MAX_HEADER_BYTES or not line.endswith(b"\n"):
        raise ValueError("there is no header")
    try:
        header = build_dataclass(PartialHeader, orjson.loads(line))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the header cannot be read: {error}") from error
    if header.documents < 0 or header.dimensions < 1 or math.prod((header.documents, header.dimensions)) > MAX_BYTES:
        raise ValueError("the header's numbers are out of bounds")
    return header


def count_partial(output: OutputFolder, files: Collection[str], done: Collection[str], space: str) -> int:
    """Return how many vectors of unfinished shards are saved, and not in doubt.

    Args:
        output: the folder.
        files: the names in it.
        done: names of the shards that have their receipt.
        space: digest of the vectors that count.
    """
    total, doubts = 0, read_doubts(output, files)
    for name in files:
        if name.startswith(f"{FOLDER}/") and run_of(name) not in doubts:
            try:
                header = decode_header(
                    storage.read_beginning(output.path(name), _MAX_HEADER_BYTES).partition(b"\n")[0] + b"\n"
                )
            except (ValueError, StorageError, OSError):  # it may be gone by now
                continue
            total += header.documents if header.space == space and header.shard not in done else 0
    return total


def keys_of(digests: Sequence[bytes]) -> bytes:
    """Return the keys that begin these digests, as a key file has them."""
    return b"".join(digest[:KEY_BYTES] for digest in digests)
