"""Load an output folder of tayyar run into LanceDB."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# Python puts this file's folder first, where `import lancedb` would find this file; the checkout takes its place.
sys.path[0] = str(Path(__file__).parents[2])

import pyarrow as pa

from pipeline.errors import NotProven
from run_scripts.load.loading import EmbeddedFolder, how_to_install, run

try:
    import lancedb
except ImportError as missing:
    sys.exit(how_to_install(missing))


class LanceTable:
    """A table of LanceDB."""

    def __init__(self, database: str, name: str, folder: EmbeddedFolder) -> None:
        # A dot in a column's name would be the path to a nested one.
        self._schema = pa.schema([field.with_name(field.name.replace(".", "_")) for field in folder.schema])
        self._table = lancedb.connect(database).create_table(name, schema=self._schema, exist_ok=True)

    def count_rows(self) -> Counter[str]:
        """See `Table`. One column is read, as a stream."""
        counts: Counter[str] = Counter()
        for batch in self._table.search().select(["loaded_from"]).to_batches():
            counts.update({each["values"]: each["counts"] for each in batch["loaded_from"].value_counts().to_pylist()})
        return counts

    def replace(self, version: str, former: Collection[str], batches: Iterator[pa.RecordBatch]) -> None:
        """See `Table`. A table has no unique keys: rows of this version, of which some were deleted, go first."""
        self.delete([version])
        failures: list[NotProven] = []
        try:
            # One commit, which a killed load leaves out as a whole.
            self._table.add(pa.RecordBatchReader.from_batches(self._schema, self._named(batches, failures)))
        except RuntimeError:
            if failures:
                raise failures[0] from None
            raise
        self.delete(former)

    def _named(self, batches: Iterator[pa.RecordBatch], failures: list[NotProven]) -> Iterator[pa.RecordBatch]:
        """Yield the batches, and keep what ends them: through Arrow's C interface, only an exception's text comes."""
        try:
            for batch in batches:
                yield batch.rename_columns(self._schema.names)
        except NotProven as error:
            failures.append(error)
            raise

    def delete(self, versions: Collection[str]) -> None:
        """See `Table`."""
        if versions:
            names = ", ".join("'" + version.replace("'", "''") + "'" for version in versions)
            self._table.delete(f"loaded_from IN ({names})")

    def close(self) -> None:
        """See `Table`. Its owner calls `optimize()`, whose memory grows with the table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Load."""
    return run(__doc__, "the database's folder, or s3://… or gs://…", LanceTable, arguments)


if __name__ == "__main__":
    sys.exit(main())
