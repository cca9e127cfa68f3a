"""WriteEmbedded: one file of embedded documents a shard, and then its receipt."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import apache_beam as beam

from transforms.elements import EmbeddedShard
from transforms.output.folder import OutputFolder
from transforms.output.formats import format_of
from transforms.output.layout import Layout
from transforms.output.receipts import MAX_TRUNCATED_PLACES, Provenance, Receipt, encode_receipt
from transforms.reuse.keys import encode_keys
from transforms.storage.api import WrittenFile
from transforms.write_dead_letters import encode_dead_letter


def write_shard(shard: EmbeddedShard, output: OutputFolder, provenance: Provenance, layout: Layout) -> Receipt:
    """Write a shard's embedded documents, if it has any, and its keys and its receipt.

    Args:
        shard: with its vectors.
        output: where to.
        provenance: how it was made.
        layout: what its output looks like.
    """
    name = shard.shard.name
    written = None
    unfit: Counter[str] = Counter()
    if shard.documents:
        file = output.embedded(name, layout.format)
        form = format_of(file)
        rows = form.rows_of(shard.documents, shard.vectors, layout, unfit)
        written = output.write(file, form.encode(rows, layout, shard.vectors.shape[1]))
        output.write(output.keys(name), [encode_keys(document.text for document in shard.documents)])
    receipt = _receipt_of(shard, written, _dead_letter_file(shard, output), provenance, output.run, unfit)
    output.write(output.receipt(name), [encode_receipt(receipt)])
    output.delete(shard.partial)  # from here on, the output has their vectors
    return receipt


def _receipt_of(
    shard: EmbeddedShard,
    written: WrittenFile | None,
    dead_letter_file: WrittenFile | None,
    provenance: Provenance,
    run: str,
    unfit: Mapping[str, int],
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
        nan_lines=sum(document.has_nan for document in shard.documents),
        dead_letters=len(shard.dead_letters),
        reasons=Counter(letter.reason.value for letter in shard.dead_letters),
        truncated=len(shard.truncated),
        truncated_at=shard.truncated[:MAX_TRUNCATED_PLACES],
        unfit=unfit,
        started_at=shard.started_at,
        finished_at=time.time(),
        output=written,
        dead_letter_output=dead_letter_file,
        statistics=shard.statistics,
        provenance=provenance,
        run=run,
    )


def _dead_letter_file(shard: EmbeddedShard, output: OutputFolder) -> WrittenFile | None:
    """Return what the shard's dead-letter file must be; WriteDeadLetters writes it."""
    if not shard.dead_letters:
        return None
    return WrittenFile.of(output.dead_letters(shard.shard.name), map(encode_dead_letter, shard.dead_letters))


@dataclass
class WriteEmbedded(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`EmbeddedShard` in, `Receipt` out, when the shard's file and its receipt are written.

    Attributes:
        output: where to.
        provenance: how shards are made, for the receipts.
        layout: what their outputs look like.
    """

    output: OutputFolder
    provenance: Provenance
    layout: Layout

    def expand(self, embedded: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        # Not by arguments of Map: with such, Beam keeps the last element until the next one comes, here a shard of
        # 45 MB.
        write = functools.partial(write_shard, output=self.output, provenance=self.provenance, layout=self.layout)
        return embedded | beam.Map(write)
