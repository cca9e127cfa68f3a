from __future__ import annotations

import hashlib
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that

from tests.matchers import equal_in_any_order, local_pipeline
from transforms.elements import Shard, Source
from transforms.list_shards import FOLDER, MAX_DESCRIBED_BYTES, ListShards, read_list, write_lists
from transforms.output.folder import OutputFolder
from transforms.storage.base import StorageError

DATAFLOW_LIMIT = 10 << 20  # bytes of a job's description


def shards(number: int) -> list[Shard]:
    """As many shards of plain files as that, and one of a compressed file."""
    source = Source("gs://some-bucket/a/folder/of/some/depth/wiki_ويكي.ndjson", "depth/wiki_ويكي", 1 << 40, "1718")
    packed = Source("gs://some-bucket/packed.gz", "packed", 5, "1", compressed=True)
    plain = [Shard(source, index, index << 24, (index + 1) << 24, index == number - 1) for index in range(number)]
    return [*plain, Shard(packed, 0, 0, None)]


def unlike_any_other(number: int) -> Shard:
    """A shard of a file whose name has nothing in common with others: Beam compresses what it describes."""
    name = hashlib.sha256(str(number).encode()).hexdigest()
    return Shard(Source(f"gs://some-bucket/{name}.ndjson", name, number, name[:16]), 0, 0, number, last=True)


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path), "run")


def test_little_work_is_in_the_description(output: OutputFolder) -> None:
    assert write_lists(shards(10_000), output) == []
    assert not output.list()


def test_much_work_is_read_from_the_folder_and_is_the_same(output: OutputFolder) -> None:
    work = shards(12_000)
    lists = write_lists(work, output, max_bytes=1_000_000)
    assert sorted(output.list()) == lists == [f"{FOLDER}/run-{number:05d}.ndjson" for number in range(3)]
    with local_pipeline() as pipeline:
        assert_that(pipeline | ListShards(work, output, lists), equal_in_any_order(work))


def test_the_most_that_is_described_is_well_below_what_dataflow_takes(output: OutputFolder) -> None:
    work = [unlike_any_other(number) for number in range(13_000)]
    assert write_lists(work, output) == []
    assert write_lists(work, output, max_bytes=MAX_DESCRIBED_BYTES * 9 // 10) != []  # so that this is nearly the most
    pipeline = beam.Pipeline()
    _ = pipeline | ListShards(work, output)
    described = len(pipeline.to_runner_api().SerializeToString())
    assert described > 1_000_000  # the shards are in there
    assert described * 4 / 3 < DATAFLOW_LIMIT * 0.9  # as base64, and with room for all else


@pytest.mark.parametrize("content", [None, b"{", b"[]\n", b'{"source": 5}\n', b'{"index": 1}\n'])
def test_a_list_that_is_gone_or_damaged_is_named_with_the_remedy(output: OutputFolder, content: bytes | None) -> None:
    name = f"{FOLDER}/run-00000.ndjson"
    if content is not None:
        output.write(name, [content])
    with pytest.raises(StorageError, match=r"run-00000\.ndjson, which lists shards to do, cannot be read: .* Run the"):
        list(read_list(output, name))
