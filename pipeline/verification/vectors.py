"""The checks that vectors must pass: each one alone, and all of a folder beside each other."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.verification.findings import MAX_OUTPUT_LINE_BYTES, WrongLine
from transforms.elements import Document, Vectors
from transforms.ndjson.lines import lines_beginning_in
from transforms.ndjson.parse import TextField, parse_line
from transforms.storage import api as storage

# How far a norm may be from 1: what rounding each number of a vector to its type can do, and some more for the sum.
_NORM_TOLERANCE = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 8e-3}
_IN_NUMBERS = b"0123456789+-.eE,"

# One row for each embedded document: digests of its vector and its text, and where its line is.
ROW = np.dtype([("vector", "u8"), ("text", "u8"), ("source", "u4"), ("shard", "u4"), ("offset", "u8")])
Rows = npt.NDArray[np.void]
_MAX_ROWS = 1 << 20  # 32 MB
# Vectors of different texts are equal where a tokenizer makes the same of both. That happens to one text in thousands.
_ALLOWED_PAIRS = 2
_ALLOWED_SHARE = 0.001
_MAX_PAIRS_READ = 200
_MAX_PREFIX = 1000  # characters; of texts with the same beginning, truncation may leave the same
_READ_BYTES = 1 << 16


def norm_tolerance(dtype: str) -> float:
    """Return how far the norm of a normalized vector may be from 1, by the type in which the model computes."""
    return _NORM_TOLERANCE.get(dtype, max(_NORM_TOLERANCE.values()))


def parse_vector(data: bytes) -> list[float]:
    """Return the numbers of a JSON array that holds nothing else.

    Raises:
        WrongLine: with the reason.
    """
    try:
        vector = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise WrongLine("the vector is no JSON") from None
    # Without what numbers are made of, an array of numbers is two brackets: cheaper than to ask each for its type.
    if data.translate(None, _IN_NUMBERS) == b"[]":
        numbers: list[float] = vector
        return numbers
    if is_array_of_numbers(vector):
        return vector
    raise WrongLine("the vector is no array of numbers")


def is_array_of_numbers(value: object) -> TypeGuard[list[float]]:
    """Whether a JSON value is an array of numbers alone; to JSON, true is none."""
    return isinstance(value, list) and {float, int}.issuperset(map(type, value))


def find_wrong_vector(vectors: Vectors, tolerance: float | None) -> tuple[int, str] | None:
    """Return the index of the first wrong vector and what is wrong with it; None if all are right.

    Args:
        vectors: float32[n, dimensions]; infinite where a number was too large.
        tolerance: how far norms may be from 1; None for vectors that are not normalized.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    # An infinite number makes the norm infinite, and the squares of finite ones have room in float64.
    wrong = (norms == 0) | ~np.isfinite(norms) if tolerance is None else ~(np.abs(norms - 1) <= tolerance)
    if not wrong.any():
        return None
    index = int(wrong.argmax())
    if not np.isfinite(norms[index]):
        return index, "the vector has numbers that no float32 holds"
    if not norms[index]:
        return index, "the vector is all zeros"
    return index, f"the vector's norm is {norms[index]:.6g}, but the job's vectors are normalized"


def digest_vectors(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """Return uint64[n]: equal for equal vectors, and for others almost never."""
    words = np.ascontiguousarray(vectors).view(np.uint32)
    digests: npt.NDArray[np.uint64] = (words * _multipliers(words.shape[1])).sum(axis=1, dtype=np.uint64)
    return digests


@cache
def _multipliers(count: int) -> npt.NDArray[np.uint64]:
    # Of a fixed seed, because processes compare their digests.
    return np.random.default_rng(1).integers(0, 1 << 64, count, np.uint64) | np.uint64(1)


class SharedVectors:
    """Finds equal vectors of different texts, in bounded memory.

    Of more documents than fit, those are kept whose vector's digest is small: equal vectors stay or go together, so
    that the share of documents that have a vector in common stays what it is.

    Args:
        path_of: returns the path of a row's output file.
        text_field: what was embedded.
        embedding_field: where the vectors are.
        max_rows: kept at a time.
    """

    def __init__(
        self, path_of: Callable[[int, int], str], text_field: TextField, embedding_field: str, max_rows: int = _MAX_ROWS
    ) -> None:
        self._path_of = path_of
        self._fields = text_field, embedding_field
        self._max_rows = max_rows
        self._max_digest = (1 << 64) - 1
        self._parts: list[Rows] = []
        self._finding: str | None = None

    @property
    def rows(self) -> Rows:
        """The rows kept."""
        return np.concatenate([np.empty(0, ROW), *self._parts])

    def add(self, rows: Rows) -> None:
        """Take documents into account."""
        self._parts.append(rows[rows["vector"] <= self._max_digest])
        if sum(map(len, self._parts)) <= self._max_rows:
            return
        # Judged before any row goes: if all vectors are one, thinning drops them all at once.
        self._finding = self._finding or self.judge(self.rows)
        kept = self.rows
        while len(kept) > self._max_rows // 2:
            self._max_digest >>= 1
            kept = kept[kept["vector"] <= self._max_digest]
        self._parts = [kept]

    def find(self) -> str | None:
        """Return what is wrong, with two places; None if no more documents share a vector than may."""
        return self._finding or self.judge(self.rows)

    def judge(self, rows: Rows) -> str | None:
        """Return what is wrong with these documents alone; None for nothing."""
        rows = rows[np.lexsort((rows["text"], rows["vector"]))]
        same_vector = rows["vector"][1:] == rows["vector"][:-1]
        shares = np.flatnonzero(same_vector & (rows["text"][1:] != rows["text"][:-1]))
        allowed = max(_ALLOWED_PAIRS, _ALLOWED_SHARE * len(rows))
        if len(shares) <= allowed:
            return None
        # Some pairs are looked at, and stand for all.
        looked_at = shares[:: -(-len(shares) // _MAX_PAIRS_READ)]
        found = [pair for at in looked_at if (pair := self._unexplained(rows[at], rows[at + 1]))]
        count = round(len(found) / len(looked_at) * len(shares))
        if count <= allowed:
            return None
        return f"{found[0]} have different texts and the same vector, as have about {count} of {len(rows)} documents"

    def _unexplained(self, one: np.void, other: np.void) -> str | None:
        """Return the places of two documents whose texts no tokenizer takes for the same; None for others."""
        (path, text, vector), (other_path, other_text, other_vector) = map(self._read, (one, other))
        if vector != other_vector or is_same_to_a_tokenizer(text, other_text):
            return None
        return f"{path}, byte {one['offset']}, and {other_path}, byte {other['offset']},"

    def _read(self, row: np.void) -> tuple[str, str, object]:
        text_field, embedding_field = self._fields
        path, offset = self._path_of(int(row["source"]), int(row["shard"])), int(row["offset"])
        text, vector = read_document(path, offset, text_field, embedding_field)
        return path, text, vector


def is_same_to_a_tokenizer(one: str, other: str) -> bool:
    """Whether a tokenizer may make the same of two texts, which differ in case, accents or signs, or far behind."""
    return _folded(one) == _folded(other) or (
        len(one) > _MAX_PREFIX and len(other) > _MAX_PREFIX and one[:_MAX_PREFIX] == other[:_MAX_PREFIX]
    )


def _folded(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def read_document(path: str, offset: int, text_field: TextField, embedding_field: str) -> tuple[str, list[float]]:
    """Return the text and the vector of the output line that begins at a byte of a file.

    Raises:
        ValueError: if there is no such line, because the file has changed since it was checked.
    """
    with storage.open_for_reading(path, _READ_BYTES) as file:
        for line in lines_beginning_in(file, offset, offset + 1, MAX_OUTPUT_LINE_BYTES, _READ_BYTES):
            document = parse_line(line, path, text_field, embedding_field, MAX_OUTPUT_LINE_BYTES)
            if isinstance(document, Document) and isinstance(vector := vector_of(document, embedding_field), list):
                return document.text, vector
    raise ValueError(f"{path}, byte {offset}: the line was checked, and has changed since")


def vector_of(document: Document, embedding_field: str) -> object:
    """Return the value of a document's embedding field; None if it has none."""
    content = document.line.removeprefix(b"\xef\xbb\xbf")
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:  # what is no JSON to orjson alone, such as a lone surrogate in another field
        record = json.loads(content.decode(), parse_int=float)
    return record.get(embedding_field)
