"""What `verify` checks of one row of an output: a class for each format."""

from __future__ import annotations

import struct
from typing import Any, Protocol

import numpy as np

from pipeline.verification.findings import WrongLine
from pipeline.verification.vectors import is_array_of_numbers, parse_vector, vector_of
from transforms.elements import DeadLetter, Document, text_as_sent
from transforms.ndjson.lines import Line
from transforms.ndjson.parse import TextField, parse_line
from transforms.ndjson.splice import json_key, split_document
from transforms.output.layout import PARQUET, Layout
from transforms.output.ndjson_output import MAX_OUTPUT_LINE_BYTES
from transforms.output.parquet_output import ParquetRow
from transforms.output.values import column_values


class RowCheck(Protocol):
    """The checks of one format."""

    def parse(self, row: Any, path: str, text_field: TextField) -> Document | DeadLetter | None:
        """Return what the row's record is, for a row whose source is gone."""

    def vector_alone(self, row: Any, parsed: Document) -> bytes:
        """Check a row that parses to a document, and return its vector as the bytes of float32[dimensions].

        Raises:
            WrongLine: with the reason.
        """

    def vector_beside(self, row: Any, source: Document) -> bytes:
        """Check that a row is its source's record with a vector, and return that as bytes of float32[dimensions].

        Raises:
            WrongLine: with the reason.
        """


def row_check(layout: Layout, dimensions: int) -> RowCheck:
    """Return the checks of outputs of this layout."""
    return ParquetCheck(layout, dimensions) if layout.format == PARQUET else NdjsonCheck(layout, dimensions)


class NdjsonCheck:
    """Checks lines: see `RowCheck`."""

    def __init__(self, layout: Layout, dimensions: int) -> None:
        self._field = layout.embedding_field
        self._key = json_key(layout.embedding_field)
        self._dimensions = dimensions
        self._pack = struct.Struct(f"{dimensions}f").pack

    def parse(self, row: Line, path: str, text_field: TextField) -> Document | DeadLetter | None:
        """Parse the line."""
        return parse_line(row, path, text_field, self._field, MAX_OUTPUT_LINE_BYTES)

    def vector_alone(self, row: Line, parsed: Document) -> bytes:
        """Return the vector in a line."""
        del row  # the document holds it, too
        vector = vector_of(parsed, self._field)
        if not is_array_of_numbers(vector):
            raise WrongLine("the vector is no array of numbers")
        return self._packed(vector)

    def vector_beside(self, row: Line, source: Document) -> bytes:
        """Compare a line with its source line, byte for byte but for the vector."""
        content = row.content
        before, behind = split_document(source, self._key)
        length = len(content) - len(before) - len(behind)
        if length < 0 or not content.startswith(before) or not content.endswith(behind):
            raise WrongLine("the line is not the source line with a vector")
        return self._packed(parse_vector(content[len(before) : len(before) + length]))

    def _packed(self, vector: list[float]) -> bytes:
        if len(vector) != self._dimensions:
            raise WrongLine(f"the vector has {len(vector)} numbers, not {self._dimensions}")
        # A quarter of the time of numpy.array. What float32 cannot hold becomes infinite, and is found in its block.
        return self._pack(*vector)


class ParquetCheck:
    """Checks rows of Parquet: see `RowCheck`."""

    def __init__(self, layout: Layout, dimensions: int) -> None:
        self._layout = layout
        self._dimensions = dimensions

    def parse(self, row: ParquetRow, path: str, text_field: TextField) -> Document | DeadLetter | None:
        """Parse the record."""
        line = Line(row.number, row.record, len(row.record))
        return parse_line(line, path, text_field, self._layout.embedding_field, MAX_OUTPUT_LINE_BYTES)

    def vector_alone(self, row: ParquetRow, parsed: Document) -> bytes:
        """Compare a row with its own record."""
        return self.vector_beside(row, parsed)

    def vector_beside(self, row: ParquetRow, source: Document) -> bytes:
        """Compare the record with the source line, and what follows from that with the other columns."""
        if row.record != source.line:
            raise WrongLine("the record is not the source line")
        if row.text != text_as_sent(source.text):
            raise WrongLine("the text is not the record's")
        columns = self._layout.columns or ()
        # `repr` tells NaN from nothing else, and 1 from 1.0 and True.
        expected = column_values(source.line, columns, {})
        if row.values != expected and repr(row.values) != repr(expected):
            name = next(
                c.name for c, is_, be in zip(columns, row.values, expected, strict=True) if repr(is_) != repr(be)
            )
            raise WrongLine(f"the column {name!r} does not have the record's value")
        if len(row.vector) != self._dimensions:
            raise WrongLine(f"the vector has {len(row.vector)} numbers, not {self._dimensions}")
        numbers: bytes = row.vector.astype(np.float32, copy=False).tobytes()
        return numbers
