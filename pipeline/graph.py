"""The graph: how the transforms follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam

from transforms.elements import Shard
from transforms.embed_shards import EmbedShards, PartialSettings
from transforms.list_shards import ListShards
from transforms.output.folder import OutputFolder
from transforms.output.layout import Layout
from transforms.output.receipts import Provenance
from transforms.read_shards import ReadShards
from transforms.reuse.index import IndexHandle
from transforms.sum_receipts import SumReceipts
from transforms.tei.settings import EndpointSettings
from transforms.write_dead_letters import WriteDeadLetters
from transforms.write_embedded import WriteEmbedded


class Settings(NamedTuple):
    """The settings of the transforms.

    Attributes:
        endpoint: where and how to embed; its `space` is known.
        output: where to.
        provenance: how shards are made, for their receipts; with the fields to read and to write.
        layout: what the shards' outputs look like.
        shard_bytes: decompressed bytes a shard of an unsplittable source.
        max_dead_letter_ratio: dead letters a record that the run may have.
        reuse_index: of former vectors; None if there are none.
    """

    endpoint: EndpointSettings
    output: OutputFolder
    provenance: Provenance
    layout: Layout
    shard_bytes: int
    max_dead_letter_ratio: float
    reuse_index: IndexHandle | None = None


class Outputs(NamedTuple):
    """The collections at the graph's ends: of `Receipt`, and one `ReceiptSums`."""

    receipts: beam.PCollection
    sums: beam.PCollection


def build(root: beam.Pipeline, work: Sequence[Shard], settings: Settings, lists: Sequence[str] = ()) -> Outputs:
    """Build the graph over the shards to do, or over lists of them in the output folder where there are any.

    Only shard descriptions and receipts cross a shuffle: a local runner keeps in memory whatever does, and documents
    and vectors would be all of it.
    """
    output, made = settings.output, settings.provenance
    shards = root | "ListShards" >> ListShards(work, output, lists) | "SpreadShards" >> beam.Reshuffle()
    documents = shards | "ReadShards" >> ReadShards(
        made.text_field,
        made.embedding_field,
        settings.shard_bytes,
        output,
        made.digest,
        settings.max_dead_letter_ratio,
    )
    embedded = documents | "EmbedShards" >> EmbedShards(
        settings.endpoint,
        settings.max_dead_letter_ratio,
        settings.reuse_index,
        PartialSettings(output, made.space, made.overlong),
        made.vector_type,
    )
    _ = embedded.dead_letters | "WriteDeadLetters" >> WriteDeadLetters(output)
    receipts = embedded.documents | "WriteEmbedded" >> WriteEmbedded(output, made, settings.layout)
    return Outputs(receipts, receipts | "SumReceipts" >> SumReceipts())
