"""SumReceipts: the grouping in which the receipts end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import apache_beam as beam

from transforms.output.receipts import Receipt


class Totals(NamedTuple):
    """The ledger of this pipeline's shards."""

    shards: int = 0
    records: int = 0
    embedded: int = 0
    dead_letters: int = 0


def totals_of(receipt: Receipt) -> Totals:
    """Return what one receipt adds."""
    return Totals(1, receipt.records, receipt.embedded, receipt.dead_letters)


def add_totals(totals: Iterable[Totals]) -> Totals:
    """Add up; associative and commutative."""
    return Totals(*map(sum, zip(Totals(), *totals, strict=True)))


class SumReceipts(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`Receipt` in, one `Totals` out.

    It has to be there even where nobody reads it: without a grouping behind the writers, a local worker process that
    is killed hangs the job for ever.
    """

    def expand(self, receipts: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        return receipts | "Count" >> beam.Map(totals_of) | "Add" >> beam.CombineGlobally(add_totals)
