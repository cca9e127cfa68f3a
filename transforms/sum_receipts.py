"""SumReceipts: the grouping in which the receipts end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import apache_beam as beam

from transforms.output.receipts import Receipt


class ReceiptSums(NamedTuple):
    """The ledger of this pipeline's shards."""

    shards: int = 0
    records: int = 0
    embedded: int = 0
    dead_letters: int = 0


def sums_of(receipt: Receipt) -> ReceiptSums:
    """Return what one receipt adds."""
    return ReceiptSums(1, receipt.records, receipt.embedded, receipt.dead_letters)


def add_sums(several: Iterable[ReceiptSums]) -> ReceiptSums:
    """Add up; associative and commutative."""
    return ReceiptSums(*map(sum, zip(ReceiptSums(), *several, strict=True)))


class SumReceipts(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`Receipt` in, one `ReceiptSums` out.

    It has to be there even where nobody reads it: without a grouping behind the writers, a local worker process that
    is killed hangs the job for ever.
    """

    def expand(self, receipts: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        return receipts | "Count" >> beam.Map(sums_of) | "Add" >> beam.CombineGlobally(add_sums)
