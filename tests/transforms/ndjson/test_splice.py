from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.strategies import BOM, json_objects
from transforms.elements import Document, Vectors
from transforms.ndjson.splice import embedded_lines, encode_vector, json_key, split_at_vector

KEY = json_key("embedding")
VECTOR = np.array([[0.5, -0.25]], dtype=np.float32)


def spliced(line: bytes, key: bytes = KEY) -> bytes:
    has_field = json.loads(key) in json.loads(line.decode("utf-8-sig"), parse_int=str)
    (output,) = embedded_lines([Document(0, line, "", has_field)], VECTOR, key)
    assert output.endswith(b"\n")
    return output[:-1]


def fields_of(line: bytes) -> list[tuple[str, Any]]:
    """Every field with its value, doubled ones and the digits of numbers included, as the standard library reads it."""
    pairs: list[tuple[str, Any]] = json.loads(
        line.decode("utf-8-sig"), object_pairs_hook=list, parse_int=_digits, parse_float=_digits
    )
    return pairs


def _digits(number: str) -> tuple[str, str]:
    return "number", number


@pytest.mark.parametrize(
    ("line", "output"),
    [
        (b'{"a":1}', b'{"a":1,"embedding":[0.5,-0.25]}'),
        (b' { "a" : 1 } \r', b' { "a" : 1 ,"embedding":[0.5,-0.25]} \r'),
        (BOM + b'{"a":1}', BOM + b'{"a":1,"embedding":[0.5,-0.25]}'),
        (b'{"embedding": null, "a":1}', b'{"embedding": [0.5,-0.25], "a":1}'),
        (b'{"embedding":null}', b'{"embedding":[0.5,-0.25]}'),
        (b'{"embedding":[1,[2],"]"]}', b'{"embedding":[0.5,-0.25]}'),
        (b'{"embedding":{"embedding":"}"},"a":1}', b'{"embedding":[0.5,-0.25],"a":1}'),
        (b'{"embedding":"a\\"}","a":1}', b'{"embedding":[0.5,-0.25],"a":1}'),
        (b'{"embedding":-1e5 ,"a":1}', b'{"embedding":[0.5,-0.25] ,"a":1}'),
        (b'{"a":{"embedding":null}}', b'{"a":{"embedding":null},"embedding":[0.5,-0.25]}'),
        (b'{"a":["embedding",{"embedding":1}]}', b'{"a":["embedding",{"embedding":1}],"embedding":[0.5,-0.25]}'),
        (b'{"a":"embedding"}', b'{"a":"embedding","embedding":[0.5,-0.25]}'),
        (b'{"embedding":1,"embedding":2}', b'{"embedding":1,"embedding":[0.5,-0.25]}'),
        (b'{"\\u0065mbedding":1,"a":2}', b'{"\\u0065mbedding":[0.5,-0.25],"a":2}'),
        (b'{"a":"\\"embedding\\":1}"}', b'{"a":"\\"embedding\\":1}","embedding":[0.5,-0.25]}'),
        (b'{"embedding":1,"a\\"embedding":null}', b'{"embedding":[0.5,-0.25],"a\\"embedding":null}'),
        (b'{"embedding":1,"a":{"embedding":null}}', b'{"embedding":[0.5,-0.25],"a":{"embedding":null}}'),
        (b'{"a":1,"embedding" : null } \r', b'{"a":1,"embedding" : [0.5,-0.25] } \r'),
        (b'{"a":"\\\\","embedding":1}', b'{"a":"\\\\","embedding":[0.5,-0.25]}'),
        (b'{"\\ud800":1,"a":2}', b'{"\\ud800":1,"a":2,"embedding":[0.5,-0.25]}'),
        (b'{"n":18446744073709551616}', b'{"n":18446744073709551616,"embedding":[0.5,-0.25]}'),
    ],
)
def test_the_vector_goes_where_it_belongs_and_nothing_else_moves(line: bytes, output: bytes) -> None:
    assert spliced(line) == output


@given(json_objects("embedding"))
@example(b'{"embedding":[[["]"]]],"embedding ":"}"}')
def test_the_output_holds_the_same_object_and_the_vector(line: bytes) -> None:
    before = fields_of(line)
    vector = [("number", "0.5"), ("number", "-0.25")]
    places = [place for place, (name, _) in enumerate(before) if name == "embedding"]
    place = places[-1] if places else len(before)
    expected = [*before[:place], ("embedding", vector), *before[place + 1 :]]
    # pairs come as tuples in lists: a list of two-element arrays cannot be mistaken for an object here
    assert fields_of(spliced(line)) == expected


@given(json_objects("embedding"))
def test_without_the_vector_the_output_is_the_source(line: bytes) -> None:
    before, behind = split_at_vector(line, KEY)
    output = spliced(line)
    assert output == before + b"[0.5,-0.25]" + behind
    assert line.endswith(behind)
    if before.endswith(b',"embedding":') and before[: -len(b',"embedding":')] + behind == line:
        assert "embedding" not in dict(fields_of(line))
        return
    assert line.startswith(before)
    replaced = line[len(before) : len(line) - len(behind)]
    assert json.loads(replaced, parse_int=_digits, parse_float=_digits, object_pairs_hook=list) == next(
        value for name, value in reversed(fields_of(line)) if name == "embedding"
    )


@given(json_objects("\u0643 #\U0001f30d"))
def test_a_field_may_have_any_name(line: bytes) -> None:
    name = "\u0643 #\U0001f30d"
    assert dict(fields_of(spliced(line, json_key(name))))[name] == [("number", "0.5"), ("number", "-0.25")]


def test_lines_and_vectors_are_paired_strictly() -> None:
    documents = [Document(0, b'{"a":1}', "", False)] * 2
    with pytest.raises(ValueError, match="zip"):
        list(embedded_lines(documents, VECTOR, KEY))


def float32_back(rows: list[bytes]) -> Vectors:
    return np.array([json.loads(row) for row in rows], dtype=np.float32)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.integers(1, 5).flatmap(lambda d: st.lists(st.lists(FLOATS, min_size=d, max_size=d), max_size=140)))
def test_every_row_gives_back_its_floats_bit_by_bit(values: list[list[float]]) -> None:
    vectors = np.array(values, dtype=np.float32)
    rows = list(map(encode_vector, vectors))
    assert len(rows) == len(values)
    assert float32_back(rows).tobytes() == vectors.tobytes()


def test_floats_of_every_size_come_back_bit_by_bit_from_their_shortest_decimals() -> None:
    info = np.finfo(np.float32)
    edges = [0.0, -0.0, info.max, info.min, info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 0.1, 1e16]
    bits = np.random.default_rng(3).integers(0, 1 << 32, 30_000, dtype=np.uint32).view(np.float32)
    vector = np.concatenate([np.array(edges, dtype=np.float32), bits[np.isfinite(bits)]])
    row = encode_vector(vector)
    assert float32_back([row]).tobytes() == vector.tobytes()
    for number, written in zip(vector, row[1:-1].split(b","), strict=True):
        shortest = np.format_float_scientific(number, trim="-")
        assert _significant(written.decode()) == _significant(shortest)


def _significant(number: str) -> str:
    """The digits that matter."""
    return re.sub(r"[eE].*", "", number).replace(".", "").replace("-", "").strip("0")


@pytest.mark.parametrize(
    "line",
    [
        rb'{"a\/b":null,"content":"x"}',
        rb'{"content":"x","a\/b":[1]}',
        rb'{"a/b":1,"a\/b":2,"content":"x"}',
        rb'{"a\/b":1,"a/b":{"c":2},"content":"x"}',
        rb'{"a\u002fb":1,"content":"x\/"}',
    ],
)
def test_a_slash_in_a_name_may_be_escaped(line: bytes) -> None:
    fields = fields_of(line)
    fields[max(place for place, (name, _) in enumerate(fields) if name == "a/b")] = (
        "a/b",
        [("number", "0.5"), ("number", "-0.25")],
    )
    assert fields_of(spliced(line, json_key("a/b"))) == fields


@pytest.mark.parametrize("name", [b"embedding", rb"embeddin\u0067"], ids=["plain", "escaped"])
@pytest.mark.timeout(60)  # half a second's work; hours, if each of the fields had the rest of the line searched
def test_a_line_that_has_the_field_half_a_million_times_is_read_once(name: bytes) -> None:
    line = b"{" + b'"%s":1,' % name * 500_000 + b'"%s":2}' % name
    before, behind = split_at_vector(line, KEY)
    assert (len(before), before[-2:], behind) == (len(line) - 2, b'":', b"}")
