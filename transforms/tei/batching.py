"""Cuts the texts of a shard into requests: the longest together, within the server's limits."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts of one request, by their index, longest first; `canary` where a known sentence goes with them."""

    indices: list[int]
    canary: bool


def cut(
    texts: Sequence[str],
    most_texts: int,
    most_characters: int,
    wants_canary: Callable[[], bool],
    kept: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Cuts texts into batches.

    A server that pads computes each device batch at its longest text's length, so texts of a length go together; the
    longest go first, so that none of them is what a shard waits for in the end.

    Args:
        texts: those of one shard.
        most_texts: in one request, the canary included.
        most_characters: in one request, unless a single text has more; a character is at least one byte.
        wants_canary: asked once for each batch.
        kept: the indices to cut; None for all.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    chosen = np.arange(len(texts)) if kept is None else np.asarray(kept, dtype=np.int64)
    order = chosen[np.argsort(-lengths[chosen], kind="stable")]
    totals: list[int] = [0, *np.cumsum(lengths[order]).tolist()]
    indices: list[int] = order.tolist()
    start = 0
    while start < len(indices):
        canary = wants_canary() and most_texts > 1
        within_bytes = bisect.bisect_right(totals, totals[start] + most_characters) - 1
        end = max(start + 1, min(start + most_texts - canary, within_bytes))
        yield Batch(indices[start:end], canary)
        start = end
