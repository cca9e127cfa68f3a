from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from tests.matchers import equal_in_any_order, local_pipeline
from tests.shards import receipt
from transforms.sum_receipts import ReceiptSums, SumReceipts, add_sums, sums_of

SUMS = st.lists(st.builds(ReceiptSums, *[st.integers(0, 1 << 70)] * 4))


@given(SUMS, st.integers(0, 10))
def test_sums_add_up_in_any_grouping(sums: list[ReceiptSums], cut: int) -> None:
    together = add_sums(sums)
    assert together == tuple(sum(one[field] for one in sums) for field in range(4))
    assert add_sums([add_sums(sums[:cut]), add_sums(sums[cut:])]) == together


def test_a_receipt_adds_its_shard() -> None:
    assert sums_of(receipt(records=7, embedded=5, dead_letters=2)) == ReceiptSums(1, 7, 5, 2)


@pytest.mark.parametrize(("count", "expected"), [(0, ReceiptSums()), (3, ReceiptSums(3, 12, 9, 3))])
def test_receipts_end_in_one_sum(count: int, expected: ReceiptSums) -> None:
    receipts: list[Any] = [receipt(index, records=4, dead_letters=1) for index in range(count)]
    with local_pipeline() as pipeline:
        sums = pipeline | beam.Create(receipts) | SumReceipts()
        assert_that(sums, equal_in_any_order([expected]))
