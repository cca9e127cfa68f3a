"""The graph: how the transforms follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam

from transforms.elements import Shard
from transforms.embed_shards import EmbedShards
from transforms.ndjson.parse import TextField
from transforms.output.folder import OutputFolder
from transforms.read_shards import ReadShards
from transforms.sum_receipts import SumReceipts
from transforms.tei.settings import EndpointSettings
from transforms.write_dead_letters import WriteDeadLetters
from transforms.write_embedded import WriteEmbedded


class Settings(NamedTuple):
    """What the transforms are told.

    Attributes:
        endpoint: where and how to embed; its `identity` is known.
        output: where to.
        job: the digest that the receipts bear.
        model: the model's id.
        text_field: what is embedded, dotted for a nested field; several are joined.
        embedding_field: which field gets the vector.
        shard_bytes: decompressed bytes a shard of an unsplittable source.
        max_dead_letter_ratio: dead letters a record that the run may have.
    """

    endpoint: EndpointSettings
    output: OutputFolder
    job: str
    model: str
    text_field: TextField
    embedding_field: str
    shard_bytes: int
    max_dead_letter_ratio: float


class Outputs(NamedTuple):
    """The collections at the graph's ends: of `Receipt`, and one `Totals`."""

    receipts: beam.PCollection
    totals: beam.PCollection


def build(root: beam.Pipeline, work: Sequence[Shard], settings: Settings) -> Outputs:
    """Build the graph.

    Only shard descriptions and receipts cross a shuffle: a local runner keeps in memory whatever does, and documents
    and vectors would be all of it.
    """
    output, job = settings.output, settings.job
    shards = root | "ListShards" >> beam.Create(work, reshuffle=False) | "SpreadShards" >> beam.Reshuffle()
    documents = shards | "ReadShards" >> ReadShards(
        settings.text_field, settings.embedding_field, settings.shard_bytes, output, job
    )
    embedded = documents | "EmbedShards" >> EmbedShards(settings.endpoint, settings.max_dead_letter_ratio)
    _ = embedded.dead_letters | "WriteDeadLetters" >> WriteDeadLetters(output)
    receipts = embedded.documents | "WriteEmbedded" >> WriteEmbedded(
        output, settings.embedding_field, settings.model, job
    )
    return Outputs(receipts, receipts | "SumReceipts" >> SumReceipts())
