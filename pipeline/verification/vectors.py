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

from pipeline.errors import NotProven
from pipeline.verification.findings import WrongLine
from transforms.elements import Document, Vectors
from transforms.ndjson.parse import BOM, TextField
from transforms.output.formats import format_of
from transforms.output.layout import FLOAT32

# How far a norm may be from 1: what rounding each number of a vector to its type can do, and some more for the sum.
_NORM_TOLERANCE = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 8e-3}
_IN_NUMBERS = b"0123456789+-.eE,"

# One row for each embedded document: digests of its vector and its text, and its place in which file.
ROW = np.dtype([("vector", "u8"), ("text", "u8"), ("source", "u4"), ("shard", "u4"), ("offset", "u8")])
VectorRows = npt.NDArray[np.void]
_MAX_ROWS = 1 << 20  # 32 MB
# Vectors of different texts are equal where a tokenizer makes the same of both. That happens to one text in thousands.
_ALLOWED_PAIRS = 2
_ALLOWED_SHARE = 0.001
_MAX_PAIRS_READ = 200  # each takes two reads of output files
_MAX_PREFIX = 1000  # characters; of texts with the same beginning, truncation may leave the same


def norm_tolerance(dtype: str, vector_type: str = FLOAT32) -> float:
    """Return how far the norm of a normalized vector may be from 1.

    Args:
        dtype: the type in which the model computes.
        vector_type: the type to which its vectors were rounded again when they were written.
    """
    computed = _NORM_TOLERANCE.get(dtype, max(_NORM_TOLERANCE.values()))
    return computed if vector_type == FLOAT32 else computed + _NORM_TOLERANCE[vector_type]


def parse_vector(data: bytes) -> list[float]:
    """Return the numbers of a JSON array that holds nothing else.

    Raises:
        WrongLine: with the reason.
    """
    try:
        vector = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise WrongLine("the vector is not JSON") from None
    # Without what numbers are made of, an array of numbers is two brackets: cheaper than to ask each for its type.
    if data.translate(None, _IN_NUMBERS) == b"[]":
        numbers: list[float] = vector
        return numbers
    if is_array_of_numbers(vector):
        return vector
    raise WrongLine("the vector is not an array of numbers")


def is_array_of_numbers(value: object) -> TypeGuard[list[float]]:
    """Return whether a JSON value is an array of numbers alone; to JSON, true is none."""
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
        self._parts: list[VectorRows] = []
        self._finding: str | None = None

    @property
    def rows(self) -> VectorRows:
        """The rows kept."""
        return np.concatenate([np.empty(0, ROW), *self._parts])

    def add(self, rows: VectorRows) -> None:
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

    def judge(self, rows: VectorRows) -> str | None:
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
        if not np.array_equal(vector, other_vector) or is_same_to_a_tokenizer(text, other_text):
            return None
        places = format_of(path).PLACE, format_of(other_path).PLACE
        return f"{path}, {places[0]} {one['offset']}, and {other_path}, {places[1]} {other['offset']},"

    def _read(self, row: np.void) -> tuple[str, str, Vectors]:
        text_field, embedding_field = self._fields
        path, offset = self._path_of(int(row["source"]), int(row["shard"])), int(row["offset"])
        text, vector = read_document(path, offset, text_field, embedding_field)
        return path, text, vector


def is_same_to_a_tokenizer(one: str, other: str) -> bool:
    """Return whether a tokenizer may make the same of two texts: they differ in case, accents, signs, or far behind."""
    return _folded(one) == _folded(other) or (
        len(one) > _MAX_PREFIX and len(other) > _MAX_PREFIX and one[:_MAX_PREFIX] == other[:_MAX_PREFIX]
    )


def _folded(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def read_document(path: str, place: int, text_field: TextField, embedding_field: str) -> tuple[str, Vectors]:
    """Return the text and the vector, float32[dimensions], of the record at a place of an output.

    Raises:
        NotProven: if there is no such record, because the file has changed since it was checked.
    """
    form = format_of(path)
    row = form.read_at(path, place, embedding_field)
    if row is not None:
        text, vector = form.text_and_vector(row, text_field, embedding_field)
        if vector is not None:
            return text, np.array(vector, dtype=np.float32)
    raise NotProven(f"{path}, {form.PLACE} {place}: the record has changed since it was checked. Verify again.")


def vector_of(document: Document, embedding_field: str) -> object:
    """Return the value of a document's embedding field; None if it has none."""
    content = document.line.removeprefix(BOM)
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:  # what is no JSON to orjson alone, such as a lone surrogate in another field
        record = json.loads(content.decode(), parse_int=float)
    return record.get(embedding_field)
