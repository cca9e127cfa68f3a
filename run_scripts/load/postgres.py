"""Load an output folder of tayyar run into PostgreSQL with pgvector, by COPY in its binary form."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# Python puts this file's folder first, where other recipes have the names of packages; the checkout takes its place.
sys.path[0] = str(Path(__file__).parents[2])

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NotProven
from run_scripts.load.loading import EmbeddedFolder, how_to_install, run, shard_of, vectors_of

try:
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg import sql
except ImportError as missing:
    sys.exit(how_to_install(missing))

_TYPES = {pa.string(): "text", pa.int64(): "int8", pa.float64(): "float8", pa.bool_(): "bool"}


class PostgresTable:
    """A table of PostgreSQL with a column of pgvector's type `vector`."""

    def __init__(self, database: str, name: str, folder: EmbeddedFolder) -> None:
        self._why_rows_are_missing = folder.why_rows_are_missing
        self._connection = psycopg.connect(database, autocommit=True)
        self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(self._connection)
        self._types = [_TYPES.get(field.type, "vector") for field in folder.schema]
        self._columns = sql.SQL(", ").join(map(sql.Identifier, folder.schema.names))
        self._name = sql.Identifier(name)
        *plain, embedding = folder.schema
        columns = [sql.SQL("{} {}").format(sql.Identifier(each.name), sql.SQL(_TYPES[each.type])) for each in plain]
        columns.append(sql.SQL("embedding vector({})").format(embedding.type.list_size))
        create = sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY (row_id))")
        self._connection.execute(create.format(self._name, sql.SQL(", ").join(columns)))
        index = sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} (loaded_from)")
        self._connection.execute(index.format(sql.Identifier(f"{name}_loaded_from"), self._name))

    def count_rows(self) -> dict[str, int]:
        """See `Table`."""
        count = sql.SQL("SELECT loaded_from, count(*) FROM {} WHERE loaded_from IS NOT NULL GROUP BY 1")
        return dict(self._connection.execute(count.format(self._name)).fetchall())

    def replace(self, version: str, former: Collection[str], batches: Iterator[pa.RecordBatch]) -> None:
        """See `Table`. All of it is one transaction.

        Raises:
            NotProven: if two rows of a batch have the same id. Of two in different batches, the later one stays.
        """
        try:
            with self._connection.transaction():
                self.delete([version, *former])
                for batch in map(_without_nul, batches):
                    # With --id, a row that moved here from another shard is still there as well.
                    delete = sql.SQL("DELETE FROM {} WHERE row_id = ANY(%s)").format(self._name)
                    self._connection.execute(delete, [batch["row_id"].to_pylist()])
                    self._copy(batch)
        except psycopg.errors.UniqueViolation as error:
            raise NotProven(
                f"{shard_of(version)} is not loaded: {self._why_rows_are_missing}: {error.diag.message_detail}"
            ) from error

    def _copy(self, batch: pa.RecordBatch) -> None:
        *plain, _ = batch.columns
        copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self._name, self._columns)
        with self._connection.cursor().copy(copy_in) as copy:
            copy.set_types(self._types)
            for row in zip(*(column.to_pylist() for column in plain), vectors_of(batch), strict=True):
                copy.write_row(row)

    def delete(self, versions: Collection[str]) -> None:
        """See `Table`."""
        delete = sql.SQL("DELETE FROM {} WHERE loaded_from = ANY(%s)").format(self._name)
        self._connection.execute(delete, [list(versions)])

    def close(self) -> None:
        """See `Table`."""
        self._connection.close()


def _without_nul(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Replace the one character that PostgreSQL's text does not hold."""
    columns = [pc.replace_substring(each, "\0", "\ufffd") if each.type == pa.string() else each for each in batch]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load."""
    return run(
        __doc__,
        "postgresql://USER@HOST/DATABASE, or '' for what PGHOST, PGUSER … name",
        PostgresTable,
        arguments,
        failures=(psycopg.Error,),  # not OperationalError alone: a server may lack pgvector, or the right to create it
    )


if __name__ == "__main__":
    sys.exit(main())
