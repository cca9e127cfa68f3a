from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import NotProven
from pipeline.verification.findings import WrongLine
from pipeline.verification.vectors import (
    ROW,
    SharedVectors,
    VectorRows,
    digest_vectors,
    find_wrong_vector,
    is_same_to_a_tokenizer,
    norm_tolerance,
    parse_vector,
    read_document,
)


@pytest.mark.parametrize("data", [b"[1,0.5]", b"[ 1 , -2e-3 ]", b"[]", b"[18446744073709551616]"])
def test_arrays_of_numbers_are_read(data: bytes) -> None:
    assert parse_vector(data) == json.loads(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[1,true]", "not an array of numbers"),
        (b'["1","2"]', "not an array of numbers"),
        (b'{"1":2}', "not an array of numbers"),
        (b"[[1],2]", "not an array of numbers"),
        (b"[1,null]", "not an array of numbers"),
        (b"12", "not an array of numbers"),
        (b"[1,Infinity]", "not JSON"),
        (b"[+1]", "not JSON"),
        (b"[1,]", "not JSON"),
        (b"[01]", "not JSON"),
        (b'[1],"b":1', "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_anything_else_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(WrongLine, match=words):
        parse_vector(data)


@pytest.mark.parametrize(
    ("row", "tolerance", "words"),
    [
        ([0.6, 0.8], 1e-4, None),
        ([0.6, 0.8002], 1e-3, None),
        ([0.6, 0.8002], 1e-4, "norm is 1.00016"),
        ([3.0, 4.0], None, None),
        ([3.0, 4.0], 1e-3, "norm is 5"),
        ([0.0, -0.0], None, "all zeros"),
        ([0.0, 0.0], 1e-4, "all zeros"),
        ([np.inf, 0.0], None, "no float32 holds"),
        ([np.inf, 0.0], 1e-4, "no float32 holds"),
        ([1e30, 1e38], None, None),
        ([1e-30, 0.0], None, None),
    ],
)
def test_the_first_wrong_vector_is_found(row: list[float], tolerance: float | None, words: str | None) -> None:
    vectors = np.array([[1.0, 0.0], row, row], np.float32)
    found = find_wrong_vector(vectors, tolerance)
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == 1
        assert words in found[1]


@pytest.mark.parametrize(("dtype", "rounded"), [("float32", np.float32), ("float16", np.float16)])
@pytest.mark.parametrize("dimensions", [2, 384, 4096])
def test_rounding_alone_is_no_finding(dtype: str, rounded: type, dimensions: int) -> None:
    vectors = np.random.default_rng(3).standard_normal((200, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert find_wrong_vector(vectors.astype(rounded).astype(np.float32), norm_tolerance(dtype)) is None


def test_vectors_of_float16_have_digests_of_their_own() -> None:
    vectors = np.random.default_rng(3).standard_normal((20_000, 7)).astype(np.float16).astype(np.float32)
    digests = digest_vectors(np.concatenate([vectors, vectors[:5]]))
    assert len(np.unique(digests)) == len(np.unique(vectors, axis=0))
    assert (digests[-5:] == digests[:5]).all()
    assert 0.48 < (digests < 1 << 63).mean() < 0.52  # the small ones are kept, so they must be as many as the others


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Hello, World", "hello world!", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("\U0001f389", "\U0001f38a", True),
        ("w" * 1000 + " one", "w" * 1000 + " other", True),
        ("w" * 900 + " one", "w" * 900 + " other", False),
        ("one", "other", False),
    ],
)
def test_what_a_tokenizer_may_take_for_the_same(one: str, other: str, same: bool) -> None:
    assert is_same_to_a_tokenizer(one, other) is same


def shared(root: Path, texts: list[str], max_rows: int) -> tuple[SharedVectors, VectorRows]:
    """Documents of one vector, and rows for them among many others."""
    lines = [json.dumps({"content": text, "embedding": [1.0, 0.0]}).encode() + b"\n" for text in texts]
    (root / "out.ndjson").write_bytes(b"".join(lines))
    rows = np.zeros(len(lines), ROW)
    rows["vector"] = 7
    rows["text"] = np.arange(len(lines)) + 1
    rows["offset"] = np.cumsum([0, *map(len, lines[:-1])])
    found = SharedVectors(lambda _source, _shard: str(root / "out.ndjson"), "content", "embedding", max_rows)
    return found, rows


def others(count: int) -> VectorRows:
    rows = np.zeros(count, ROW)
    rows["vector"] = np.random.default_rng(5).integers(0, 1 << 64, count, np.uint64)
    rows["text"] = np.random.default_rng(6).integers(0, 1 << 64, count, np.uint64)
    return rows


def test_memory_is_bounded_and_what_is_shared_is_found_all_the_same(tmp_path: Path) -> None:
    found, rows = shared(tmp_path, [f"text number {number}" for number in range(60)], max_rows=1000)
    for part in range(20):
        found.add(others(500))
        found.add(rows[part * 3 : part * 3 + 3])
        assert len(found.rows) <= 1000
    assert "out.ndjson, byte 0, and " in (problem := found.find() or "")
    assert "have different texts and the same vector" in problem


def test_a_few_and_those_that_tokenize_alike_are_chance(tmp_path: Path) -> None:
    found, rows = shared(tmp_path, ["one", "two", "three", "four"], 1 << 20)
    found.add(rows[:3])
    assert found.find() is None
    found.add(rows[3:])
    assert found.find() is not None
    found, rows = shared(tmp_path, ["!" * number for number in range(1, 50)], 1 << 20)
    found.add(rows)
    assert found.find() is None
    found, rows = shared(tmp_path, ["one", "two", "three", "four"], 1 << 20)
    found.add(np.concatenate([rows, others(5000)]))  # a share of less than one in a thousand
    assert found.find() is None


def test_the_same_text_may_have_the_same_vector(tmp_path: Path) -> None:
    found, rows = shared(tmp_path, ["one"] * 50, 1 << 20)
    rows["text"] = 1
    found.add(rows)
    assert found.find() is None


def test_a_line_that_has_changed_since_it_was_checked_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text('{"content": "a", "embedding": [1]}\n')
    text, vector = read_document(f"{tmp_path}/a.ndjson", 0, "content", "embedding")
    assert (text, vector.tolist()) == ("a", [1])
    with pytest.raises(NotProven, match=r"a\.ndjson, byte 7: the record has changed"):
        read_document(f"{tmp_path}/a.ndjson", 7, "content", "embedding")
