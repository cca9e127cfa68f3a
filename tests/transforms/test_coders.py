from __future__ import annotations

import apache_beam as beam
import pytest

from tests.shards import embedded_shard, letter
from transforms.coders import ShardCoder
from transforms.elements import DocumentShard, EmbeddedShard, Shard, ShardDeadLetters, Source

SOURCE = Source("/in/a.ndjson.gz", "a", 77, "1.0")


@pytest.mark.parametrize("kind", [DocumentShard, EmbeddedShard, ShardDeadLetters])
def test_elements_that_hold_documents_have_this_coder(kind: type) -> None:
    assert isinstance(beam.coders.registry.get_coder(kind), ShardCoder)


def test_an_element_comes_back() -> None:
    shard = embedded_shard(3, [letter(5)])
    back = ShardCoder().decode(ShardCoder().encode(shard))
    assert (back.documents, back.dead_letters) == (shard.documents, shard.dead_letters)
    assert back.vectors.tobytes() == shard.vectors.tobytes()


@pytest.mark.parametrize(("start", "end", "size"), [(10, 30, 20), (0, None, 77), (0, 0, 1)])
def test_a_size_is_told_from_the_source(start: int, end: int | None, size: int) -> None:
    assert ShardCoder().estimate_size(DocumentShard(Shard(SOURCE, 0, start, end))) == size
