"""Parquet outputs: a row for each record, with its line, its text, columns, and its vector as a list of fixed size.

Nothing in a file depends on the time or the place at which it is written: with one version of pyarrow, the same rows
make the same bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.elements import Document, Vectors, text_as_sent
from transforms.ndjson.lines import chunks_from
from transforms.ndjson.parse import TextField
from transforms.output.layout import (
    BOOL,
    DOUBLE,
    FLOAT16,
    FLOAT32,
    INT64,
    JSON,
    PARQUET,
    RECORD,
    STRING,
    TEXT,
    VECTOR_TYPES,
    Layout,
)
from transforms.output.values import column_values
from transforms.storage import api as storage
from transforms.storage.api import Digest, digest_of
from transforms.storage.chunks import spooled

PLACE = "row"
# A row group is in memory as a whole, and beside it pyarrow has three copies of the lines that it compresses. zstd
# compresses 1,024 lines at a time in any case, so more rows would make no smaller file; half as many make one that is
# 2 to 3% larger.
ROW_GROUP_ROWS = 1024
# Bytes of lines and texts after which a row group ends as well. With what it takes to write, 20 MiB are allocated, and
# a run grows by some 60 MB: malloc does not find room for each page where the last one was.
ROW_GROUP_BYTES = 8 << 20
# pyarrow makes the levels of a whole array, 4 bytes a number, before it writes any of it, and 8 bytes a number for
# float16. In so many rows at a time, that is a fraction of a MB.
_ROWS_OF_AN_ARRAY = 128
# Two pages of vectors are in memory while one is compressed. zstd looks at 128 KiB at a time, which is one byte of each
# float32 of a page of this size: smaller pages mix the bytes, and files become 7% larger.
_PAGE_BYTES = 1 << 19
_READ_ROWS = 1024  # at a time
# What row groups took stays with malloc in pieces between the lines of the next shards, ever more of it in a long run.
# Giving it back takes some ms, and fetching the pages that are needed after all takes as long again.
_TRIM_SECONDS = 0.3
# Only glibc has it, and only glibc needs it. Arrow's release_unused() calls it where malloc is the default allocator,
# which it is not in every worker.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
# Rows and uncompressed bytes that a row group of Tayyar's has at most, whatever version wrote it; a forged one must not
# fill the memory.
_MAX_ROW_GROUP_ROWS = 8192
_MAX_ROW_GROUP_BYTES = 1 << 31
_ARROW_TYPES = {
    STRING: pa.string(),
    JSON: pa.string(),
    INT64: pa.int64(),
    DOUBLE: pa.float64(),
    BOOL: pa.bool_(),
}


class ParquetRow(NamedTuple):
    """One row.

    Attributes:
        record: the input line without its newline.
        text: what was embedded, as it was sent; UTF-8.
        values: one for each column.
        vector: float32[dimensions], or float16[dimensions] where it was read from a file of them.
        number: of the row in its file, from 0; of a new row 0.
    """

    record: bytes
    text: bytes
    values: tuple[Any, ...]
    vector: Any
    number: int = 0


def rows_of(
    documents: Sequence[Document], vectors: Vectors, layout: Layout, unfit: MutableMapping[str, int]
) -> Iterator[ParquetRow]:
    """Yield the rows of documents."""
    for document, vector in zip(documents, vectors, strict=True):
        values = column_values(document.line, layout.columns, unfit) if layout.columns else ()
        yield ParquetRow(document.line, text_as_sent(document.text), values, vector)


def encode(rows: Iterable[ParquetRow], layout: Layout, dimensions: int) -> Iterator[bytes]:
    """Yield a file in pieces, each as soon as the row group that it is a part of is complete.

    Vectors are rounded to the layout's type here, a row group at a time.
    """
    schema = _schema(layout, dimensions)
    sink = _Sink()
    pool = pa.system_memory_pool()  # Arrow's own allocator takes 40 MB more for the same work
    columns = [column.name for column in layout.columns or ()]
    numbers = f"{layout.embedding_field}.list.element"
    compressed = [RECORD, TEXT, *columns]
    if layout.vector_type == FLOAT32:  # zstd takes 4% off float16's numbers, for as much time as encoding them takes
        compressed.append(numbers)
    writer = pq.ParquetWriter(
        sink,
        schema,
        # Lines, texts and vectors hardly repeat: a dictionary of them costs time and helps nobody, nor does the
        # smallest of them in the footer.
        use_dictionary=columns or False,
        write_statistics=columns or False,
        compression=dict.fromkeys(compressed, "zstd"),
        # All else has level 1. Of prose, level 3 takes 5% more off for a quarter more time: not of texts, which are in
        # their records once more.
        compression_level={RECORD: 3},
        # What vectors have in common is their exponents: a tenth less. DuckDB reads this encoding of float32 only.
        use_byte_stream_split=[numbers] if layout.vector_type == FLOAT32 else False,
        data_page_size=_PAGE_BYTES,
        memory_pool=pool,
    )
    for group in _groups(rows):
        writer.write_table(_moved(group, schema), row_group_size=ROW_GROUP_ROWS)
        yield from sink.take()
    writer.close()
    yield from sink.take()
    _trim()


_trimmed_at = 0.0


def _trim() -> None:
    """Give malloc's free memory back to the system, unless that was done a moment ago."""
    global _trimmed_at  # of the process, as its memory is
    now = time.monotonic()
    if _malloc_trim is not None and now - _trimmed_at >= _TRIM_SECONDS:
        _trimmed_at = now
        _malloc_trim(0)


def _schema(layout: Layout, dimensions: int) -> pa.Schema:
    number = pa.float16() if layout.vector_type == FLOAT16 else pa.float32()
    vector = pa.list_(pa.field("element", number, nullable=False), dimensions)
    return pa.schema(
        [
            pa.field(RECORD, pa.string(), nullable=False),
            pa.field(TEXT, pa.string(), nullable=False),
            *(pa.field(column.name, _ARROW_TYPES[column.type]) for column in layout.columns or ()),
            pa.field(layout.embedding_field, vector, nullable=False),
        ]
    )


def _groups(rows: Iterable[ParquetRow]) -> Iterator[list[ParquetRow]]:
    group: list[ParquetRow] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.record) + len(row.text)
        if len(group) == ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield group
            group = []
            size = 0
    if group:
        yield group


def _moved(group: list[ParquetRow], schema: pa.Schema) -> pa.Table:
    """Return a table of rows, and empty their list: their texts need not be in memory twice while they are written."""
    records, texts, values, vectors, _ = zip(*group, strict=True)
    group.clear()
    columns = zip(*values, strict=True)
    return pa.Table.from_arrays(
        [
            _strings(records),
            _strings(texts),
            *(pa.array(column, field.type) for column, field in zip(columns, list(schema)[2:-1], strict=True)),
            _vectors(vectors, schema.field(len(schema) - 1).type),
        ],
        schema=schema,
    )


def _vectors(vectors: Sequence[Any], vector_type: pa.FixedSizeListType) -> pa.ChunkedArray:
    """Return an array of vectors, rounded to the type of their numbers."""
    number_type = vector_type.value_type
    dtype = np.float16 if number_type == pa.float16() else np.float32  # to_pandas_dtype() needs pandas
    arrays = []
    for start in range(0, len(vectors), _ROWS_OF_AN_ARRAY):
        some = vectors[start : start + _ROWS_OF_AN_ARRAY]
        numbers = np.concatenate(some, dtype=dtype, casting="same_kind")
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(numbers, number_type), type=vector_type))
    return pa.chunked_array(arrays, vector_type)


def _strings(values: Sequence[bytes]) -> pa.StringArray:
    """Return an array of UTF-8, whose buffers are no larger than they must be and which is not checked again."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


def read_rows(
    path: str,
    embedding_field: str,
    complain: Callable[[str], None],
    digest: Digest | None,
    layout: Layout | None = None,
) -> Iterator[ParquetRow]:
    """Yield the rows of a file, whose checksum is compared first; without `layout`, only texts and vectors of them."""
    with _checked(path) as (file, found):
        if digest is not None and digest != found:
            complain(f"its checksum is {found.crc32c}, but {digest.crc32c} in its receipt")
        try:
            with pq.ParquetFile(file) as parquet:
                if problem := _problem_of(parquet, embedding_field, layout):
                    complain(problem)
                else:
                    yield from _rows(parquet, embedding_field, layout)
        except (pa.ArrowException, OSError) as error:
            complain(f"it cannot be read as Parquet: {error}")


@contextlib.contextmanager
def _checked(path: str) -> Iterator[tuple[BinaryIO, Digest]]:
    """Open a file and give its digest as well; an object is fetched once, into a temporary file."""
    with storage.open_for_reading(path) as file:
        if not storage.is_local(path):
            with spooled(chunks_from(file)) as (fetched, size, crc32c):
                yield fetched, Digest(size, crc32c)
            return
        digest = digest_of(chunks_from(file))
        file.seek(0)
        yield file, digest


def _problem_of(parquet: pq.ParquetFile, embedding_field: str, layout: Layout | None) -> str | None:
    """Return why a file is not one that `encode` can have written; None if it looks like one."""
    schema = parquet.schema_arrow
    possible = [
        _schema(Layout(PARQUET, embedding_field, vector_type), _dimensions(schema, embedding_field))
        for vector_type in VECTOR_TYPES
    ]
    for name in (RECORD, TEXT, embedding_field):
        is_one = schema.get_field_index(name) >= 0  # it is below zero if the column is missing or there twice
        if not is_one or not any(schema.field(name).equals(each.field(name)) for each in possible):
            return f"its column {name!r} is missing, there twice, or of another type than Tayyar writes"
    if layout is not None and layout.columns is not None:
        expected = _schema(layout, _dimensions(schema, embedding_field))
        if not schema.equals(expected):
            return f"its columns are {_shown(schema)}, but should be {_shown(expected)}"
    groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
    if any(group.num_rows > _MAX_ROW_GROUP_ROWS or group.total_byte_size > _MAX_ROW_GROUP_BYTES for group in groups):
        return "it has a row group that is larger than any that Tayyar writes"
    return None


def _dimensions(schema: pa.Schema, embedding_field: str) -> int:
    """Return the size of a schema's vectors; 1 if it has none."""
    field = schema.field(embedding_field) if schema.get_field_index(embedding_field) >= 0 else None
    return field.type.list_size if field is not None and pa.types.is_fixed_size_list(field.type) else 1


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _rows(parquet: pq.ParquetFile, embedding_field: str, layout: Layout | None) -> Iterator[ParquetRow]:
    names = [column.name for column in layout.columns or ()] if layout is not None else []
    records = [RECORD] if layout is not None else []
    number = 0
    # A row group at a time: a batch that spans many of long lines would not fit into the memory.
    for group in range(parquet.metadata.num_row_groups):
        for batch in parquet.iter_batches(_READ_ROWS, [group], [*records, TEXT, *names, embedding_field]):
            texts = batch.column(TEXT).cast(pa.binary()).to_pylist()
            lines = batch.column(RECORD).cast(pa.binary()).to_pylist() if records else itertools.repeat(b"")
            values = (
                zip(*(batch.column(name).to_pylist() for name in names), strict=True) if names else itertools.repeat(())
            )
            column = batch.column(embedding_field)
            vectors = column.flatten().to_numpy().reshape(len(texts), column.type.list_size)
            for text, line, of_columns, vector in zip(texts, lines, values, vectors, strict=False):
                yield ParquetRow(line, text, of_columns, vector, number)
                number += 1


def place(row: ParquetRow) -> int:
    """Return the number of a row in its file, from 0."""
    return row.number


def stored(row: ParquetRow) -> ParquetRow:
    """Return a row as it is."""
    return row


def text_and_vector(row: ParquetRow, text_field: TextField, embedding_field: str) -> tuple[str, Any]:
    """Return the text as it was sent, and the vector."""
    del text_field, embedding_field
    return row.text.decode(), row.vector


def read_at(path: str, place: int, embedding_field: str) -> ParquetRow | None:
    """Return the row of a number, without its record and its columns."""
    with storage.open_for_reading(path) as file, pq.ParquetFile(file) as parquet:
        first = 0
        for group in range(parquet.metadata.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if first <= place < first + count:
                row = parquet.read_row_group(group, [TEXT, embedding_field]).slice(place - first, 1)
                vector = row.column(embedding_field).combine_chunks().flatten().to_numpy()
                return ParquetRow(b"", row.column(TEXT)[0].as_py().encode(), (), vector, place)
            first += count
    return None


class _Sink(io.RawIOBase):
    """Takes what the writer writes, until somebody takes it away."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def take(self) -> list[bytes]:
        """Return what was written since the last call."""
        taken, self._parts = self._parts, []
        return taken
