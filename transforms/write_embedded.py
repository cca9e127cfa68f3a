"""WriteEmbedded: one file of embedded documents a shard, and then its receipt."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam

from transforms.elements import EmbeddedShard
from transforms.ndjson.splice import embedded_lines, json_key
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Provenance, Receipt, encode_receipt
from transforms.reuse.keys import encode_keys
from transforms.storage.api import Crc32c, WrittenFile
from transforms.write_dead_letters import encode_dead_letters

_BLOCK_BYTES = 1 << 18  # as much as is still in the cache when it is written


def write_shard(shard: EmbeddedShard, output: OutputFolder, provenance: Provenance) -> Receipt:
    """Write a shard's embedded documents, if it has any, and its keys and its receipt.

    Args:
        shard: with its vectors.
        output: where to.
        provenance: how it was made.
    """
    name = shard.shard.name
    written = None
    if shard.documents:
        lines = embedded_lines(shard.documents, shard.vectors, json_key(provenance.embedding_field))
        written = output.write(output.embedded(name), _in_blocks(lines))
        output.write(output.keys(name), [encode_keys(document.text for document in shard.documents)])
    receipt = _receipt_of(shard, written, _dead_letter_file(shard, output), provenance)
    output.write(output.receipt(name), [encode_receipt(receipt)])
    return receipt


def _receipt_of(
    shard: EmbeddedShard, written: WrittenFile | None, dead_letter_file: WrittenFile | None, provenance: Provenance
) -> Receipt:
    source = shard.shard.source
    return Receipt(
        shard=shard.shard.name,
        source=source.path,
        index=shard.shard.index,
        start=shard.shard.start,
        end=shard.shard.end,
        last=shard.shard.last,
        source_size=source.size,
        source_version=source.version,
        records=shard.records,
        embedded=len(shard.documents),
        sent=len(shard.documents) - shard.reused - shard.duplicates,
        reused=shard.reused,
        duplicates=shard.duplicates,
        dead_letters=len(shard.dead_letters),
        reasons=Counter(letter.reason.value for letter in shard.dead_letters),
        started_at=shard.started_at,
        finished_at=time.time(),
        output=written,
        dead_letter_output=dead_letter_file,
        statistics=shard.statistics,
        provenance=provenance,
    )


def _dead_letter_file(shard: EmbeddedShard, output: OutputFolder) -> WrittenFile | None:
    """Return what the shard's dead-letter file must be; WriteDeadLetters writes it."""
    if not shard.dead_letters:
        return None
    crc, size = Crc32c(), 0
    for line in encode_dead_letters(shard.dead_letters):
        crc.update(line)
        size += len(line)
    return WrittenFile(output.dead_letters(shard.shard.name), size, crc.base64())


def _in_blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines to blocks: a write a line costs more than encoding it."""
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= _BLOCK_BYTES:
            yield b"".join(block)
            block, size = [], 0
    if block:
        yield b"".join(block)


@dataclass
class WriteEmbedded(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`EmbeddedShard` in, `Receipt` out, when the shard's file and its receipt are written.

    Attributes:
        output: where to.
        provenance: how shards are made, for the receipts.
    """

    output: OutputFolder
    provenance: Provenance

    def expand(self, embedded: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        return embedded | beam.ParDo(_WriteEmbedded(self.output, self.provenance))


@dataclass
class _WriteEmbedded(beam.DoFn):  # type: ignore[misc]
    output: OutputFolder
    provenance: Provenance

    def process(self, shard: EmbeddedShard) -> Iterator[Receipt]:
        yield write_shard(shard, self.output, self.provenance)
