from __future__ import annotations

import gzip
import io
import json
import os
import resource
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import example, given
from hypothesis import strategies as st

from tests.matchers import each_by, local_pipeline
from tests.shards import JOB, MADE, folder, put, receipt
from tests.strategies import sources
from transforms.elements import DocumentShard, Reason, Shard, Source
from transforms.ndjson.decompress import DamagedSource
from transforms.ndjson.lines import Line, lines_beginning_in, split_lines
from transforms.ndjson.parse import is_blank
from transforms.read_shards import (
    DAMAGED,
    MAX_SHARD_RECORDS,
    ReadShards,
    ShardTooDense,
    SourceChanged,
    cut_stream,
    lines_by_shard,
    parse_shard,
    read_damage,
)

UNLIMITED = 1 << 30
ANY = Source("/in/x.ndjson.gz", "x", 0, "0.0")


def write(path: Path, data: bytes) -> Source:
    path.write_bytes(data)
    found = path.stat()
    return Source(str(path), path.name.split(".")[0], found.st_size, str(found.st_mtime_ns))


def byte_ranges(source: Source, size: int, shard_bytes: int) -> list[Shard]:
    starts = range(0, max(size, 1), shard_bytes)
    return [
        Shard(source, k, start, min(start + shard_bytes, size), k == len(starts) - 1) for k, start in enumerate(starts)
    ]


@given(sources(), st.integers(1, 60), st.integers(1, 20))
@example(b"", 1, 1)
@example(b"a\n", 1, 1)
@example(b"a\n" + b"b" * 50, 7, 3)
def test_a_stream_has_the_shards_that_its_byte_ranges_would_have(data: bytes, shard_bytes: int, chunk: int) -> None:
    chunks = [data[start : start + chunk] for start in range(0, len(data), chunk)]
    found = list(cut_stream(split_lines(chunks, 0, UNLIMITED), ANY, shard_bytes))
    expected = []
    for shard in byte_ranges(ANY, len(data), shard_bytes):
        lines = lines_beginning_in(io.BytesIO(data), shard.start, shard.start + shard_bytes, UNLIMITED)
        expected.append([line for line in lines if not is_blank(line)])
    if len(found) == len(expected) - 1:  # nothing of the stream's lines tells of a newline at its end
        assert data.endswith(b"\n")
        assert len(data) % shard_bytes == 1 or shard_bytes == 1
        assert expected.pop() == []
    assert [lines for _, lines in found] == expected
    shards = [shard for shard, _ in found]
    assert [(shard.index, shard.start, shard.end) for shard in shards] == [
        (k, k * shard_bytes, (k + 1) * shard_bytes) for k in range(len(shards))
    ]
    assert [shard.last for shard in shards] == [False] * (len(shards) - 1) + [True]


def test_a_stream_gives_its_shards_as_it_goes() -> None:
    def lines() -> Iterable[Line]:
        yield Line(0, b"a" * 9, 9)
        yield Line(10, b"b", 1)
        raise DamagedSource("here")

    shards = cut_stream(lines(), ANY, 10)
    assert next(shards)[1] == [Line(0, b"a" * 9, 9)]
    with pytest.raises(DamagedSource):
        next(shards)


def test_a_shard_is_its_documents_its_dead_letters_and_their_count() -> None:
    contents = [b'{"content":"a"}', b"", b"{}", b'{"content":"b"}\r', b" ", b"nonsense"]
    lines = [Line(10 * n, content, len(content)) for n, content in enumerate(contents)]
    shard = parse_shard(Shard(ANY, 0, 0, 100), lines, "content", "embedding")
    assert [(document.offset, document.text) for document in shard.documents] == [(0, "a"), (30, "b")]
    assert [(letter.offset, letter.reason) for letter in shard.dead_letters] == [
        (20, Reason.MISSING_TEXT),
        (50, Reason.INVALID_JSON),
    ]
    assert shard.records == 4


@pytest.mark.parametrize("change", ["longer", "touched", "gone"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_source_that_changed_is_not_read(tmp_path: Path, change: str, ending: str) -> None:
    path = tmp_path / f"x.ndjson{ending}"
    source = write(path, gzip.compress(b"{}\n"))
    if change == "gone":
        path.unlink()
    elif change == "touched":
        os.utime(path, ns=(int(source.version), int(source.version) + 1))
    else:
        path.write_bytes(path.read_bytes() * 2)
        os.utime(path, ns=(int(source.version), int(source.version)))
    with pytest.raises(SourceChanged, match=str(path)):
        list(lines_by_shard(Shard(source, 0, 0, None if ending else 3), 100))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.ndjson{ending}"
    content = b'{"content": "a"}\n' * 20
    source = write(path, gzip.compress(content) if ending else content)
    reading = lines_by_shard(Shard(source, 0, 0, None if ending else len(content)), 100)
    next(reading)
    os.utime(path, ns=(int(source.version), int(source.version) + 1))
    with pytest.raises(SourceChanged, match=str(path)):
        list(reading)


def read(
    shards: list[Shard], output: Path, text_field: str = "content", shard_bytes: int = 64
) -> dict[str, DocumentShard]:
    """Run ReadShards; give the shards by name."""
    found: dict[str, DocumentShard] = {}
    rows = output / "rows"
    rows.mkdir(parents=True)
    with local_pipeline() as pipeline:
        documents = (
            pipeline
            | beam.Create(shards, reshuffle=False)
            | ReadShards(text_field, "embedding", shard_bytes, folder(output), JOB)
        )
        _ = documents | beam.Map(_save, str(rows))
    for path in sorted(rows.iterdir()):
        shard = beam.coders.PickleCoder().decode(path.read_bytes())
        found[path.name] = shard
    return found


def _save(shard: DocumentShard, rows: str) -> None:
    Path(rows, shard.shard.name).write_bytes(beam.coders.PickleCoder().encode(shard))


def texts(shards: dict[str, DocumentShard]) -> list[str]:
    return [document.text for name in sorted(shards) for document in shards[name].documents]


DATA = b"".join(b'{"content":"%d"}\n' % n for n in range(20)) + b"broken\n\n"


def test_shards_are_read_in_a_pipeline(tmp_path: Path) -> None:
    source = write(tmp_path / "x.ndjson", DATA)

    def reads(expected: list[Line]) -> object:
        def check(shard: DocumentShard) -> None:
            assert [document.offset for document in shard.documents] == [
                line.offset for line in expected if line.content.startswith(b"{")
            ]
            assert shard.records == len([line for line in expected if line.content])

        return check

    shards = byte_ranges(source, len(DATA), 64)
    assert len(shards) > 4
    checks = {
        shard.name: reads(list(lines_beginning_in(io.BytesIO(DATA), shard.start, shard.end or 0, UNLIMITED)))
        for shard in shards
    }
    with local_pipeline() as pipeline:
        documents = (
            pipeline | beam.Create(shards) | ReadShards("content", "embedding", 64, folder(tmp_path / "out"), JOB)
        )
        assert_that(documents, each_by(lambda shard: shard.shard.name, checks))  # type: ignore[arg-type]


def test_a_compressed_source_gives_the_same_documents(tmp_path: Path) -> None:
    plain = write(tmp_path / "x.ndjson", DATA)
    packed = write(tmp_path / "y.ndjson.gz", gzip.compress(DATA[:100]) + gzip.compress(DATA[100:]))
    ranges = read(byte_ranges(plain, len(DATA), 64), tmp_path / "a")
    stream = read([Shard(packed, 0, 0, None)], tmp_path / "b")
    assert texts(ranges) == texts(stream) == [str(n) for n in range(20)]
    assert [shard.documents for shard in ranges.values()] == [shard.documents for shard in stream.values()]
    assert [shard.shard.last for shard in stream.values()] == [False] * (len(stream) - 1) + [True]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_shards_that_got_their_receipt_since_the_plan_are_left_out(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.ndjson{ending}"
    source = write(path, gzip.compress(DATA) if ending else DATA)
    shards = [Shard(source, 0, 0, None)] if ending else byte_ranges(source, len(DATA), 100)
    output = folder(tmp_path / "out")
    put(output, receipt(1, source), receipt(2, source, provenance=replace(MADE, settings="0" * 16)))
    names = list(read(shards, tmp_path / "out", shard_bytes=100))
    assert names == ["x-00000", "x-00002", "x-00003"]


def test_a_damaged_source_gives_its_whole_shards_and_leaves_word(tmp_path: Path) -> None:
    data = b"".join(b'{"content":"%s"}\n' % os.urandom(500).hex().encode() for _ in range(300))
    source = write(tmp_path / "x.ndjson.gz", gzip.compress(data)[:-20_000])
    read_shards = read([Shard(source, 0, 0, None)], tmp_path / "out", shard_bytes=30_000)
    whole = list(read_shards.values())
    assert len(whole) > 3
    assert [shard.shard.index for shard in whole] == list(range(len(whole)))
    expected = [json.loads(line)["content"] for line in data.splitlines()]
    found = [document.text for shard in whole for document in shard.documents]
    assert found == expected[: len(found)]
    assert not any(shard.shard.last for shard in whole)
    output = folder(tmp_path / "out")
    (damage,) = read_damage(output, output.list())
    assert f"{source.path} is truncated or corrupt" in damage
    assert f"in its first {30_000 * len(whole)} decompressed bytes are kept" in damage


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_shard_of_more_records_than_fit_in_memory_ends_its_source_in_words(tmp_path: Path, ending: str) -> None:
    data = b"{}\n" * (MAX_SHARD_RECORDS + 1)
    source = write(tmp_path / f"x.ndjson{ending}", gzip.compress(data) if ending else data)
    assert read([Shard(source, 0, 0, None if ending else len(data))], tmp_path / "out", shard_bytes=16 << 20) == {}
    output = folder(tmp_path / "out")
    (damage,) = read_damage(output, output.list())
    assert f"more than {MAX_SHARD_RECORDS} records in its shard 0" in damage
    assert "--shard_bytes" in damage


def test_a_small_compressed_file_of_tiny_records_takes_bounded_memory(tmp_path: Path) -> None:
    """3 kB expand to a million records; the measured peak is 67 MiB."""
    source = write(tmp_path / "x.ndjson.gz", gzip.compress(b"{}\n" * 1_000_000))
    assert source.size < 3000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shards = lines_by_shard(Shard(source, 0, 0, None), 16 << 20)
    with pytest.raises(ShardTooDense, match="more than 400000 records"):
        list(shards)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10  # KiB


def test_word_of_a_damage_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    output = folder(tmp_path)
    for name, data in {"a": b"{", "b": b"[]", "c": b'{"error": 5}'}.items():
        output.write(f"{DAMAGED}/{name}.json", [data])
    assert read_damage(output, output.list()) == [f"{output.path(f'{DAMAGED}/{n}.json')} cannot be read" for n in "abc"]


def test_the_text_may_be_in_a_nested_field(tmp_path: Path) -> None:
    source = write(tmp_path / "x.ndjson", b'{"meta":{"body":"a"}}\n{"content":"b"}\n')
    (shard,) = read([Shard(source, 0, 0, source.size, True)], tmp_path / "out", "meta.body").values()
    assert [document.text for document in shard.documents] == ["a"]
    assert [letter.reason for letter in shard.dead_letters] == [Reason.MISSING_TEXT]


@pytest.mark.parametrize("line", [b"\n", b'{"content":"' + b"x" * 4000 + b'"}\n'])
def test_a_small_file_that_grows_a_thousandfold_is_read_in_bounded_memory(tmp_path: Path, line: bytes) -> None:
    expanded = (1 << 18) if line == b"\n" else (48 << 20)
    source = write(tmp_path / "x.ndjson.gz", gzip.compress(line * (expanded // len(line))))
    assert source.size < expanded / 200
    tracemalloc.start()
    try:
        records = 0
        for shard, lines in lines_by_shard(Shard(source, 0, 0, None), 4 << 20):
            records += parse_shard(shard, lines, "content", "embedding").records
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert records == (0 if line == b"\n" else expanded // len(line))
    assert peak < 24 << 20
