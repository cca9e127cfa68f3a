"""How fast an endpoint is: real documents at rising concurrency, for a few seconds each."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from transforms.tei.client import PendingEmbeddings, TeiClient
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings

SECONDS_A_LEVEL = 2.0
FIRST_LEVEL = 32  # texts in flight: one request of the usual size
_LITTLE_GAIN = 1.1


@dataclass(frozen=True, slots=True)
class Level:
    """What the endpoint did with so many texts in flight."""

    in_flight: int
    documents_per_second: float


@dataclass(frozen=True, slots=True)
class Speed:
    """The levels tried, and the first embeddings that came of it.

    Attributes:
        levels: in the order in which they were tried.
        embeddings: of the first texts.
    """

    levels: tuple[Level, ...]
    embeddings: Embeddings

    @property
    def best(self) -> Level:
        """The fastest level."""
        return max(self.levels, key=lambda level: level.documents_per_second)


def probe_speed(settings: EndpointSettings, permits: int, texts: Sequence[str]) -> Speed:
    """Double the texts in flight until that gains little, or no more are permitted.

    Args:
        settings: of the endpoint, whose model is known.
        permits: texts that the server takes at once.
        texts: real ones, at least one; used again and again.

    Raises:
        EndpointError: if the endpoint does not embed them.
    """
    levels: list[Level] = []
    first: Embeddings | None = None
    with tqdm(desc="probing the endpoint", unit=" documents", disable=None, leave=False) as bar:
        for in_flight in _levels(min(permits, settings.max_in_flight or permits)):
            client = TeiClient(dataclasses.replace(settings, max_in_flight=in_flight))
            try:
                first = first or client.submit(texts[:FIRST_LEVEL]).result()
                done, seconds = _embed_for(SECONDS_A_LEVEL, client, in_flight, texts)
            finally:
                client.close()
            bar.update(done)
            levels.append(Level(in_flight, done / seconds))
            if len(levels) > 1 and levels[-1].documents_per_second < _LITTLE_GAIN * levels[-2].documents_per_second:
                break
    if first is None:
        raise ValueError("no texts are permitted in flight")
    return Speed(tuple(levels), first)


def _levels(most: int) -> Iterator[int]:
    level = min(FIRST_LEVEL, most)
    while level < most:
        yield level
        level *= 2
    yield most


def _embed_for(seconds: float, client: TeiClient, in_flight: int, texts: Sequence[str]) -> tuple[int, float]:
    """Embed for so long, with always enough to do; return how many texts were embedded and how long it took."""
    stream = itertools.cycle(texts)
    client.submit(texts[:1]).result()  # what it takes to know the endpoint is no part of its speed
    waiting: deque[PendingEmbeddings] = deque()
    done, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        while len(waiting) < 3:
            waiting.append(client.submit([*itertools.islice(stream, in_flight)]))
        waiting.popleft().result()
        done += in_flight
    for pending in waiting:
        pending.result()
        done += in_flight
    return done, time.monotonic() - started
