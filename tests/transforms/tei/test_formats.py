from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from transforms.elements import Vectors
from transforms.tei.formats import OtherDimensions, UnreadableReply, WrongCount, rows_from_base64, rows_from_json

from .server import openai_body

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=FLOATS)


def row(values: list[float]) -> Vectors:
    return np.array(values, dtype=np.float32)


def json_body(rows: Any) -> bytes:
    return orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)


@given(MATRICES)
def test_both_formats_give_the_same_bits(values: Vectors) -> None:
    count, dimensions = values.shape
    from_json = rows_from_json(json_body(values), count, dimensions)
    from_base64 = rows_from_base64(openai_body(list(values)), count, dimensions)
    np.testing.assert_array_equal(from_json.values.view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(from_base64.values.view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(from_json.good, values.any(axis=1))
    np.testing.assert_array_equal(from_base64.good, values.any(axis=1))


@pytest.mark.parametrize(
    "bad",
    [[None, 1.0], [0.0, 0.0], [1.0], [1.0, 2.0, 3.0], None, "x", [1e39, 1.0], ["a", "b"], {}, 7],
    ids=str,
)
def test_one_bad_row_of_json_spoils_no_other(bad: Any) -> None:
    rows = rows_from_json(json_body([[1.0, 2.0], bad, [3.0, 4.0]]), 3, 2)
    assert rows.good.tolist() == [True, False, True]
    assert rows.values[[0, 2]].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "bad", [np.array([np.nan, 1]), np.array([np.inf, 1]), np.zeros(2), np.ones(1), np.ones(3)], ids=str
)
def test_one_bad_row_of_base64_spoils_no_other(bad: Any) -> None:
    body = openai_body([row([1, 2]), bad.astype(np.float32), row([3, 4])])
    rows = rows_from_base64(body, 3, 2)
    assert rows.good.tolist() == [True, False, True]
    assert rows.values[[0, 2]].tolist() == [[1.0, 2.0], [3.0, 4.0]]


GOOD = base64.b64encode(np.ones(2, dtype=np.float32).tobytes()).decode()
SKIPPED_BY_SOME = [GOOD[:4] + "\n" + GOOD[4:], GOOD[:4] + "!!!!" + GOOD[4:], GOOD + "*", " " + GOOD, GOOD + "===="]


@pytest.mark.parametrize(
    "bad", ["!", "AAA", "é" * 12, None, 5, [1.0, 2.0], [0.5] * 12, f"{GOOD[:5]}=" + GOOD[6:], *SKIPPED_BY_SOME]
)
def test_a_row_that_is_no_base64_is_bad(bad: Any) -> None:
    body = orjson.dumps({"data": [{"index": 0, "embedding": GOOD}, {"index": 1, "embedding": bad}]})
    assert rows_from_base64(body, 2, 2).good.tolist() == [True, False]


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
@pytest.mark.parametrize("place", range(3))
def test_a_row_that_ends_too_early_spoils_no_other(dimensions: int, place: int) -> None:
    good = base64.b64encode(np.ones(dimensions, dtype=np.float32).tobytes()).decode()
    for bad in (good[:-1] + "=", good[:-2] + "==", good[:-3] + "=" * 3, good.rstrip("=") + "A" * good.count("=")):
        if bad == good:
            continue
        rows = [good] * 3
        rows[place] = bad
        reply = orjson.dumps({"data": [{"index": index, "embedding": row_} for index, row_ in enumerate(rows)]})
        assert rows_from_base64(reply, 3, dimensions).good.tolist() == [index != place for index in range(3)]


def test_rows_whose_padding_makes_up_for_each_others_are_bad() -> None:
    short, long = GOOD[:-4] + "AA==", GOOD[:-1] + "A"  # 8 bytes end in one `=`
    reply = orjson.dumps({"data": [{"index": 0, "embedding": short}, {"index": 1, "embedding": long}]})
    assert rows_from_base64(reply, 2, 2).good.tolist() == [False, False]


def test_huge_and_tiny_components_are_finite_and_not_zero() -> None:
    rows = rows_from_json(json_body([[3e38, 3e38], [1e-38, 0.0]]), 2, 2)
    assert rows.good.all()


@pytest.mark.parametrize("rows", [[], [[1.0]], [[1.0]] * 3])
def test_too_few_or_too_many_rows_are_none(rows: list[list[float]]) -> None:
    with pytest.raises(WrongCount):
        rows_from_json(json_body(rows), 2, 1)
    with pytest.raises(WrongCount):
        rows_from_base64(openai_body([row(row_) for row_ in rows]), 2, 1)


def test_rows_of_other_dimensions_are_told_from_damaged_ones() -> None:
    with pytest.raises(OtherDimensions) as raised:
        rows_from_json(json_body([[1.0] * 3, [2.0] * 3]), 2, 2)
    assert raised.value.dimensions == 3
    with pytest.raises(OtherDimensions):
        rows_from_base64(openai_body([np.ones(3, np.float32)] * 2), 2, 2)
    assert not rows_from_json(json_body([[1.0], [1.0, 2.0, 3.0]]), 2, 2).good.any()


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"null", b'{"data": 3}', b'{"data": [1]}', b'{"error": "x"}'])
def test_what_is_no_list_of_rows_is_nobodys_fault(body: bytes) -> None:
    with pytest.raises(UnreadableReply):
        rows_from_json(body, 1, 2)
    with pytest.raises(UnreadableReply):
        rows_from_base64(body, 1, 2)


def test_rows_are_put_where_their_index_says() -> None:
    reply = orjson.loads(openai_body([row([1, 1]), row([2, 2]), row([3, 3])]))
    reply["data"].reverse()
    assert rows_from_base64(orjson.dumps(reply), 3, 2).values[:, 0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("indices", [[0, 0], [1, 2], [0, None], ["0", "1"]])
def test_indices_that_are_not_the_requests_are_believed_in_nothing(indices: list[Any]) -> None:
    reply = orjson.loads(openai_body([row([1, 1]), row([2, 2])]))
    for item, index in zip(reply["data"], indices, strict=True):
        item["index"] = index
    with pytest.raises(WrongCount):
        rows_from_base64(orjson.dumps(reply), 2, 2)
