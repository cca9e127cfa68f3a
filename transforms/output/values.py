"""Whether values fit the type of their column, and vectors theirs. Plain functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from transforms.elements import Vectors
from transforms.ndjson.parse import BOM, parse_object, value_of
from transforms.output.layout import BOOL, DOUBLE, FLOAT32, INT64, JSON, STRING, Column

# The length of what float16 rounds off beside the vector's own; of numbers that have all their digits, half of it.
_MAX_ROUNDING = 1e-3
# Float16 rounds off at most 2**-11 of a number, or 2**-25 where that is more. So a vector fits if its mean square is at
# least this, as 1e-8 * (1e-6 - 2**-22) > 2**-50, and if its length is less than float16's largest number, 65,504.
_MIN_MEAN_SQUARE = 1e-8
_MAX_LENGTH = 6e4
_ROWS_AT_ONCE = 256
_INT64 = range(-(1 << 63), 1 << 63)


def fits_type(vectors: Vectors, vector_type: str) -> npt.NDArray[np.bool_]:
    """Return bool[n]: which rows are finite, not all zeros, and the same vector when they are rounded to the type.

    Args:
        vectors: float32[n, dimensions].
        vector_type: `float32` or `float16`.
    """
    fits = np.empty(len(vectors), np.bool_)
    # A few rows at a time stay in the cache, and what is computed from them takes little memory beside all the vectors.
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        some = vectors[rows]
        if vector_type == FLOAT32:
            fits[rows] = np.isfinite(some).all(axis=1) & some.any(axis=1)
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", some, some)
            if np.all((squares >= _MIN_MEAN_SQUARE * vectors.shape[1]) & (squares <= _MAX_LENGTH**2)):
                fits[rows] = True  # as of any usual model: rounding them for it takes twenty times as long
                continue
            # Below 6e-5, float16 has ever fewer digits: nothing is left of a vector with such small numbers only.
            error = some - some.astype(vector_type)
            # False for numbers that are not finite or become infinite, as for NaN in any comparison, and for all zeros.
            fits[rows] = np.einsum("ij,ij->i", error, error) < _MAX_ROUNDING**2 * squares
    return fits


def choose_columns(names: Sequence[str], lines: Iterable[bytes], known: Iterable[Column] = ()) -> tuple[Column, ...]:
    """Return columns whose types suit the values in some records.

    Strings, booleans and numbers have types of their own; a field with values of several kinds, of any other kind, or
    without values becomes JSON text. Types that are known already stay.

    Args:
        names: of the columns.
        lines: records, each a JSON object.
        known: columns of former runs.
    """
    types = {column.name: column.type for column in known}
    kinds: dict[str, set[type]] = {name: set() for name in names if name not in types}
    if kinds:
        for line in lines:
            record, _ = parse_object(line.removeprefix(BOM))
            for name, found in kinds.items():
                found.add(type(value_of(record, name)))
    for name, found in kinds.items():
        found.discard(type(None))
        kind = float if found == {int, float} else found.pop() if len(found) == 1 else None
        types[name] = _TYPES.get(kind, JSON)
    return tuple(Column(name, types[name]) for name in names)


def column_values(line: bytes, columns: Sequence[Column], unfit: MutableMapping[str, int]) -> tuple[Any, ...]:
    """Return a record's value for each column; None where it has none, or one that the column's type cannot hold.

    Args:
        line: the record, a JSON object.
        columns: n columns.
        unfit: counts, by the column's name, the values that do not fit.
    """
    if not columns:
        return ()
    (record, _), values = parse_object(line.removeprefix(BOM)), []
    for column in columns:
        value = value_of(record, column.name)
        if value is not None:
            value = _CONVERSIONS[column.type](value)
            if value is None:
                unfit[column.name] = unfit.get(column.name, 0) + 1
        values.append(value)
    return tuple(values)


def _string(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot hold
        return None
    return value


def _int64(value: object) -> int | None:
    return value if type(value) is int and value in _INT64 else None


def _double(value: object) -> float | None:
    if type(value) is float:
        return value
    # A larger integer may have no double of the same value.
    return float(value) if type(value) is int and int(float(value)) == value else None


def _bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _json(value: object) -> str | None:
    try:
        encoded = orjson.dumps(value)
        # orjson writes null for NaN and infinity, which Python reads and writes as they are.
        return encoded.decode() if b"null" not in encoded else json.dumps(value, ensure_ascii=False)
    except TypeError:  # a lone surrogate in a string, or more levels than orjson writes
        try:
            return json.dumps(value)
        except RecursionError:
            return None


_CONVERSIONS: Mapping[str, Callable[[object], Any]] = {
    STRING: _string,
    INT64: _int64,
    DOUBLE: _double,
    BOOL: _bool,
    JSON: _json,
}
_TYPES: Mapping[type | None, str] = {str: STRING, int: INT64, float: DOUBLE, bool: BOOL}
