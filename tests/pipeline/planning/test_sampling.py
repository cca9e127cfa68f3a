from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from pipeline.job.sharding import Plan, make_plan
from pipeline.planning.sampling import BLOCK_BYTES, BLOCKS, Sample, _blocks, take_sample
from tests.documents import write_corpus
from transforms.elements import Document, Source


def plan_of(folder: Path) -> Plan:
    return make_plan([str(folder)], "/nowhere", 1 << 20)


def sample_of(folder: Path, seed: int = 0) -> Sample:
    return take_sample(plan_of(folder), "content", "embedding", seed)


def write_lines(path: Path, count: int, seed: int) -> None:
    """Lines of very different lengths, long ones in a row: what a sample that is not fair gets wrong."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            words = 2 if number % 1000 < 500 else rng.randint(50, 900)
            file.write(json.dumps({"content": "word " * words}) + "\n")


def test_a_small_plan_is_read_whole(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=3, per_file=50)
    found = sample_of(tmp_path)
    assert (found.total.low, found.total.value, found.total.high) == (150, 150, 150)
    assert len({record.parsed.line for record in found.records}) == 150
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.ndjson"))
    assert sum(record.length for record in found.records) == size


def test_what_is_no_document_is_sampled_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text('{"content": "text"}\n\nno json\n{"content": ""}')
    found = sample_of(tmp_path)
    kinds = ["" if isinstance(r.parsed, Document) else r.parsed.reason.value for r in found.records]
    assert kinds == ["", "invalid_json", "empty_text"]
    assert found.total.value == 3


def test_the_interval_holds_nineteen_times_of_twenty_or_nearly(tmp_path: Path) -> None:
    for number in range(2):
        write_lines(tmp_path / f"{number}.ndjson", count=5000, seed=number)
    found = [sample_of(tmp_path, seed) for seed in range(12)]
    assert all(len(sample.records) < 6000 for sample in found)
    assert sum(sample.total.low <= 10_000 <= sample.total.high for sample in found) >= 10
    means = sum(sample.total.value for sample in found) / len(found)
    assert means == pytest.approx(10_000, rel=0.1)


def test_a_plan_of_any_size_takes_the_same_memory() -> None:
    sizes = [1, BLOCK_BYTES, 0, 3 * BLOCK_BYTES + 1, 1 << 50]
    sources = [Source(f"/{number}", str(number), size, "0.0") for number, size in enumerate(sizes)]
    everything = [*_blocks(sources[:4], random.Random(0))]
    assert [(block.source.name, block.start, block.end) for block in everything] == [
        ("0", 0, 1),
        ("1", 0, BLOCK_BYTES),
        *(("3", start * BLOCK_BYTES, (start + 1) * BLOCK_BYTES) for start in range(3)),
        ("3", 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 1),
    ]
    found = [*_blocks(sources, random.Random(0))]
    assert len(found) == BLOCKS
    assert all(block.source.name == "4" and block.end == block.start + BLOCK_BYTES for block in found)


def test_the_same_seed_takes_the_same_sample(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.ndjson", count=4000, seed=1)
    assert sample_of(tmp_path, 3) == sample_of(tmp_path, 3)
    assert sample_of(tmp_path, 3) != sample_of(tmp_path, 4)


def test_files_of_different_kinds_that_are_read_whole_are_counted_exactly(tmp_path: Path) -> None:
    for name, count, text in [("a.ndjson", 30, "w "), ("b.ndjson", 7, "long " * 5000), ("c.ndjson", 1, "x")]:
        data = (json.dumps({"content": text}) + "\n").encode() * count
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"packed_{name}.gz").write_bytes(gzip.compress(data))
    found = sample_of(tmp_path)
    assert len(found.records) == 76
    assert (found.total.low, found.total.value, found.total.high) == pytest.approx((76, 76, 76))


def test_compressed_sources_are_counted_by_their_beginnings(tmp_path: Path) -> None:
    write_corpus(tmp_path / "plain", files=1, per_file=8000)
    content = (tmp_path / "plain/wiki_00.ndjson").read_bytes()
    (tmp_path / "packed").mkdir()
    for number in range(3):
        (tmp_path / f"packed/{number}.ndjson.gz").write_bytes(gzip.compress(content))
    found = sample_of(tmp_path / "packed")
    assert len(found.records) < 3 * 8000
    assert found.total.value == pytest.approx(24_000, rel=0.1)
