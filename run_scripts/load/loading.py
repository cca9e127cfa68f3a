"""What the recipes share: an output folder as Arrow record batches, and the loop that keeps a table equal to it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import uuid
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.logs import configure_logging

configure_logging()  # first of all: Beam warns when it is imported

from pipeline.commands.console import say
from pipeline.commands.options.shared import output_folder
from pipeline.errors import ExitCode, NotProven, UsageError, message_lines
from pipeline.job.ledger import read_job_ledger
from pipeline.job.spec import JobSpec, require_job
from pipeline.reporting.numbers import count
from pipeline.runners.progress import CountBar
from transforms.elements import Document, text_as_sent
from transforms.ndjson.lines import chunks_from, split_lines
from transforms.ndjson.parse import BOM, parse_object, text_of, value_of
from transforms.ndjson.splice import json_key, split_document
from transforms.output.folder import OutputFolder
from transforms.output.ndjson_output import MAX_OUTPUT_LINE_BYTES
from transforms.output.receipts import Receipt
from transforms.storage import api as storage
from transforms.storage.api import WrittenFile
from transforms.storage.base import StorageError

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "tayyar")  # of all ids, so that every load gives a row the same one
_BATCH_ROWS = 2048
_BATCH_BYTES = 1 << 24  # of lines: what ends a batch of long ones


class DatabaseError(Exception):
    """What a database's library raises as an error of a common kind, such as a RuntimeError."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """The embedded documents of one shard.

    Attributes:
        receipt: the shard's; it has an output.
        version: the shard's name, `@`, and a digest of the file and of where ids come from. Every row has it in its
            column `loaded_from`, so a table itself shows which shards are loaded, and as of when.
    """

    receipt: Receipt
    version: str

    @property
    def path(self) -> str:
        """The file's name in the folder."""
        assert self.receipt.output is not None
        return self.receipt.output.path

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet; otherwise it is NDJSON."""
        return self.path.endswith(".parquet")

    @property
    def rows(self) -> int:
        """Documents in the file."""
        return self.receipt.embedded


class EmbeddedFolder:
    """A complete output folder, to be read as record batches of `schema`.

    Args:
        root: the folder, a local path or gs://… or s3://….
        id_field: the field of the records, dotted for a nested one, whose value is the row's id. None for UUIDs that
            follow from the shard's name and the row's place in it.

    Raises:
        UsageError: if it is not an output folder, or `root` names none.
        NotProven: if it is not complete, or its ledger does not balance: then rows of shards that are being done again
            would be taken for removed ones.
    """

    def __init__(self, root: str, id_field: str | None) -> None:
        self.output = OutputFolder(output_folder(root), run="load")
        self.id_field = id_field
        self.job: JobSpec = require_job(self.output)
        ledger = read_job_ledger(self.output, self.job)
        ledger.require_balance()
        # Outputs of inputs that are gone count until `tayyar run --prune` removes them.
        receipts = (*ledger.receipts(), *ledger.gone_receipts)
        self.files = [OutputFile(receipt, self._version(receipt)) for receipt in receipts if receipt.output is not None]
        self.schema = pa.schema(
            [
                ("row_id", pa.string()),
                ("loaded_from", pa.string()),
                ("text", pa.string()),
                ("record", pa.string()),
                *self._columns(),
                ("embedding", pa.list_(pa.float32(), self.job.space.dimensions)),
            ]
        )
        if len(set(self.schema.names)) < len(self.schema.names):
            raise UsageError(
                f"{self.output.root} has a column named row_id, loaded_from, text, record or embedding, which every "
                "table has already. Run again without this --column; record has all fields."
            )

    def require_few(self, max_shards: int) -> None:
        """Check that a database can count the rows of every shard.

        Raises:
            UsageError: if there are more than `max_shards`.
        """
        if len(self.files) > max_shards:
            raise UsageError(
                f"{self.output.root} has {count(len(self.files), 'shard')} with vectors, more than the {max_shards:,} "
                "whose rows this database counts. Run again with a larger --shard_bytes."
            )

    @property
    def why_rows_are_missing(self) -> str:
        """The likely cause if a table has fewer rows than the folder has documents."""
        if self.id_field is None:
            return "something else writes to it"
        return f"the values of {self.id_field!r} are not unique"

    def _columns(self) -> list[pa.Field]:
        """Return the columns that Parquet files have beside the record, its text and its vector: of the first file."""
        for file in self.files:
            if file.is_parquet:
                with storage.open_for_reading(self.output.path(file.path)) as stream:
                    return list(pq.read_schema(stream))[2:-1]
        return []

    def _version(self, receipt: Receipt) -> str:
        assert receipt.output is not None
        made_of = f"{receipt.output.bytes} {receipt.output.crc32c} {self.id_field}"
        return f"{receipt.shard}@{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"

    def batches(self, file: OutputFile) -> Iterator[pa.RecordBatch]:
        """Yield a shard's rows, some thousands at a time.

        Raises:
            NotProven: if the file is not the one that its receipt vouches for, before anything is yielded; or if a
                record has no id.
        """
        self._require_intact(file)
        row = 0
        with storage.open_for_reading(self.output.path(file.path)) as stream:
            for batch in self._from_parquet(stream, file) if file.is_parquet else self._from_ndjson(stream, file):
                named = {
                    "row_id": pa.array(self._ids(batch, file, row), pa.string()),
                    "loaded_from": pa.nulls(len(batch), pa.string()).fill_null(file.version),
                    **dict(zip(batch.schema.names, batch.columns, strict=True)),
                }
                # A file of a former run may lack a column, or have it with another type; then it is null.
                arrays = [
                    named[field.name]
                    if field.name in named and named[field.name].type == field.type
                    else pa.nulls(len(batch), field.type)
                    for field in self.schema
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)
                row += len(batch)

    def _require_intact(self, file: OutputFile) -> None:
        """Compare the file's checksum with its receipt's: a damaged vector may still look like one."""
        with storage.open_for_reading(self.output.path(file.path)) as stream:
            found = WrittenFile.of(file.path, chunks_from(stream))
        if found != file.receipt.output:
            raise NotProven(
                f"{file.path} has another checksum than in its receipt: it is damaged. Delete "
                f"{self.output.receipt(file.receipt.shard)} and run again, which embeds the shard anew."
            )

    def _from_parquet(self, stream: BinaryIO, file: OutputFile) -> Iterator[pa.RecordBatch]:
        parquet, field = pq.ParquetFile(stream), file.receipt.provenance.embedding_field
        # A row group at a time: of long lines, a batch that spans many would not fit into the memory.
        for group in range(parquet.metadata.num_row_groups):
            for batch in parquet.iter_batches(_BATCH_ROWS, [group]):
                vectors = batch.column(field).flatten().to_numpy()
                yield batch.drop_columns([field]).append_column("embedding", self._embedding(vectors))

    def _from_ndjson(self, stream: BinaryIO, file: OutputFile) -> Iterator[pa.RecordBatch]:
        made, size = file.receipt.provenance, 0
        key = json_key(made.embedding_field)
        texts, records, vectors = list[bytes](), list[bytes](), array("f")

        def batch() -> pa.RecordBatch:
            arrays = [pa.array(texts, pa.string()), pa.array(records, pa.string())]
            embedding = self._embedding(np.frombuffer(vectors, np.float32))
            return pa.RecordBatch.from_arrays([*arrays, embedding], names=["text", "record", "embedding"])

        for line in split_lines(chunks_from(stream), 0, MAX_OUTPUT_LINE_BYTES):
            record, _ = parse_object(line.content.removeprefix(BOM))
            text = text_of(record, made.text_field)
            texts.append(text_as_sent(text))
            records.append(_without_vector(Document(line.offset, line.content, text, has_field=True), key))
            vectors.extend(record[made.embedding_field])
            size += line.length
            if len(texts) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch()
                texts, records, vectors, size = [], [], array("f"), 0
        if texts:
            yield batch()

    def _embedding(self, numbers: npt.NDArray[np.float32 | np.float16]) -> pa.Array:
        numbers = numbers.astype(np.float32, copy=False)
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers), self.job.space.dimensions)

    def _ids(self, batch: pa.RecordBatch, file: OutputFile, first_row: int) -> list[bytes]:
        shard = file.receipt.shard
        if self.id_field is None:
            rows = range(first_row, first_row + len(batch))
            return [str(uuid.uuid5(NAMESPACE, f"{shard}:{row}")).encode() for row in rows]
        return [
            text_as_sent(_id_in(record, self.id_field, f"row {row} of {shard}"))
            for row, record in enumerate(batch.column("record").to_pylist(), first_row)
        ]


def _id_in(line: str, field: str, place: str) -> str:
    """Return the id that a record has in a field.

    Raises:
        NotProven: naming the place, if it has none.
    """
    record, _ = parse_object(line.encode().removeprefix(BOM))
    value = value_of(record, field)
    if type(value) not in (str, int):
        raise NotProven(
            f"{place} has {value!r} in the field {field!r}, where --id needs a text or a whole number. Name another "
            "field, or leave --id out."
        )
    return str(value)


def vectors_of(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Return the embeddings in a batch: float32[rows, dimensions]."""
    vectors: npt.NDArray[np.float32] = batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)
    return vectors


def _without_vector(document: Document, key: bytes) -> bytes:
    """Return the input line that an output line was made of; a value that the vector replaced is null."""
    before, behind = split_document(document, key)
    added = b"," + key + b":"
    if before.endswith(added) and behind.lstrip().startswith(b"}"):
        return before.removesuffix(added) + behind
    return before + b"null" + behind


class Table(Protocol):
    """A table, collection or index that gets the rows of one output folder."""

    def count_rows(self) -> Mapping[str, int]:
        """Return how many rows there are of each value of `loaded_from`."""

    def replace(self, version: str, former: Collection[str], batches: Iterator[pa.RecordBatch]) -> None:
        """Write a shard's rows, and delete those of its former versions.

        If this is interrupted, fewer rows of `version` than the shard has must be there, or all of them.
        """

    def delete(self, versions: Collection[str]) -> None:
        """Delete the rows that were loaded from these."""

    def close(self) -> None:
        """Leave the database."""


def load(folder: EmbeddedFolder, table: Table) -> None:
    """Bring a table to the state of a folder: write shards that are new or changed, delete rows that are gone.

    Args:
        folder: whose documents.
        table: which has rows of this folder only, of any former state of it.

    Raises:
        UsageError: if the table holds another folder's rows.
        NotProven: if the table does not hold every document once in the end.
    """
    loaded = table.count_rows()
    current = {file.version: file.rows for file in folder.files}
    shards = {shard_of(version) for version in current}
    if loaded and shards.isdisjoint(map(shard_of, loaded)):
        raise UsageError(
            f"the table holds rows of {shard_of(min(loaded))}, and no shard of {folder.output.root}: they would be "
            "deleted. Give each output folder its own --table, or drop this one."
        )
    left = [file for file in folder.files if loaded.get(file.version) != file.rows]
    rows = sum(file.rows for file in left)
    with CountBar(rows, "row", visible=None if rows else False) as progress:
        for file in left:
            former = [each for each in loaded if shard_of(each) == file.receipt.shard and each != file.version]
            table.replace(file.version, former, _counted(folder.batches(file), progress))
    # Counted again: what an earlier load left behind when it was killed may be stale as well.
    if gone := table.count_rows().keys() - current.keys():
        table.delete(sorted(gone))
    _require_all(current, table.count_rows(), folder)
    say(
        f"{len(left):,} of {count(len(folder.files), 'shard')} loaded; the table has "
        f"{count(sum(current.values()), 'row')}"
    )


def shard_of(version: str) -> str:
    """Return the shard whose rows have this value of `loaded_from`."""
    return version.rpartition("@")[0]


def _counted(batches: Iterator[pa.RecordBatch], progress: CountBar) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        progress.add(batch.num_rows)


def _require_all(current: Mapping[str, int], found: Mapping[str, int], folder: EmbeddedFolder) -> None:
    for version, rows in current.items():
        if found.get(version) != rows:
            raise NotProven(
                f"the table has {found.get(version, 0)} of {rows} rows of {shard_of(version)}: "
                f"{folder.why_rows_are_missing}"
            )


def run(
    description: str | None,
    database: str,
    open_table: Callable[[str, str, EmbeddedFolder], Table],
    arguments: Sequence[str] | None = None,
    failures: tuple[type[Exception], ...] = (),
) -> int:
    """Carry out a recipe's command line and return its exit code.

    Args:
        description: the recipe's docstring.
        database: the help of --database.
        open_table: called with --database, --table and the folder.
        arguments: of the command line; None for the process's own.
        failures: what the database's library raises where it cannot be reached, or refuses something, besides
            `DatabaseError`.
    """
    options = _parser(description, database).parse_args(arguments)
    refusals: tuple[type[Exception], ...] = (DatabaseError, *failures)
    try:
        folder = EmbeddedFolder(options.output, options.id)
        name = options.table or folder.output.root.rpartition("/")[2]
        with contextlib.closing(open_table(options.database, name, folder)) as table:
            load(folder, table)
    except (UsageError, NotProven, StorageError, OSError) as error:
        first, *more = message_lines(error)
        for line in (f"{sys.argv[0]}: {first}", *more):
            say(line, sys.stderr)
        codes: dict[type[Exception], ExitCode] = {UsageError: ExitCode.USAGE, NotProven: ExitCode.NOT_PROVEN}
        return codes.get(type(error), ExitCode.FAILED)
    except refusals as error:
        message = " ".join(str(error).split()).rstrip(".")
        say(f"{sys.argv[0]}: the database: {message}. Check --database, the server, and your rights there.", sys.stderr)
        return ExitCode.FAILED
    return ExitCode.DONE


def how_to_install(missing: ImportError) -> str:
    """Return the message of a recipe that lacks a package."""
    return f"{sys.argv[0]}: a package is missing ({missing.name}): {sys.executable} -m pip install 'tayyar[load]'"


def _parser(description: str | None, database: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument("--output", required=True, help="an output folder of tayyar run, complete")
    made.add_argument("--database", required=True, help=database)
    made.add_argument("--table", help="its name there (default: the output folder's); one for each folder")
    made.add_argument(
        "--id", metavar="FIELD", help="the field of the records, dotted for a nested one, that holds unique ids"
    )
    return made
