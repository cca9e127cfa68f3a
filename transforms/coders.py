"""How the elements that hold documents are encoded, should a runner ever do so, and how large they are."""

from __future__ import annotations

import pickle
from typing import Any

import apache_beam as beam

from transforms.elements import DocumentShard, EmbeddedShard, ShardDeadLetters


class ShardCoder(beam.coders.Coder):  # type: ignore[misc] # Beam ships no types
    """Pickles a shard, and tells its size without doing so.

    The transforms are fused, so that no shard is ever encoded. But a runner samples the sizes of elements, with so few
    elements all of them, and Beam's own coder learns a size by pickling: that took more time than reading the shard.
    """

    def encode(self, value: Any) -> bytes:
        """Return the pickled element."""
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def decode(self, encoded: bytes) -> Any:
        """Return the element."""
        return pickle.loads(encoded)

    def estimate_size(self, value: DocumentShard | EmbeddedShard | ShardDeadLetters) -> int:
        """Return about how many bytes the element would take, from the bytes of the source that it stands for."""
        shard = value.shard
        return (shard.source.size if shard.end is None else shard.end - shard.start) or 1


for _type in (DocumentShard, EmbeddedShard, ShardDeadLetters):
    beam.coders.registry.register_coder(_type, ShardCoder)
