"""The two formats in which texts go out and vectors come back, believed only after they are checked."""

from __future__ import annotations

import enum
import functools
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import orjson
import pybase64

from transforms.elements import Vectors, text_as_sent
from transforms.tei.settings import EndpointSettings, Overlong

FIRST_WITH_BASE64 = (1, 3, 0)  # of TEI's versions
FIRST_WITH_DIMENSIONS = (1, 8, 0)
REPLY_BYTES_PER_NUMBER = 32  # a float in JSON has 25 characters at most, with its comma
REPLY_BYTES_PER_ROW = 256  # of what surrounds a vector
REPLY_BYTES = 1 << 16  # of what surrounds all of them, and for a server that likes white space


class WireFormat(enum.Enum):
    """How vectors come back. Both give the same float32 bits."""

    EMBED_JSON = "/embed, JSON"
    OPENAI_BASE64 = "/v1/embeddings, base64"


@dataclass(frozen=True, slots=True)
class Wire:
    """One format with the job's settings in it.

    Attributes:
        format: which of the two.
        path: below the base URL.
        field: the JSON field that holds the texts.
        options: the other JSON fields.
    """

    format: WireFormat
    path: str
    field: str
    options: Mapping[str, object]

    def encode(self, texts: Sequence[str]) -> bytes:
        """Return the request's body, UTF-8; of each text, what `text_as_sent` makes of it."""
        try:
            return orjson.dumps({self.field: texts, **self.options})
        except orjson.JSONEncodeError:
            # Lone surrogates are rare: making every text anew would cost more than the second attempt does.
            clean = [text_as_sent(text).decode() for text in texts]
            return orjson.dumps({self.field: clean, **self.options})

    def decode(self, body: bytes, count: int, dimensions: int | None) -> Rows:
        """Return the reply's rows; raise as `rows_from_json`."""
        read = rows_from_json if self.format is WireFormat.EMBED_JSON else rows_from_base64
        return read(body, count, dimensions)


def max_reply_bytes(texts: int, dimensions: int) -> int:
    """Return how long an honest reply with the vectors of so many texts can be."""
    return texts * (dimensions * REPLY_BYTES_PER_NUMBER + REPLY_BYTES_PER_ROW) + REPLY_BYTES


def embed_json(settings: EndpointSettings, *, truncate: bool | None = None) -> Wire:
    """Return `/embed`, which takes every setting. All of them are sent: servers differ in their defaults.

    Args:
        settings: of the job.
        truncate: whether overlong texts are truncated; None for what the settings say.
    """
    options: dict[str, object] = {
        "truncate": settings.overlong is Overlong.TRUNCATE if truncate is None else truncate,
        "normalize": settings.normalize,
    }
    if settings.prompt_name is not None:
        options["prompt_name"] = settings.prompt_name
    if settings.dimensions is not None:
        options["dimensions"] = settings.dimensions
    return Wire(WireFormat.EMBED_JSON, "/embed", "inputs", options)


def openai_base64(settings: EndpointSettings) -> Wire:
    """Return `/v1/embeddings`, which always normalizes, truncates as the server likes, and knows no prompt's name."""
    options: dict[str, object] = {"encoding_format": "base64"}
    if settings.dimensions is not None:
        options["dimensions"] = settings.dimensions
    return Wire(WireFormat.OPENAI_BASE64, "/v1/embeddings", "input", options)


def why_not_base64(
    settings: EndpointSettings, *, auto_truncate: bool | None, pooling: str | None, version: str
) -> str | None:
    """Return why `/v1/embeddings` of a server would not do what `/embed` does under these settings; None if it would.

    Args:
        settings: of the job.
        auto_truncate: whether the server truncates where a request does not say, as `/info` reports it.
        pooling: of the model.
        version: of the server.
    """
    if not settings.normalize:
        return "--no_normalize needs it"
    if settings.prompt_name is not None:
        return "--prompt_name needs it"
    if auto_truncate is not (settings.overlong is Overlong.TRUNCATE):
        # `/embed` says what to do with each request, so endpoints may differ in this.
        return f"the server's auto_truncate is {auto_truncate} and --overlong is {settings.overlong.value}"
    if pooling == "splade":
        return "the model's pooling is splade"
    if parse_version(version) < FIRST_WITH_BASE64:
        return f"the server's version {version} has no base64"
    return None


def parse_version(text: str) -> tuple[int, ...]:
    """Return a version's three numbers; (0,) for what is none."""
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", text)
    return tuple(int(number) for number in numbers.groups()) if numbers else (0,)


# --- rows ---------------------------------------------------------------------------------------------------------


class _Encoding(NamedTuple):
    """How a reply holds a vector. Packing raises `_NO_VECTOR`."""

    length_of: Callable[[Any], int | None]
    pack: Callable[[Any, int], bytes]
    pack_all: Callable[[list[Any], int], bytes]


_NO_VECTOR = (struct.error, TypeError, ValueError, OverflowError)


class UnreadableReply(Exception):
    """Status 200, but no list of rows: something in front of the server answered."""


class WrongCount(Exception):
    """Not as many rows as texts: none of them can be trusted to belong to its text."""


class OtherDimensions(Exception):
    """Every row has the same number of components, but not the known one: perhaps another model."""

    def __init__(self, dimensions: int) -> None:
        super().__init__(dimensions)
        self.dimensions = dimensions

    def __str__(self) -> str:
        """Say what came."""
        return f"vectors of {self.dimensions} dimensions"


@dataclass(frozen=True, slots=True)
class Rows:
    """The vectors of one reply.

    Attributes:
        values: float32[count, dimensions]; row k belongs to text k.
        good: bool[count]; false where the row is missing, of the wrong length, not finite, or all zero.
    """

    values: Vectors
    good: npt.NDArray[np.bool_]


def rows_from_json(body: bytes, count: int, dimensions: int | None) -> Rows:
    """Return the rows of `[[f32, …], …]`, as `/embed` answers. `dimensions` None takes the first row's.

    Raises:
        UnreadableReply, WrongCount, OtherDimensions: none of the rows can be used.
    """
    rows = _load(body)
    if not isinstance(rows, list):
        _unreadable(body)
    # Numbers are written without either letters; `struct` would take both words for numbers.
    pack = _pack_numbers if b"true" in body or b"false" in body else _pack_list
    encoding = _Encoding(_length_of_list, pack, lambda rows, size: b"".join([pack(row, size) for row in rows]))
    return _rows(rows, count, dimensions, encoding)


def rows_from_base64(body: bytes, count: int, dimensions: int | None) -> Rows:
    """Return the rows of `{"data": [{"index": 0, "embedding": "…"}, …]}`, float32 in base64; raise likewise."""
    reply = _load(body)
    try:
        items = reply["data"]
        indices = [item["index"] for item in items]
        rows = [item["embedding"] for item in items]
    except (KeyError, TypeError, IndexError):
        _unreadable(body)
    if rows and isinstance(rows[0], list):
        raise UnreadableReply("vectors that are not in base64")
    if indices != list(range(len(rows))):
        rows = _reordered(indices, rows)
    return _rows(rows, count, dimensions, _Encoding(_length_of_base64, _pack_base64, _pack_all_base64))


def _load(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        _unreadable(body)


def _unreadable(body: bytes) -> NoReturn:
    raise UnreadableReply(f"a reply of {len(body)} bytes that holds no vectors")


def _reordered(indices: list[Any], rows: list[Any]) -> list[Any]:
    try:
        places = sorted(indices)
    except TypeError:
        places = []
    if places != list(range(len(rows))):
        raise WrongCount("the reply's indices are not those of the request")
    by_index = dict(zip(indices, rows, strict=True))
    return [by_index[index] for index in places]


def _rows(rows: list[Any], count: int, dimensions: int | None, encoding: _Encoding) -> Rows:
    if len(rows) != count:
        raise WrongCount(f"{len(rows)} rows for {count} texts")
    if dimensions is None:
        dimensions = encoding.length_of(rows[0]) or 0
        if not dimensions:
            raise UnreadableReply("a first row that is not a vector")
    try:
        packed = encoding.pack_all(rows, dimensions)
    except _NO_VECTOR:
        packed = _packed_one_by_one(rows, dimensions, encoding)
    values = np.frombuffer(packed, dtype="<f4").reshape(count, dimensions)
    return Rows(values, usable(values))


def _packed_one_by_one(rows: Sequence[Any], dimensions: int, encoding: _Encoding) -> bytes:
    lengths = {encoding.length_of(row) for row in rows}
    if len(lengths) == 1 and (other := lengths.pop()) and other != dimensions:
        raise OtherDimensions(other)
    missing = np.full(dimensions, np.nan, dtype="<f4").tobytes()
    packed = []
    for row in rows:
        try:
            packed.append(encoding.pack(row, dimensions))
        except _NO_VECTOR:
            packed.append(missing)
    return b"".join(packed)


def usable(values: Vectors) -> npt.NDArray[np.bool_]:
    """Return bool[n]: which rows are finite and not all zero."""
    with np.errstate(all="ignore"):
        # Not einsum: it releases the GIL and then has to wait for it.
        squares = np.matmul(values[:, np.newaxis, :], values[:, :, np.newaxis]).ravel().tolist()
    if all(0 < square < math.inf for square in squares):
        return np.ones(len(values), dtype=np.bool_)
    # A sum of squares can overflow or vanish where the components do not.
    return np.logical_and(np.isfinite(values).all(axis=1), values.any(axis=1))


@functools.lru_cache(maxsize=8)
def _packer(dimensions: int) -> struct.Struct:
    return struct.Struct(f"<{dimensions}f")


def _length_of_list(row: Any) -> int | None:
    return len(row) if isinstance(row, list) else None


def _pack_list(row: Any, dimensions: int) -> bytes:
    # Three times faster than an array of the list, and rounded alike; a null raises.
    return _packer(dimensions).pack(*row)


def _pack_numbers(row: Any, dimensions: int) -> bytes:
    if any(isinstance(number, bool) for number in row):
        raise TypeError("a vector with words in it")
    return _pack_list(row, dimensions)


def _length_of_base64(row: Any) -> int | None:
    try:
        size = len(pybase64.b64decode(row, validate=True))
    except (TypeError, ValueError):
        return None
    return size // 4 if size % 4 == 0 else None


def _pack_base64(row: Any, dimensions: int) -> bytes:
    # Otherwise what is no base64 would be skipped, and what follows it shifted.
    data = pybase64.b64decode(row, validate=True)
    if len(data) != 4 * dimensions:
        raise ValueError("a row of the wrong length")
    return data


def _pack_all_base64(rows: list[str], dimensions: int) -> bytes:
    # In one call: each call releases the GIL, which wakes another thread for nothing.
    size = 4 * dimensions
    padding = -size % 3
    end = "=" * padding
    length = (size + padding) // 3 * 4
    joined = "".join(rows)
    if set(map(len, rows)) != {length}:
        raise ValueError("a row of another length")
    if not padding:
        data = pybase64.b64decode(joined, validate=True)
        if len(data) != len(rows) * size:
            raise ValueError("a row that ends before its end")
        return data
    if joined.count("=") != len(rows) * padding or not all(row.endswith(end) for row in rows):
        raise ValueError("a row that ends before its end")
    data = pybase64.b64decode(joined.replace("=", "A"), validate=True)
    return np.frombuffer(data, dtype=np.uint8).reshape(len(rows), -1)[:, :size].tobytes()
