"""Parquet outputs: what is written is read back bit for bit, in row groups, and the same rows are the same bytes."""

from __future__ import annotations

import importlib.abc
import json
import os
import platform
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands import ROOT, environment
from transforms.elements import Document, Vectors, text_as_sent
from transforms.ndjson.lines import Line
from transforms.ndjson.parse import parse_line
from transforms.output import parquet_output
from transforms.output.layout import BOOL, DOUBLE, FLOAT16, FLOAT32, INT64, JSON, PARQUET, STRING, Column, Layout
from transforms.output.parquet_output import ROW_GROUP_ROWS, ParquetRow, encode, place, read_at, read_rows, rows_of
from transforms.storage.chunks import Digest, digest_of

PLAIN = Layout(PARQUET, "embedding")
EVERY_TYPE = tuple(Column(kind, kind) for kind in (STRING, INT64, DOUBLE, BOOL, JSON))
VALUES = {STRING: "x", INT64: 7, DOUBLE: 0.5, BOOL: True, JSON: [1]}


def document(record: object, offset: int = 0) -> Document:
    line = json.dumps(record).encode() if not isinstance(record, bytes) else record
    parsed = parse_line(Line(offset, line, len(line)), "a.ndjson", "content", "embedding", 1 << 24)
    assert isinstance(parsed, Document)
    return parsed


def random_vectors(count: int, dimensions: int = 8) -> Vectors:
    return np.random.default_rng(count).standard_normal((count, dimensions)).astype(np.float32)


def written(path: Path, documents: Sequence[Document], vectors: Vectors, layout: Layout) -> Digest:
    content = b"".join(encode(rows_of(documents, vectors, layout, Counter()), layout, vectors.shape[1]))
    path.write_bytes(content)
    return digest_of([content])


def read(path: Path, layout: Layout, digest: Digest) -> tuple[list[ParquetRow], list[str]]:
    problems: list[str] = []
    return list(read_rows(str(path), layout.embedding_field, problems.append, digest, layout)), problems


def chunks_of(path: Path) -> list[pq.ColumnChunkMetaData]:
    group = pq.ParquetFile(path).metadata.row_group(0)
    return [group.column(index) for index in range(group.num_columns)]


def test_a_file_is_what_the_readme_says(tmp_path: Path) -> None:
    documents = [document({"content": "النيل", "id": 7}), document({"id": None, "content": "b"})]
    vectors = random_vectors(2)
    written(tmp_path / "x.parquet", documents, vectors, Layout(PARQUET, "embedding", FLOAT32, (Column("id", INT64),)))
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.names == ["record", "text", "id", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 8)
    assert table.column("record").to_pylist() == [one.line.decode() for one in documents]
    assert table.column("text").to_pylist() == ["النيل", "b"]
    assert table.column("id").to_pylist() == [7, None]
    assert np.array_equal(np.array(table.column("embedding").to_pylist(), np.float32), vectors)
    chunks = chunks_of(tmp_path / "x.parquet")
    assert [chunk.compression for chunk in chunks] == ["ZSTD"] * 4
    assert [chunk.has_dictionary_page for chunk in chunks] == [False, False, True, False]


# What a field may hold, with what no parser but Python's reads among it.
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=("L", "N", "P", "Z", "Cs", "So"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"content": st.text(st.characters(categories=("L", "N", "Cs")), min_size=1)},
        optional={column.name: ANYTHING for column in EVERY_TYPE},
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(RECORDS, st.sampled_from([FLOAT32, FLOAT16]))
def test_rows_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], vector_type: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.parquet"
    layout = Layout(PARQUET, "embedding", vector_type, EVERY_TYPE)
    documents, vectors = [document(record) for record in records], random_vectors(len(records))
    file = written(path, documents, vectors, layout)
    rows, problems = read(path, layout, file)
    assert not problems
    assert [row.record for row in rows] == [one.line for one in documents]
    assert [row.text for row in rows] == [text_as_sent(one.text) for one in documents]
    expected = list(rows_of(documents, vectors, layout, Counter()))
    assert repr([row.values for row in rows]) == repr([row.values for row in expected])
    assert np.stack([row.vector for row in rows]).tobytes() == vectors.astype(vector_type).tobytes()
    again = b"".join(encode(map(parquet_output.stored, rows), layout, 8))
    assert again == path.read_bytes()


def test_long_files_have_row_groups_and_rows_are_found_in_them(tmp_path: Path) -> None:
    count = 2 * ROW_GROUP_ROWS + 5
    documents = [document({"content": f"text {number}"}) for number in range(count)]
    vectors = random_vectors(count)
    file = written(tmp_path / "x.parquet", documents, vectors, PLAIN)
    groups = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [groups.row_group(index).num_rows for index in range(3)] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 5]
    rows, problems = read(tmp_path / "x.parquet", PLAIN, file)
    assert not problems
    assert [place(row) for row in rows] == list(range(count))
    for number in (0, ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS, count - 1):
        found = read_at(str(tmp_path / "x.parquet"), number, "embedding")
        assert found is not None
        assert found.text == f"text {number}".encode()
        assert np.array_equal(found.vector, vectors[number])
    assert read_at(str(tmp_path / "x.parquet"), count, "embedding") is None


def test_row_groups_end_before_they_are_too_large_for_the_memory(
    tmp_path: Path,
) -> None:
    documents = [document({"content": str(number) * (2 << 20)}) for number in range(8)]
    file = written(tmp_path / "x.parquet", documents, random_vectors(8), PLAIN)
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [2, 2, 2, 2]
    rows, problems = read(tmp_path / "x.parquet", PLAIN, file)
    assert not problems
    assert [row.record for row in rows] == [one.line for one in documents]


def test_a_file_is_written_a_row_group_at_a_time() -> None:
    taken, count = 0, 3 * ROW_GROUP_ROWS

    def rows() -> Iterator[ParquetRow]:
        nonlocal taken
        for row in rows_of([document({"content": "x"})] * count, random_vectors(count), PLAIN, {}):
            taken += 1
            yield row

    sizes: Counter[int] = Counter()
    for piece in encode(rows(), PLAIN, 8):
        sizes[taken] += len(piece)
    assert [rows for rows in sizes if sizes[rows] > 25_000] == [number * ROW_GROUP_ROWS for number in (1, 2, 3)]


@pytest.mark.parametrize("vector_type", [FLOAT32, FLOAT16])
def test_a_file_takes_the_memory_of_a_row_group_whatever_its_length(vector_type: str) -> None:
    layout = Layout(PARQUET, "embedding", vector_type)
    line = document({"content": "x" * 2000})
    vectors = random_vectors(8 * ROW_GROUP_ROWS, 384)

    def most_memory(groups: int) -> tuple[int, int, int]:
        """Return bytes: Python's and numpy's at their peak, and between two pieces of the file theirs and Arrow's."""
        count = groups * ROW_GROUP_ROWS
        rows = rows_of([line] * count, vectors[:count], layout, {})
        before, of_python, of_arrow = tracemalloc.get_traced_memory()[0], 0, 0
        tracemalloc.reset_peak()
        for _ in encode(rows, layout, 384):
            pools = pa.default_memory_pool(), pa.system_memory_pool()
            of_arrow = max(of_arrow, sum(pool.bytes_allocated() for pool in pools))
            of_python = max(of_python, tracemalloc.get_traced_memory()[0] - before)
        return tracemalloc.get_traced_memory()[1] - before, of_python, of_arrow

    most_memory(1)  # what is allocated once for the process does not count
    tracemalloc.start()
    try:
        short, long = most_memory(2), most_memory(8)
    finally:
        tracemalloc.stop()
    texts, lines, numbers = (ROW_GROUP_ROWS * size for size in (2000, len(line.line), 384 * 4))
    # The rows' texts, the columns, and the piece that is written of the numbers, which hardly compress.
    assert short[0] < texts + (texts + lines + numbers) + numbers + (1 << 20)
    # A page of the numbers before and after it is encoded, and the levels of some of them: those of all, and float16's
    # pointers, would be three times as much.
    assert short[2] < 2 * numbers
    assert short[1] < numbers + (1 << 18)  # the piece: rows that are in a table are gone when it is written
    assert long[0] < short[0] + (1 << 18)
    assert long[2] < short[2] + (1 << 18)


def write_until_free_memory_is_given_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def write() -> None:
        assert list(encode(rows_of([document({"content": "a"})], random_vectors(1), PLAIN, Counter()), PLAIN, 8))

    write()  # which loads libraries
    pieces = [b"%4000d" % number for number in range(20_000)]
    kept = pieces.pop()  # it has the last place, so that malloc does not give back what lies before it
    full = resident()
    pieces.clear()
    assert full - resident() < 20 << 20
    while full - resident() < 60 << 20:
        write()
    assert len(kept) == 4000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves")
def test_memory_that_is_free_goes_back_to_the_system_while_files_are_written() -> None:
    code = f"import {__name__} as test; test.write_until_free_memory_is_given_back()"
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, check=True, timeout=60)


class WithoutPandas(importlib.abc.MetaPathFinder):
    """Lets `import pandas` fail as where it is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=name)


def write_and_read_every_type(folder: Path) -> None:
    assert "pandas" not in sys.modules
    sys.meta_path.insert(0, WithoutPandas())
    records = [{"content": "a", **dict.fromkeys(VALUES, None)}, {"content": "b", **VALUES}]
    for vector_type in (FLOAT32, FLOAT16):
        layout = Layout(PARQUET, "embedding", vector_type, EVERY_TYPE)
        path = folder / f"{vector_type}.parquet"
        digest = written(path, [document(record) for record in records], random_vectors(2), layout)
        rows, problems = read(path, layout, digest)
        assert not problems
        assert [row.values for row in rows] == [(None,) * 5, ("x", 7, 0.5, True, "[1]")]
        found = read_at(str(path), 1, "embedding")
        assert found is not None
        assert found.vector.tolist() == rows[1].vector.tolist()


def test_nothing_needs_pandas_which_is_no_requirement_of_an_installation(tmp_path: Path) -> None:
    code = f"import pathlib, sys, {__name__} as test; test.write_and_read_every_type(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment(), cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize(("count", "problem"), [(8192, []), (8193, ["it has a row group that is larger than any "])])
def test_row_groups_of_other_sizes_are_read_up_to_a_limit(tmp_path: Path, count: int, problem: list[str]) -> None:
    path = tmp_path / "x.parquet"
    written(path, [document({"content": "a"})] * count, random_vectors(count, 2), PLAIN)
    pq.write_table(pq.read_table(path), path, row_group_size=count)
    rows, problems = read(path, PLAIN, Digest(0, ""))
    assert len(rows) == (0 if problem else count)
    assert [one[:43] for one in problems[1:]] == problem  # the first is the checksum


def test_a_damaged_file_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    file = written(path, [document({"content": "a"})], random_vectors(1), PLAIN)
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-9], whole[4:], whole[:40] + b"\xff" * 40 + whole[80:], whole * 2):
        path.write_bytes(damaged)
        _, problems = read(path, PLAIN, file)
        assert problems[0].startswith("its checksum is ")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (Layout(PARQUET, "vector"), "its column 'embedding' is missing"),
        (Layout(PARQUET, "embedding", FLOAT16), "its columns are record string, text string, embedding "),
        (Layout(PARQUET, "embedding", FLOAT32, (Column("id", INT64),)), "but should be record string"),
    ],
)
def test_a_file_of_another_layout_is_a_problem(tmp_path: Path, wrong: Layout, problem: str) -> None:
    file = written(tmp_path / "x.parquet", [document({"content": "a"})], random_vectors(1), wrong)
    rows, problems = read(tmp_path / "x.parquet", PLAIN, file)
    assert not rows
    assert problem in problems[0]


@pytest.mark.parametrize("name", ["record", "text", "embedding"])
def test_a_column_that_is_there_twice_is_a_problem(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.parquet"
    file = written(path, [document({"content": "a"})], random_vectors(1), PLAIN)
    table = pq.read_table(path)
    pq.write_table(table.append_column(table.schema.field(name), table.column(name)), path)
    rows, problems = read(path, PLAIN, file)
    assert not rows
    assert problems[1] == f"its column {name!r} is missing, there twice, or of another type than Tayyar writes"
