from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from tests.matchers import equal_in_any_order, local_pipeline
from tests.shards import receipt
from transforms.sum_receipts import SumReceipts, Totals, add_totals, totals_of

TOTALS = st.lists(st.builds(Totals, *[st.integers(0, 1 << 70)] * 4))


@given(TOTALS, st.integers(0, 10))
def test_totals_add_up_in_any_grouping(totals: list[Totals], cut: int) -> None:
    together = add_totals(totals)
    assert together == tuple(sum(one[field] for one in totals) for field in range(4))
    assert add_totals([add_totals(totals[:cut]), add_totals(totals[cut:])]) == together


def test_a_receipt_adds_its_shard() -> None:
    assert totals_of(receipt(records=7, embedded=5, dead_letters=2)) == Totals(1, 7, 5, 2)


@pytest.mark.parametrize(("count", "expected"), [(0, Totals()), (3, Totals(3, 12, 9, 3))])
def test_receipts_end_in_one_sum(count: int, expected: Totals) -> None:
    receipts: list[Any] = [receipt(index, records=4, dead_letters=1) for index in range(count)]
    with local_pipeline() as pipeline:
        totals = pipeline | beam.Create(receipts) | SumReceipts()
        assert_that(totals, equal_in_any_order([expected]))
