"""How the elements that hold documents are encoded, should a runner ever do so, and how large they are."""

from __future__ import annotations

import pickle
from typing import Any

import apache_beam as beam

from transforms.elements import DocumentShard, EmbeddedShard, ShardDeadLetters


class ShardCoder(beam.coders.Coder):  # type: ignore[misc] # Beam ships no types
    """Pickle a shard, and estimate its size without doing so.

    The transforms are fused, so no shard is ever encoded. But a runner samples the sizes of elements, and of so few
    elements it takes every one. Beam's own coder would pickle each of them for its size, which took longer than reading
    the shard.
    """

    def encode(self, value: Any) -> bytes:
        """Return the pickled element."""
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def decode(self, encoded: bytes) -> Any:
        """Return the element."""
        return pickle.loads(encoded)

    def estimate_size(self, value: DocumentShard | EmbeddedShard | ShardDeadLetters) -> int:
        """Return the element's size in bytes, estimated by the bytes of the source that it stands for."""
        return value.shard.stored_bytes or 1


for _type in (DocumentShard, EmbeddedShard, ShardDeadLetters):
    beam.coders.registry.register_coder(_type, ShardCoder)
