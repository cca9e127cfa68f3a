"""Former vectors for the texts of a shard. Plain functions; every doubt ends in a text being sent again.

A text's *number* is its index among the texts that are looked for; a *row* is a document's index in a former file.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from transforms.elements import Vectors, text_as_sent
from transforms.output.formats import format_of
from transforms.output.layout import FLOAT32
from transforms.output.values import fits_type
from transforms.reuse.index import FormerFile, ReuseIndex
from transforms.reuse.keys import encode_keys
from transforms.reuse.partial import MAX_BYTES, decode_partial
from transforms.storage import api as storage
from transforms.storage.api import Digest
from transforms.storage.base import StorageError

FILES_ALWAYS_OPENED = 16  # of those that have the most texts of a shard
MAX_SKIPPED_SHARE = 0.01  # of a shard's texts that are sent, because the files that have them are not worth opening
_MAX_CANDIDATES = 64  # rows that are tried for one text
_logger = logging.getLogger(__name__)


class Distinct(NamedTuple):
    """A shard's texts, each once.

    Attributes:
        texts: in the order in which they first occur.
        numbers: for each document the index of its text in `texts`; None if all texts differ.
    """

    texts: Sequence[str]
    numbers: Sequence[int] | None


def distinct(texts: Sequence[str]) -> Distinct:
    """Return each text once."""
    first: dict[str, int] = {}
    numbers = [first.setdefault(text, len(first)) for text in texts]
    return Distinct(texts, None) if len(first) == len(texts) else Distinct(list(first), numbers)


class Found(NamedTuple):
    """Former vectors.

    Attributes:
        vectors: float32[n, dimensions]; rows of zeros where there is none.
        mask: bool[n]: which texts have one.
        used_up: paths of the files of partial vectors that have no others than these.
    """

    vectors: Vectors
    mask: npt.NDArray[np.bool_]
    used_up: Sequence[str] = ()


def count_known(texts: Sequence[str], index: ReuseIndex) -> int:
    """Return how many texts have a key in the index; nearly all of them have a vector then."""
    keys = np.frombuffer(encode_keys(texts), dtype="<u8")
    nearest = np.minimum(np.searchsorted(index.keys, keys), len(index.keys) - 1)
    return int((index.keys[nearest] == keys).sum())


def find_vectors(texts: Sequence[str], index: ReuseIndex, dimensions: int, vector_type: str = FLOAT32) -> Found:
    """Look for former vectors of texts that differ from each other.

    Args:
        texts: of a shard.
        index: of the former vectors.
        dimensions: of a vector.
        vector_type: in which the vectors will be written; those that do not fit it are not used.
    """
    found = Found(np.zeros((len(texts), dimensions), dtype=np.float32), np.zeros(len(texts), dtype=bool))
    candidates = _candidates(texts, index)
    skipped, used_up = 0, list[str]()
    # Files with the most texts come first. A text that a damaged file does not give may be in another one.
    for rank, file_number in enumerate(sorted(candidates, key=lambda each: -len(candidates[each]))):
        wanted = {row: number for number, row in candidates[file_number] if not found.mask[number]}
        if not wanted:
            continue
        if rank >= FILES_ALWAYS_OPENED and skipped + len(wanted) <= MAX_SKIPPED_SHARE * len(texts):
            skipped += len(wanted)
            continue
        file = index.files[file_number]
        try:
            if file.text_field is None:
                vectors, count = _read_partial(file, wanted, texts)
                used_up += [file.path] if vectors and len(vectors) == count else []
            else:
                vectors = _read_output(file, wanted, texts)
            for number, vector in vectors.items():
                if vector.shape == (dimensions,) and np.isfinite(vector).all() and vector.any():
                    found.vectors[number] = vector
                    found.mask[number] = True
        except (StorageError, OSError, ValueError) as error:
            _logger.warning("%s gives no vectors (%s): its texts are sent again", file.path, error)
    if vector_type != FLOAT32:
        found.mask[:] = fits_type(found.vectors, vector_type)
    return found._replace(used_up=used_up)


def _candidates(texts: Sequence[str], index: ReuseIndex) -> Mapping[int, list[tuple[int, int]]]:
    """Return, by a file's number in the index, pairs of a text that it may have and its row there."""
    keys = np.frombuffer(encode_keys(texts), dtype="<u8")
    begins, ends = np.searchsorted(index.keys, keys, "left"), np.searchsorted(index.keys, keys, "right")
    candidates: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number in np.flatnonzero(ends > begins):
        begin, end = int(begins[number]), int(ends[number])
        for entry in range(begin, min(end, begin + _MAX_CANDIDATES)):
            candidates[int(index.file_numbers[entry])].append((int(number), int(index.rows[entry])))
    return candidates


def _read_output(file: FormerFile, wanted: Mapping[int, int], texts: Sequence[str]) -> dict[int, Vectors]:
    """Return the vectors of an output's rows whose texts are the wanted ones, by the texts' numbers.

    Args:
        file: the output.
        wanted: the text that a row should have, by the row.
        texts: all that are looked for.

    Raises:
        ValueError: if the file is not the one that its receipt vouches for.
    """
    assert file.text_field is not None
    form, vectors = format_of(file.path), dict[int, Vectors]()
    digest = Digest(file.bytes, file.crc32c)

    # Raised when the file has been read: a byte that was changed may be in a vector that still looks like one.
    def refuse(problem: str) -> NoReturn:
        raise ValueError(problem)

    for row, content in enumerate(form.read_rows(file.path, file.embedding_field, refuse, digest)):
        number = wanted.get(row)
        if number is None:
            continue
        try:
            text, vector = form.text_and_vector(content, file.text_field, file.embedding_field)
            if text_as_sent(text) == text_as_sent(texts[number]):
                vectors[number] = np.array(vector, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            continue  # the checksum decides whether the file is damaged
    return vectors


def _read_partial(file: FormerFile, wanted: Mapping[int, int], texts: Sequence[str]) -> tuple[dict[int, Vectors], int]:
    """Return the wanted vectors of an unfinished shard, as `_read_output` does, and how many vectors its file has.

    A file that no longer exists has none: another worker has used all of it, and removed it.

    Raises:
        ValueError: if the file is damaged.
    """
    content = storage.read_bytes(file.path, MAX_BYTES)
    if content is None:
        return {}, 0
    _, digests, vectors = decode_partial(content)
    found = {
        number: vectors[row]
        for row, number in wanted.items()
        if row < len(digests) and hashlib.sha256(text_as_sent(texts[number])).digest() == digests[row]
    }
    return found, len(digests)
