"""What the requests for a number of texts took: summed over requests, shards and runs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

# Upper bounds in milliseconds, a factor of 2^(1/4) apart: a quantile read from them is at most 19 % too high.
BUCKETS_PER_DOUBLING = 4


def latency_bucket(milliseconds: float) -> int:
    """The upper bound of a latency's bucket, rounded up to whole milliseconds; at least 1."""
    exponent = math.ceil(math.log2(max(milliseconds, 1.0)) * BUCKETS_PER_DOUBLING)
    bound: float = 2.0 ** (exponent / BUCKETS_PER_DOUBLING)
    return math.ceil(bound)


@dataclass(slots=True)
class RequestStatistics:
    """Sums over requests. Mutable, and not shared between threads: whoever shares one locks it.

    Attributes:
        tokens: as the server counted them, after truncation, special tokens included.
        requests: HTTP exchanges that succeeded.
        retries: HTTP exchanges that were repeated, whatever for.
        queue_ms: `x-queue-time` summed over texts.
        inference_ms: `x-inference-time` summed over texts.
        throttled_ms: time spent waiting because the server had said to wait.
        at_limit: texts of as many tokens as the model reads: cut, unless they fit exactly. A lower bound: the server
            counts tokens by request, so texts are seen where all of a request are so long; that those of a length go
            together makes it likely.
    """

    tokens: int = 0
    requests: int = 0
    retries: int = 0
    queue_ms: int = 0
    inference_ms: int = 0
    throttled_ms: int = 0
    at_limit: int = 0
    latency_ms: Counter[int] = field(default_factory=Counter)
