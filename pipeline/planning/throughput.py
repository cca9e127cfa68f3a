"""How fast an endpoint is: real documents at rising concurrency, for a few seconds each."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from pipeline.reporting.numbers import count, rate
from transforms.tei.client import PendingEmbeddings, TeiClient
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings

LEVEL_SECONDS = 2.0
MAX_SECONDS = 11.0  # of all levels together: a person waits for the answer
FIRST_LEVEL = 32  # texts in flight: one request of the usual size
_FIRST_TEXTS = 4
_LITTLE_GAIN = 1.1
_LOOK_SECONDS = 0.02


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


def probe_speed(
    settings: EndpointSettings, permits: int, texts: Sequence[str], max_seconds: float = MAX_SECONDS
) -> Speed:
    """Double the texts in flight until that gains little, no more are permitted, or the time is over.

    Args:
        settings: of the endpoint, whose model is known.
        permits: texts that the server takes at once, at least one.
        texts: real ones, at least one; used again and again.
        max_seconds: after which the level under way is the last; the first few texts are waited for in any case.

    Raises:
        EndpointError: if the endpoint does not embed them.
    """
    began = time.monotonic()
    deadline = began + max_seconds
    levels: list[Level] = []
    first: Embeddings | None = None
    with tqdm(disable=None, leave=False, bar_format="{desc}", mininterval=0.5, miniters=1) as bar:

        def show(level: str) -> None:
            bar.set_description_str(
                f"measuring the endpoint: {level}; {time.monotonic() - began:.0f} s of {max_seconds:.0f} s",
                refresh=False,
            )
            bar.update()  # draws at most every half a second

        for in_flight in _levels(min(permits, settings.max_in_flight or permits)):
            client = TeiClient(dataclasses.replace(settings, max_in_flight=in_flight))
            try:
                show("handshake")
                client.probe()  # no part of the endpoint's speed
                if first is None:
                    show("first texts")
                    started = time.monotonic()
                    first = client.submit(texts[:_FIRST_TEXTS]).result()
                    alone = len(first.vectors) / (time.monotonic() - started)
                speed = _measure(client, in_flight, texts, deadline, show)
            finally:
                client.close()
            if speed is not None:
                levels.append(Level(in_flight, speed))
            elif not levels:  # no full request came back in time, but those of the first few texts did
                levels.append(Level(len(first.vectors), alone))
            gains = len(levels) < 2 or levels[-1].documents_per_second >= _LITTLE_GAIN * levels[-2].documents_per_second
            if not gains or time.monotonic() >= deadline:
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


def _measure(
    client: TeiClient, in_flight: int, texts: Sequence[str], deadline: float, show: Callable[[str], None]
) -> float | None:
    """Return documents a second with always enough to do; None if none was embedded before the deadline.

    What is under way in the end is not waited for: on a slow endpoint that would take longer than the measurement.
    """
    stream = itertools.cycle(texts)
    waiting: deque[PendingEmbeddings] = deque()
    before, started = client.settled, time.monotonic()
    settled, speed = 0, None
    while True:
        while len(waiting) < 3:
            waiting.append(client.submit([*itertools.islice(stream, in_flight)]))
        while waiting and waiting[0].done():
            waiting.popleft().result()  # which raises what went wrong
        now = time.monotonic()
        if (done := client.settled - before) > settled:
            settled, speed = done, done / (now - started)
        show(
            f"{count(in_flight, 'text')} in flight, {rate(speed)}" if speed else f"{count(in_flight, 'text')} in flight"
        )
        if now >= deadline or (now - started >= LEVEL_SECONDS and settled >= in_flight):
            return speed
        time.sleep(_LOOK_SECONDS)
