"""ReadShards: shard descriptions to shards of parsed documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import apache_beam as beam
import orjson

from transforms import coders  # noqa: F401 # coders registers how the elements are encoded
from transforms.early_stop import check_dead_letter_ratio
from transforms.elements import DeadLetter, Document, DocumentShard, Shard, Source
from transforms.ndjson.decompress import DamagedSource, decompressed_chunks
from transforms.ndjson.lines import Line, lines_beginning_in, split_lines
from transforms.ndjson.parse import TextField, is_blank, parse_line
from transforms.output.folder import JOB, OutputFolder
from transforms.output.receipts import is_done
from transforms.storage import api as storage

MAX_LINE_BYTES = 16 << 20  # of a record; a longer line has lost its newlines, and must not fill the memory
# Each record takes OBJECT_BYTES beside its line: a shard of tiny lines would take many times its size.
MAX_SHARD_RECORDS = 400_000
_DEAD_LETTERS_A_LOOK = 50_000  # within one shard; whole shards are judged, sooner, when they are embedded
DAMAGED = f"{JOB}/damaged"


class ShardTooDense(Exception):
    """A shard has more records than fit into memory."""


class SourceChanged(Exception):
    """A source is not what the plan saw; its shards would be of two different files."""


def cut_stream(lines: Iterable[Line], source: Source, shard_bytes: int) -> Iterator[tuple[Shard, list[Line]]]:
    """Group a stream's lines into shards just as byte ranges of a seekable file would.

    Shard k holds the lines that begin in `[k * shard_bytes, (k + 1) * shard_bytes)` and are not blank. There is always
    at least one shard, and the last one reaches the end of the stream; a final newline alone makes no shard.
    """
    index, held, behind = 0, list[Line](), 0
    for line in lines:
        while line.offset >= (index + 1) * shard_bytes:
            yield Shard(source, index, index * shard_bytes, (index + 1) * shard_bytes), held
            index, held = index + 1, []
        if not is_blank(line):  # millions of them would be in one shard
            held.append(line)
            _require_few(len(held), source, index)
        behind = line.offset + line.length
    while behind > (index + 1) * shard_bytes:
        yield Shard(source, index, index * shard_bytes, (index + 1) * shard_bytes), held
        index, held = index + 1, []
    yield Shard(source, index, index * shard_bytes, (index + 1) * shard_bytes, last=True), held


def _require_few(records: int, source: Source, index: int) -> None:
    if records > MAX_SHARD_RECORDS:
        raise ShardTooDense(
            f"{source.path} has more than {MAX_SHARD_RECORDS} records in its shard {index}, which would take too much "
            "memory. If the lines are meant to be so short, run with a smaller --shard_bytes."
        )


def parse_shard(
    shard: Shard,
    lines: Iterable[Line],
    text_field: TextField,
    embedding_field: str,
    max_dead_letter_ratio: float = 1.0,
) -> DocumentShard:
    """Parse the lines of one shard.

    Args:
        shard: which one.
        lines: of it.
        text_field: the field to embed.
        embedding_field: the field that gets the vector.
        max_dead_letter_ratio: dead letters a record that the whole run may have.

    Raises:
        ShardTooDense: if there are more than `MAX_SHARD_RECORDS` of them.
        TooManyDeadLetters: if so many of them are dead letters that the rest need not be tried.
    """
    documents: list[Document] = []
    dead_letters: list[DeadLetter] = []
    records = 0
    for line in lines:
        record = parse_line(line, shard.source.path, text_field, embedding_field, MAX_LINE_BYTES)
        if record is None:
            continue
        records += 1
        if isinstance(record, Document):
            documents.append(record)
        else:
            dead_letters.append(record)
            if len(dead_letters) % _DEAD_LETTERS_A_LOOK == 0:
                check_dead_letter_ratio(
                    records, Counter(letter.reason.value for letter in dead_letters), max_dead_letter_ratio
                )
        if records > MAX_SHARD_RECORDS:
            _require_few(records, shard.source, shard.index)
    return DocumentShard(shard, tuple(documents), tuple(dead_letters), records)


def lines_by_shard(shard: Shard, shard_bytes: int) -> Iterator[tuple[Shard, Iterable[Line]]]:
    """Read one work item: a byte range, or a whole unsplittable source shard after shard.

    Raises:
        DamagedSource: behind the last shard that is whole.
        SourceChanged: if the source is not what the plan saw.
    """
    source = shard.source
    _require_unchanged(source)
    with storage.open_for_reading(source.path) as file:
        if shard.end is not None:
            yield shard, lines_beginning_in(file, shard.start, shard.end, MAX_LINE_BYTES)
        else:
            chunks = decompressed_chunks(file, source.path, source.size)
            yield from cut_stream(split_lines(chunks, 0, MAX_LINE_BYTES), source, shard_bytes)
    _require_unchanged(source)  # it may have become another file while it was read


def _require_unchanged(source: Source) -> None:
    now = storage.stat(source.path)
    if now is None:
        raise SourceChanged(
            f"{source.path} was there when the run was planned and is gone now. Put it back and run again."
        )
    if not source.is_unchanged(now.size, now.version):
        raise SourceChanged(f"{source.path} changed since the run was planned. Run again: its shards will be redone.")


@dataclass
class ReadShards(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """Shard descriptions in, `DocumentShard` out; shards that have a valid receipt are left out.

    Attributes:
        text_field: the field to embed, dotted for a nested one.
        embedding_field: the field that gets the vector.
        shard_bytes: how many decompressed bytes of an unsplittable source make a shard.
        output: where receipts are looked up.
        job: the digest that a valid receipt holds.
        max_dead_letter_ratio: dead letters a record that the whole run may have; with far more it stops early.
    """

    text_field: TextField
    embedding_field: str
    shard_bytes: int
    output: OutputFolder
    job: str
    max_dead_letter_ratio: float = 1.0

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        settings = {each.name: getattr(self, each.name) for each in fields(self)}
        return shards | beam.FlatMap(read_work, **settings).with_output_types(DocumentShard)


def read_work(
    work: Shard,
    text_field: TextField,
    embedding_field: str,
    shard_bytes: int,
    output: OutputFolder,
    job: str,
    max_dead_letter_ratio: float,
) -> Iterator[DocumentShard]:
    """Yield the shards of one work item that are not done; the arguments are the attributes of `ReadShards`.

    Raises:
        SourceChanged: if the source is not what the plan saw.
    """
    if work.end is not None and is_done(output, work, job):
        return
    whole = 0
    try:
        for shard, lines in lines_by_shard(work, shard_bytes):
            if work.end is not None or not is_done(output, shard, job):
                yield parse_shard(shard, lines, text_field, embedding_field, max_dead_letter_ratio)
            whole += 1
    except (DamagedSource, ShardTooDense) as damage:
        # Not raised: a runner would try it again and then end the run, with all other sources unfinished.
        record_damage(output, work, str(damage), whole * shard_bytes if work.end is None else None)


def record_damage(output: OutputFolder, work: Shard, error: str, kept_bytes: int | None) -> None:
    """Record for the command that a work item cannot be read to its end.

    Args:
        output: the folder.
        work: the item.
        error: why it cannot be read.
        kept_bytes: how many (decompressed) bytes of a compressed source make whole shards, which are kept.
    """
    kept = ""
    if kept_bytes is not None:
        kept = (
            f" The records in its first {kept_bytes} decompressed bytes are kept."
            if kept_bytes
            else (" None of its records are kept: it has no whole shard before that.")
        )
    name = f"{DAMAGED}/{work.source.name}" + ("" if work.end is None else f"-{work.index:05d}")
    output.write(f"{name}.json", [orjson.dumps({"source": work.source.path, "error": f"{error}{kept}"})])


def read_damage(output: OutputFolder, files: Iterable[str]) -> list[str]:
    """Return what `record_damage` wrote into the folder, a sentence or two each, in the order of the names.

    Args:
        output: the folder.
        files: the names in it.
    """
    found = []
    for name in sorted(name for name in files if name.startswith(f"{DAMAGED}/")):
        try:
            value = orjson.loads(output.read(name) or b"")
        except orjson.JSONDecodeError:
            value = None
        error = value.get("error") if isinstance(value, dict) else None
        found.append(error if isinstance(error, str) else f"{output.path(name)} cannot be read")
    return found
