"""One interface to the formats of outputs: the ending of a file's name chooses the module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, Protocol

from transforms.elements import Document, Vectors
from transforms.ndjson.parse import TextField
from transforms.output import ndjson_output, parquet_output
from transforms.output.layout import NDJSON, PARQUET, Layout
from transforms.storage.api import Digest

Row = Any  # one embedded record in its format's own shape, which only the functions of that format look into


class Format(Protocol):
    """The functions of a module for one format."""

    PLACE: str  # what `place` counts, for messages: `byte` or `row`

    def rows_of(
        self, documents: Sequence[Document], vectors: Vectors, layout: Layout, unfit: MutableMapping[str, int]
    ) -> Iterator[Row]:
        """Yield the rows of n documents.

        Args:
            documents: n documents.
            vectors: float32[n, dimensions], each row of which fits the layout's vector type.
            layout: with the embedding field and the columns.
            unfit: counts, by the column's name, the values that do not fit.
        """

    def encode(self, rows: Iterable[Row], layout: Layout, dimensions: int) -> Iterator[bytes]:
        """Yield the bytes of the file of these rows, at least one, in chunks; the same for the same rows.

        Args:
            rows: new ones, or `stored` rows of another file of this layout.
            layout: of the file.
            dimensions: of each vector.
        """

    def read_rows(
        self,
        path: str,
        embedding_field: str,
        complain: Callable[[str], None],
        digest: Digest | None,
        layout: Layout | None = None,
    ) -> Iterator[Row]:
        """Yield a file's rows, in bounded memory.

        Args:
            path: of the file.
            embedding_field: the field or the column that holds the vector.
            complain: called with each thing that is wrong with the file as a whole, before the iterator ends.
            digest: the file's, as its receipt has it; None to compare nothing.
            layout: of the file; None where only `place` and `text_and_vector` are called with the rows, and less need
                be read.

        Raises:
            FileNotFoundError: if it is gone.
        """

    def place(self, row: Row) -> int:
        """Return where in its file a row that was read is: see `PLACE`."""

    def stored(self, row: Row) -> Row:
        """Return a row that was read as `encode` takes it."""

    def text_and_vector(self, row: Row, text_field: TextField, embedding_field: str) -> tuple[str, Any]:
        """Return a row's text, as it was sent at least, and the numbers of its vector.

        Raises:
            ValueError: if it has no text; what the vector is, is not checked.
        """

    def read_at(self, path: str, place: int, embedding_field: str) -> Row | None:
        """Return the row at a place, with its text and its vector at least; None if there is none."""


def format_of(name: str) -> Format:
    """Return the format of a file, by its name or path."""
    ending = name.rpartition(".")[2]
    if ending == PARQUET:
        return parquet_output
    if ending == NDJSON:
        return ndjson_output
    raise ValueError(f"{name} is the name of no output")
