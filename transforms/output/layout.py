"""What outputs look like: the format, the type of the vectors, and the columns. Imports nothing heavy."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transforms.output.json_fields import build_dataclass


class OutputFormat(enum.Enum):
    """How embedded records are written; each value is the ending of the files' names, too."""

    NDJSON = "ndjson"
    PARQUET = "parquet"


class VectorType(enum.Enum):
    """In which type the numbers of vectors are written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


NDJSON, PARQUET = OutputFormat.NDJSON.value, OutputFormat.PARQUET.value
OUTPUT_FORMATS = (NDJSON, PARQUET)
FLOAT32, FLOAT16 = VectorType.FLOAT32.value, VectorType.FLOAT16.value
VECTOR_TYPES = (FLOAT32, FLOAT16)
STRING, INT64, DOUBLE, BOOL, JSON = "string", "int64", "double", "bool", "json"
MAX_SHARD_BYTES = 1 << 40  # more than any shard that fits into memory; a forged job.json may have any number
RECORD, TEXT = "record", "text"  # the first columns of every Parquet file


@dataclass(frozen=True, slots=True)
class Column:
    """A field of the records that gets a column of its own.

    Attributes:
        name: of the field, dotted for a nested one, and of the column.
        type: `string`, `int64`, `double`, `bool`, or `json` for any value as JSON text.
    """

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What a shard's output looks like. Picklable.

    Attributes:
        format: `ndjson` or `parquet`.
        embedding_field: the field or the column that gets the vector.
        vector_type: `float32` or `float16`; always `float32` in NDJSON.
        columns: beside the record, its text and its vector; none in NDJSON; None where they are not known.
    """

    format: str
    embedding_field: str
    vector_type: str = FLOAT32
    columns: tuple[Column, ...] | None = ()


def decode_columns(values: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return columns from JSON.

    Raises:
        TypeError: if a field is missing or of another type.
        ValueError: if a type is unknown, or two columns have the same name.
    """
    columns = tuple(build_dataclass(Column, value) for value in values)
    for column in columns:
        if column.type not in (STRING, INT64, DOUBLE, BOOL, JSON):
            raise ValueError(f"the column {column.name!r} has the type {column.type!r}")
    if len({column.name for column in columns}) < len(columns):
        raise ValueError("two columns have the same name")
    return columns
