"""ReadShards: shard descriptions to shards of parsed documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam

from transforms import coders  # noqa: F401 # coders registers how the elements are encoded
from transforms.elements import DeadLetter, Document, DocumentShard, Shard, Source
from transforms.ndjson.decompress import DamagedSource, decompressed_chunks
from transforms.ndjson.lines import Line, lines_beginning_in, split_lines
from transforms.ndjson.parse import is_blank, parse_line
from transforms.output.folder import OutputFolder
from transforms.output.receipts import is_done
from transforms.storage import api as storage

MAX_LINE_BYTES = 16 << 20


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
        behind = line.offset + line.length
    while behind > (index + 1) * shard_bytes:
        yield Shard(source, index, index * shard_bytes, (index + 1) * shard_bytes), held
        index, held = index + 1, []
    yield Shard(source, index, index * shard_bytes, (index + 1) * shard_bytes, last=True), held


def parse_shard(shard: Shard, lines: Iterable[Line], text_field: str, embedding_field: str) -> DocumentShard:
    """Parse the lines of one shard."""
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
    return DocumentShard(shard, tuple(documents), tuple(dead_letters), records)


def lines_of(shard: Shard, shard_bytes: int) -> Iterator[tuple[Shard, Iterable[Line]]]:
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
    """Shard descriptions in, `DocumentShard` out; shards that have got a valid receipt are left out.

    Attributes:
        text_field: the field to embed, dotted for a nested one.
        embedding_field: the field that gets the vector.
        shard_bytes: how many decompressed bytes of an unsplittable source make a shard.
        output: where receipts are looked up.
        job: the digest that a valid receipt bears.
    """

    text_field: str
    embedding_field: str
    shard_bytes: int
    output: OutputFolder
    job: str

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        read = beam.ParDo(_ReadShard(self.text_field, self.embedding_field, self.shard_bytes, self.output, self.job))
        return shards | read.with_output_types(DocumentShard)


@dataclass
class _ReadShard(beam.DoFn):  # type: ignore[misc]
    text_field: str
    embedding_field: str
    shard_bytes: int
    output: OutputFolder
    job: str

    def process(self, work: Shard) -> Iterator[DocumentShard]:
        if work.end is not None and is_done(self.output, work, self.job):
            return
        try:
            for shard, lines in lines_of(work, self.shard_bytes):
                if work.end is not None or not is_done(self.output, shard, self.job):
                    yield parse_shard(shard, lines, self.text_field, self.embedding_field)
        except DamagedSource as damage:
            yield DocumentShard(work, failure=str(damage))
