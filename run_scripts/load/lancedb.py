"""Load an output folder of tayyar run into LanceDB."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# Python puts this file's folder first, where `import lancedb` would find this file; the checkout takes its place.
sys.path[0] = str(Path(__file__).parents[2])

import pyarrow as pa

from pipeline.errors import UsageError
from run_scripts.load.loading import DatabaseError, EmbeddedFolder, how_to_install, run

try:
    import lancedb
except ImportError as missing:
    sys.exit(how_to_install(missing))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise a DatabaseError for what LanceDB raises where a bucket cannot be reached, or a file cannot be read."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise DatabaseError(str(error)) from error


class LanceTable:
    """A table of LanceDB."""

    def __init__(self, database: str, name: str, folder: EmbeddedFolder) -> None:
        self._schema = pa.schema([field.with_name(_column_name(field.name)) for field in folder.schema])
        _require_unique_names(folder.schema.names)
        with _refusals():
            connection = lancedb.connect(database)
            try:
                self._table = connection.create_table(name, schema=self._schema, exist_ok=True)
            except ValueError as error:  # its name, or the columns that an existing one has
                raise UsageError(f"LanceDB refuses the table {name!r}: {error}. Give another --table.") from error

    def count_rows(self) -> Counter[str]:
        """See `Table`. One column is read, as a stream."""
        counts: Counter[str] = Counter()
        with _refusals():
            for batch in self._table.search().select(["loaded_from"]).to_batches():
                found = batch["loaded_from"].value_counts().to_pylist()
                counts.update({each["values"]: each["counts"] for each in found})
        return counts

    def replace(self, version: str, former: Collection[str], batches: Iterator[pa.RecordBatch]) -> None:
        """See `Table`. A table has no unique keys: rows of this version, of which some were deleted, go first."""
        self.delete([version])
        failures: list[Exception] = []
        try:
            # One commit, which a killed load leaves out as a whole.
            with _refusals():
                self._table.add(pa.RecordBatchReader.from_batches(self._schema, self._named(batches, failures)))
        except DatabaseError:
            if failures:
                raise failures[0] from None
            raise
        self.delete(former)

    def _named(self, batches: Iterator[pa.RecordBatch], failures: list[Exception]) -> Iterator[pa.RecordBatch]:
        """Yield the batches, and keep what ends them: through Arrow's C interface, only an exception's text comes."""
        try:
            for batch in batches:
                yield batch.rename_columns(self._schema.names)
        except Exception as error:  # of any kind, or a failure of this program would look like the database's
            failures.append(error)
            raise

    def delete(self, versions: Collection[str]) -> None:
        """See `Table`."""
        if versions:
            names = ", ".join("'" + version.replace("'", "''") + "'" for version in versions)
            with _refusals():
                self._table.delete(f"loaded_from IN ({names})")

    def close(self) -> None:
        """See `Table`. Its owner calls `optimize()`, whose memory grows with the table."""


def _column_name(name: str) -> str:
    """Return a column's name in LanceDB, where a dot would be the path to a nested column."""
    return name.replace(".", "_")


def _require_unique_names(names: Sequence[str]) -> None:
    """Check that no two columns get the same name in LanceDB.

    Raises:
        UsageError: naming the first two that would.
    """
    former: dict[str, str] = {}
    for name in names:
        other = former.setdefault(_column_name(name), name)
        if other != name:
            raise UsageError(
                f"the columns {other} and {name} would both be {_column_name(name)} in LanceDB, whose names have no "
                "dots. Run again without one --column; record has all fields."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Load."""
    return run(__doc__, "the database's folder, or s3://… or gs://…", LanceTable, arguments)


if __name__ == "__main__":
    sys.exit(main())
