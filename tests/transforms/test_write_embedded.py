from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import time
import weakref
from pathlib import Path

import apache_beam as beam
import google_crc32c
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

from tests.matchers import each_by, local_pipeline
from tests.shards import JOB, LAYOUT, MADE, embedded_shard, folder, letter
from transforms.elements import Document, EmbeddedShard, Reason
from transforms.output.layout import NDJSON, Layout
from transforms.output.receipts import Receipt, decode_receipt, is_done
from transforms.write_dead_letters import encode_dead_letter
from transforms.write_embedded import WriteEmbedded, write_shard


def files_in(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_shard_is_one_file_and_one_receipt(tmp_path: Path) -> None:
    shard = embedded_shard(2, dimensions=2)
    before = time.time()
    receipt = write_shard(
        shard, folder(tmp_path), dataclasses.replace(MADE, embedding_field="vector"), Layout(NDJSON, "vector")
    )
    files = files_in(tmp_path)
    assert files.keys() == {"data/wiki-00000.ndjson", "_job/keys/wiki-00000.u64", "_job/receipts/wiki-00000.json"}
    assert files["_job/keys/wiki-00000.u64"] == b"".join(hashlib.sha256(text).digest()[:8] for text in (b"0", b"1"))
    written = files["data/wiki-00000.ndjson"]
    assert written == b'{"content":"0","vector":[0.125,0.25]}\n{"content":"1","vector":[0.375,0.5]}\n'
    assert decode_receipt(files["_job/receipts/wiki-00000.json"]) == receipt
    assert receipt.balances
    assert (receipt.records, receipt.embedded, receipt.dead_letters, receipt.reasons) == (2, 2, 0, {})
    assert (receipt.statistics, receipt.model, receipt.job) == (shard.statistics, MADE.model, JOB)
    assert receipt.started_at == 1000.25
    assert before <= receipt.finished_at <= time.time()
    assert receipt.output is not None
    assert receipt.output.bytes == len(written)
    assert base64.b64decode(receipt.output.crc32c) == google_crc32c.value(written).to_bytes(4, "big")
    assert receipt.dead_letter_output is None
    assert is_done(folder(tmp_path), shard.shard, JOB)


def test_the_receipt_vouches_for_the_dead_letters_that_another_step_writes(tmp_path: Path) -> None:
    letters = [letter(5), letter(9, b"\xff", reason=Reason.INVALID_UTF8), letter(11)]
    shard, output = embedded_shard(3, letters), folder(tmp_path)
    receipt = write_shard(shard, output, MADE, LAYOUT)
    assert (receipt.records, receipt.embedded, receipt.dead_letters) == (6, 3, 3)
    assert receipt.reasons == {"missing_text": 2, "invalid_utf8": 1}
    assert receipt.balances
    assert not is_done(output, shard.shard, JOB)
    assert receipt.dead_letter_output == output.write(
        "dead_letters/wiki-00000.ndjson", map(encode_dead_letter, letters)
    )
    assert is_done(output, shard.shard, JOB)


def test_a_shard_without_embedded_documents_has_a_receipt_and_no_file(tmp_path: Path) -> None:
    shard = embedded_shard(0)
    receipt = write_shard(shard, folder(tmp_path), MADE, LAYOUT)
    assert files_in(tmp_path).keys() == {"_job/receipts/wiki-00000.json"}
    assert receipt.output is None
    assert is_done(folder(tmp_path), shard.shard, JOB)


def test_a_shard_is_written_again_under_the_same_names(tmp_path: Path) -> None:
    write_shard(embedded_shard(9), folder(tmp_path), MADE, LAYOUT)
    receipt = write_shard(embedded_shard(2), folder(tmp_path), MADE, LAYOUT)
    files = files_in(tmp_path)
    assert len(files) == 3
    assert len(files["data/wiki-00000.ndjson"].splitlines()) == 2
    assert decode_receipt(files["_job/receipts/wiki-00000.json"]) == receipt


def test_without_its_file_a_shard_gets_no_receipt(tmp_path: Path) -> None:
    (tmp_path / "data/wiki-00000.ndjson" / "in the way").mkdir(parents=True)
    with pytest.raises(Exception, match="wiki-00000"):
        write_shard(embedded_shard(), folder(tmp_path), MADE, LAYOUT)
    assert not (tmp_path / "_job" / "receipts").exists()


def test_large_shards_are_written_in_blocks_and_lose_nothing(tmp_path: Path) -> None:
    count = 3000
    documents = tuple(Document(n, b'{"content":"%d","x":"%s"}' % (n, b"x" * 900), str(n), False) for n in range(count))
    vectors = np.random.default_rng(1).random((count, 4), dtype=np.float32)
    shard = embedded_shard(0)
    shard = type(shard)(shard.shard, documents, vectors, (), count, shard.statistics, 0.0)
    write_shard(shard, folder(tmp_path), MADE, LAYOUT)
    lines = [json.loads(line) for line in (tmp_path / "data/wiki-00000.ndjson").read_bytes().splitlines()]
    assert [line["content"] for line in lines] == [str(n) for n in range(count)]
    assert np.array([line["embedding"] for line in lines], dtype=np.float32).tobytes() == vectors.tobytes()


def test_in_a_pipeline_every_shard_gives_its_receipt(tmp_path: Path) -> None:
    def balances(receipt: Receipt) -> None:
        assert (receipt.records, receipt.balances) == (3, True)

    with local_pipeline() as pipeline:
        shards = pipeline | beam.Create([embedded_shard(2, [letter(1)], index) for index in range(3)])
        receipts = shards | WriteEmbedded(folder(tmp_path), MADE, LAYOUT)
        names = [f"wiki-{index:05d}" for index in range(3)]
        assert_that(receipts, each_by(lambda receipt: receipt.shard, dict.fromkeys(names, balances)))
    assert sum(name.endswith(".ndjson") for name in files_in(tmp_path)) == 3


# Of the shards that `make_and_count` made: their vectors, and how many of them were in memory at each call. The runner
# works in this process, and pickles a function of a module as its name.
MADE_VECTORS: list[weakref.ref[np.ndarray]] = []
IN_MEMORY: list[int] = []


def make_and_count(index: int) -> EmbeddedShard:
    IN_MEMORY.append(sum(vectors() is not None for vectors in MADE_VECTORS))
    shard = embedded_shard(2, index=index)
    MADE_VECTORS.append(weakref.ref(shard.vectors))
    return shard


def test_a_shard_that_is_written_is_no_longer_in_memory_when_the_next_one_comes(tmp_path: Path) -> None:
    MADE_VECTORS.clear()
    IN_MEMORY.clear()
    with local_pipeline() as pipeline:
        shards = pipeline | beam.Create(range(4)) | beam.Map(make_and_count)
        shards | WriteEmbedded(folder(tmp_path), MADE, LAYOUT)
    assert IN_MEMORY == [0, 0, 0, 0]
