"""Values and the types of their columns; vectors and theirs."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.output.layout import (
    BOOL,
    DOUBLE,
    FLOAT16,
    FLOAT32,
    INT64,
    JSON,
    STRING,
    Column,
    decode_columns,
)
from transforms.output.values import choose_columns, column_values, fits_type


def lines(*values: object) -> list[bytes]:
    return [json.dumps({"x": value}).encode() for value in values]


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        (["a", None, "b"], STRING),
        ([1, -7], INT64),
        ([1.5, 2.0], DOUBLE),
        ([1, 2.5], DOUBLE),
        ([True, False], BOOL),
        ([True, 1], JSON),
        (["a", 1], JSON),
        ([["a"]], JSON),
        ([{}], JSON),
        ([None], JSON),
        ([], JSON),
    ],
)
def test_the_type_of_a_column_suits_all_values_of_the_sample(values: list[object], chosen: str) -> None:
    assert choose_columns(["x"], lines(*values)) == (Column("x", chosen),)


def test_a_type_that_is_known_stays_and_nothing_is_read_for_it() -> None:
    def unread() -> object:
        raise AssertionError("the sample was read")
        yield b""

    assert choose_columns(["x"], unread(), [Column("y", BOOL), Column("x", INT64)]) == (Column("x", INT64),)  # type: ignore[arg-type]


def test_a_column_is_the_field_of_its_name_or_of_its_path() -> None:
    columns = [Column("meta.lang", STRING)]
    assert column_values(b'{"meta": {"lang": "ar"}}', columns, {}) == ("ar",)
    assert column_values(b'{"meta": {"lang": "ar"}, "meta.lang": "en"}', columns, {}) == ("en",)
    assert column_values(b'{"meta": "ar"}', columns, {}) == (None,)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (STRING, '"a"', "a"),
        (STRING, "1", None),
        (STRING, r'"\ud800"', None),
        (INT64, "9223372036854775807", 2**63 - 1),
        (INT64, "9223372036854775808", None),
        (INT64, "1.0", None),
        (INT64, "true", None),
        (DOUBLE, "2", 2.0),
        (DOUBLE, "9007199254740993", None),
        (DOUBLE, "Infinity", math.inf),
        (DOUBLE, '"2"', None),
        (BOOL, "false", False),
        (BOOL, "0", None),
        (JSON, '["\u0627", null, {"b": 1.5}]', '["ا", null, {"b": 1.5}]'),
        (JSON, '{"a":[1,2]}', '{"a":[1,2]}'),
        (JSON, '"a"', '"a"'),
        (JSON, "[NaN]", "[NaN]"),
        (JSON, r'"\ud800"', r'"\ud800"'),
        (JSON, "null", None),
    ],
)
def test_a_value_that_does_not_fit_is_null_and_counted(kind: str, text: str, value: object) -> None:
    unfit: Counter[str] = Counter()
    found = column_values(f'{{"x": {text}}}'.encode(), [Column("x", kind)], unfit)
    assert repr(found) == repr((value,))
    assert unfit == ({"x": 1} if value is None and text != "null" else {})


def test_vectors_fit_float16_up_to_its_largest_number_and_down_to_where_it_has_few_digits() -> None:
    # 65,520 is half-way between the largest float16 and what would be the next one, and is rounded to infinity.
    large = [[65504, 0], [65519, 1], [65520, 1], [-1e9, 1], [3e38, 3e38]]
    small = [[0.1, 1e-9], [1e-4, 1.1e-5], [1e-6, 2.1e-6], [0, 3e-8], [0, 1e-9]]
    vectors = np.array([*large, *small, [0, 0]], np.float32)
    assert fits_type(vectors, FLOAT16).tolist() == [True, True, *[False] * 3, True, True, *[False] * 4]
    assert fits_type(vectors, FLOAT32).tolist() == [True] * 10 + [False]


def test_whether_vectors_fit_takes_little_memory_beside_theirs() -> None:
    vectors = np.full((5000, 256), 0.1, np.float32)
    vectors[-1] = 1e9
    tracemalloc.start()
    try:
        fits = fits_type(vectors, FLOAT16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fits.sum() == 4999
    assert peak < vectors.nbytes / 4


@given(st.integers(1, 2000), st.integers(0, 2**32 - 1), st.floats(-25, 16))
def test_what_fits_float16_keeps_its_direction_and_every_unit_vector_does(size: int, seed: int, power: float) -> None:
    unit = np.random.default_rng(seed).standard_normal((1, size)).astype(np.float32)
    unit /= np.linalg.norm(unit)
    assert fits_type(unit, FLOAT16).all()
    vector = unit * np.float32(2.0**power)
    fits = fits_type(vector, FLOAT16)
    # A row that surely does not fit has all the others looked at number by number.
    assert fits_type(np.vstack([vector, np.full_like(vector, np.nan)]), FLOAT16).tolist() == [*fits, False]
    if fits.all():
        rounded = vector.astype(np.float16).astype(np.float64)
        assert float(rounded[0] @ unit[0]) / np.linalg.norm(rounded) > 0.999999


@pytest.mark.parametrize(
    "columns",
    [
        [{"name": "x"}],
        [{"name": "x", "type": "int32"}],
        [{"name": 1, "type": "json"}],
        [{"name": "x", "type": "json"}, {"name": "x", "type": "bool"}],
    ],
)
def test_columns_that_are_none_are_refused(columns: list[dict[str, object]]) -> None:
    with pytest.raises((TypeError, ValueError)):
        decode_columns(columns)
