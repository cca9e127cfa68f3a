from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import requests
from apache_beam.testing.util import assert_that

from pipeline import graph
from pipeline.job.sharding import Plan, make_plan
from pipeline.runners.endpoint import probe_endpoint
from tests.documents import documents
from tests.matchers import each_by, equal_in_any_order, local_pipeline
from tests.shards import LAYOUT, MADE
from transforms.elements import Document, Shard
from transforms.ndjson.lines import Line
from transforms.ndjson.parse import parse_line
from transforms.ndjson.splice import json_key, split_at_vector
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt
from transforms.sum_receipts import ReceiptSums
from transforms.tei.settings import EndpointSettings
from transforms.write_dead_letters import decode_dead_letter

BROKEN = [b"broken", b"\xff", b"{}", b'{"content":" "}']


def corpus(root: Path) -> dict[str, bytes]:
    """Sources by name: plain, nested, compressed, empty, and nothing but dead letters."""
    lines = [json.dumps(one, ensure_ascii=False).encode() for one in documents(160, seed=1)]
    sources = {
        "plain.ndjson": b"\r\n".join(lines[:80]),
        "deep/er/nested.jsonl": b"\n".join([lines[80], b"", *BROKEN, *lines[81:120]]) + b"\n",
        "packed.json.gz": b"\n\n".join(lines[120:] + BROKEN[:1]) + b"\n",
        "empty.ndjson": b"",
        "dead.ndjson": b"\n".join(BROKEN),
    }
    for name, data in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return {name.split(".")[0]: data for name, data in sources.items()}


def plainly(data: bytes, url: str) -> tuple[bytes, list[int]]:
    """The embedded lines of one source and the offsets of its dead letters, by a plain loop over the same functions."""
    output, dead, offset = [], [], 0
    for content in data.split(b"\n"):
        record = parse_line(Line(offset, content, len(content)), "x", "content", "embedding", 1 << 20)
        if isinstance(record, Document):
            reply = requests.post(f"{url}/embed", json={"inputs": record.text, "truncate": True}, timeout=10)
            vector = json.dumps(np.array(reply.json()[0], dtype=np.float32).tolist(), separators=(",", ":"))
            before, behind = split_at_vector(content, json_key("embedding"))
            output.append(before + vector.encode() + behind)
        elif record is not None:
            dead.append(offset)
        offset += len(content) + 1
    return b"\n".join(output), dead


def settings(url: str, output: OutputFolder, shard_bytes: int, max_in_flight: int | None = None) -> graph.Settings:
    endpoint = EndpointSettings((url,), max_in_flight=max_in_flight)
    profile = probe_endpoint(endpoint, 384)
    return graph.Settings(dataclasses.replace(endpoint, space=profile.space), output, MADE, LAYOUT, shard_bytes, 1.0)


def shards_of(plan: Plan) -> list[Shard]:
    return [shard for source in plan.sources for shard in plan.shards_of(source)]


def comparable(line: bytes) -> tuple[bytes, bytes]:
    """A line's bytes around its vector, and the vector's float32."""
    before, behind = split_at_vector(line, json_key("embedding"))
    vector = json.loads(line[len(before) : len(line) - len(behind)])
    return before + behind, np.array(vector, dtype=np.float32).tobytes()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    root = tmp_path_factory.mktemp("in")
    return root, corpus(root)


@pytest.fixture(scope="module")
def expected(sources: tuple[Path, dict[str, bytes]], hash_tei: str) -> dict[str, tuple[bytes, list[int]]]:
    _, data = sources
    return {name: plainly(content, hash_tei) for name, content in data.items()}


@pytest.mark.parametrize(("shard_bytes", "max_in_flight"), [(1 << 20, None), (5000, 8), (2000, 3)])
def test_the_graph_does_what_a_plain_loop_does(
    sources: tuple[Path, dict[str, bytes]],
    expected: dict[str, tuple[bytes, list[int]]],
    hash_tei: str,
    tmp_path: Path,
    shard_bytes: int,
    max_in_flight: int | None,
) -> None:
    root, _ = sources
    output = OutputFolder(str(tmp_path), "run")
    plan = make_plan([str(root)], str(tmp_path), shard_bytes)
    embedded = sum(len(lines.splitlines()) for lines, _ in expected.values())
    dead = sum(len(offsets) for _, offsets in expected.values())
    assert (embedded, dead) == (160, 9)
    with local_pipeline() as pipeline:
        outputs = graph.build(pipeline, shards_of(plan), settings(hash_tei, output, shard_bytes, max_in_flight))
        counts = outputs.sums | beam.Map(lambda sums: sums._replace(shards=0))
        assert_that(counts, equal_in_any_order([ReceiptSums(0, 169, 160, 9)]))
    names = sorted(output.list())
    for name, (lines, offsets) in expected.items():
        parts = [path for path in names if path.startswith(f"data/{name}-")]
        found = b"".join(output.read(path) or b"" for path in parts)
        assert [comparable(line) for line in found.splitlines()] == [comparable(line) for line in lines.splitlines()]
        letters = [
            decode_dead_letter(line)
            for path in names
            if path.startswith(f"dead_letters/{name}-")
            for line in (output.read(path) or b"").splitlines()
        ]
        assert [letter.offset for letter in letters] == offsets
    assert not [name for name in names if name.startswith(output.temporary)]


def test_a_retried_bundle_gives_only_the_shards_without_receipt(
    sources: tuple[Path, dict[str, bytes]], hash_tei: str, tmp_path: Path
) -> None:
    root, _ = sources
    output = OutputFolder(str(tmp_path), "run")
    told = settings(hash_tei, output, 5000)
    work = shards_of(make_plan([f"{root}/plain.ndjson", f"{root}/packed.json.gz"], str(tmp_path), 5000))
    with local_pipeline() as pipeline:
        _ = graph.build(pipeline, work, told)
    before = {name: stat.mtime for name, stat in output.list().items()}
    undone = ["plain-00001", "packed-00000"]
    output.delete(output.receipt(name) for name in undone)

    def again(receipt: Receipt) -> None:
        assert receipt.balances

    with local_pipeline() as pipeline:
        receipts = graph.build(pipeline, work, told).receipts
        assert_that(receipts, each_by(lambda receipt: receipt.shard, dict.fromkeys(undone, again)))
    after = {name: stat.mtime for name, stat in output.list().items()}
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {
        *(output.receipt(name) for name in undone),
        *(output.embedded(name) for name in undone),
        *(output.keys(name) for name in undone),
    }


def test_nothing_that_carries_documents_is_shuffled(hash_tei: str, tmp_path: Path) -> None:
    pipeline = beam.Pipeline()
    graph.build(pipeline, [], settings(hash_tei, OutputFolder(str(tmp_path), "run"), 5000))
    shuffles: list[str] = []

    class Shuffles(beam.pipeline.PipelineVisitor):  # type: ignore[misc] # Beam ships no types
        def enter_composite_transform(self, node: beam.pipeline.AppliedPTransform) -> None:
            self.visit_transform(node)

        def visit_transform(self, node: beam.pipeline.AppliedPTransform) -> None:
            if isinstance(node.transform, (beam.GroupByKey, beam.Flatten)):
                shuffles.append(node.full_label.split("/")[0])

    pipeline.visit(Shuffles())
    assert set(shuffles) == {"SpreadShards", "SumReceipts"}
