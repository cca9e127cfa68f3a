"""Shards, receipts and output folders, made up for tests."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transforms.elements import DeadLetter, Document, EmbeddedShard, Reason, RequestStatistics, Shard, Source, Stage
from transforms.output.folder import OutputFolder
from transforms.output.layout import NDJSON, Layout
from transforms.output.receipts import Provenance, Receipt, encode_receipt
from transforms.storage.api import WrittenFile

MADE = Provenance("0123456789abcdef", "fedcba9876543210", "tayyar/hash", "1.9.3", "content", "embedding", "truncate")
LAYOUT = Layout(NDJSON, "embedding")
JOB = MADE.digest
SOURCE = Source("/in/wiki.ndjson", "wiki", size=250, version="1700000000.123456")


def folder(path: Path) -> OutputFolder:
    return OutputFolder(str(path), "run")


def documents(count: int) -> tuple[Document, ...]:
    return tuple(Document(20 * n, b'{"content":"%d"}' % n, str(n), False) for n in range(count))


def letter(offset: int, line: bytes = b"{}", **fields: Any) -> DeadLetter:
    values = {"stage": Stage.READ, "reason": Reason.MISSING_TEXT, "detail": "there is no field 'content'", **fields}
    return DeadLetter(SOURCE.path, offset, line=line, **values)


def embedded_shard(
    embedded: int = 3, dead_letters: Sequence[DeadLetter] = (), index: int = 0, dimensions: int = 4
) -> EmbeddedShard:
    shard = Shard(SOURCE, index, 100 * index, 100 * index + 100)
    vectors = np.arange(1, embedded * dimensions + 1, dtype=np.float32).reshape(embedded, dimensions) / np.float32(8)
    statistics = RequestStatistics(tokens=30, requests=2, latency_ms=Counter({16: 1, 23: 1}))
    records = embedded + len(dead_letters)
    return EmbeddedShard(shard, documents(embedded), vectors, tuple(dead_letters), records, statistics, 1000.25)


def receipt(index: int = 0, of: Source = SOURCE, /, **fields: Any) -> Receipt:
    """A receipt of three embedded documents in a shard of 100 bytes."""
    name = f"{of.name}-{index:05d}"
    plain = Receipt(
        shard=name,
        source=of.path,
        index=index,
        start=100 * index,
        end=min(100 * index + 100, of.size),
        last=False,
        source_size=of.size,
        source_version=of.version,
        records=3,
        embedded=3,
        sent=3,
        reused=0,
        duplicates=0,
        nan_lines=0,
        dead_letters=0,
        reasons={},
        truncated=0,
        truncated_at=(),
        started_at=1000.0 + index,
        finished_at=1001.0 + index,
        output=WrittenFile(f"data/{name}.ndjson", 10, "AAAAAA=="),
        dead_letter_output=None,
        statistics=RequestStatistics(tokens=30, requests=2, latency_ms=Counter({16: 1, 23: 1})),
        provenance=MADE,
        run="run",
    )
    if "embedded" in fields:
        fields = {"sent": fields["embedded"], **fields}
    return dataclasses.replace(plain, **fields)


def put(output: OutputFolder, *receipts: Receipt) -> None:
    """Write receipts and, of the sizes that they say, the files that they stand for."""
    for one in receipts:
        for written in (one.output, one.dead_letter_output):
            if written is not None:
                output.write(written.path, [b"x" * written.bytes])
        if one.embedded:
            output.write(output.keys(one.shard), [bytes(8 * one.embedded)])
        output.write(output.receipt(one.shard), [encode_receipt(one)])
