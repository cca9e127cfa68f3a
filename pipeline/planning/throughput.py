"""How fast an endpoint is: real documents at rising concurrency, for a few seconds each."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.reporting.numbers import count, rate
from transforms.tei.client import PendingEmbeddings, TeiClient
from transforms.tei.handshake import EndpointProfile
from transforms.tei.settings import EndpointSettings

LEVEL_SECONDS = 2.0  # for each number of texts in flight
FIRST_LEVEL = 32  # texts in flight: one request of the usual size
_REQUESTS = 8  # full ones that are submitted at once, because the last one of several is not full
_LITTLE_GAIN = 1.1  # with twice as many texts in flight; less is noise
_LOOK_SECONDS = 0.02  # between two looks at what is done


@dataclass(frozen=True, slots=True)
class Level:
    """What the endpoint did with so many texts in flight."""

    in_flight: int
    documents_per_second: float


def probe_speed(
    settings: EndpointSettings,
    profile: EndpointProfile,
    permits: int,
    texts: Sequence[str],
    max_seconds: float,
    show: Callable[[str], None] = lambda _: None,
) -> list[Level]:
    """Double the texts in flight until that gains little, no more are permitted, or the time is over.

    Args:
        settings: of the endpoint.
        profile: of the endpoint, from its handshake.
        permits: texts that the server takes at once, at least one.
        texts: real ones, at least one; used again and again.
        max_seconds: of all levels together; what is under way then is not waited for.
        show: takes what is being measured, again and again.

    Returns:
        The levels in the order in which they were tried. Of an endpoint that embeds no text in time, there is one: what
        the handshake saw of a long text alone.

    Raises:
        EndpointError: if the endpoint does not embed them.
    """
    deadline = time.monotonic() + max_seconds
    # A request comes back when all of its texts are done, so a slow endpoint must get small ones to answer in time.
    first = FIRST_LEVEL
    while first > 1 and first * profile.seconds_per_text > max_seconds / 3:
        first //= 2
    levels: list[Level] = []
    for in_flight in _levels(first, min(permits, settings.max_in_flight or permits)):
        client = TeiClient(dataclasses.replace(settings, max_in_flight=in_flight), profile=profile)
        try:
            speed = _measure(client, in_flight, texts, deadline, show)
        finally:
            client.close()
        if speed is None:
            break
        levels.append(Level(in_flight, speed))
        gains = len(levels) < 2 or levels[-1].documents_per_second >= _LITTLE_GAIN * levels[-2].documents_per_second
        if not gains or time.monotonic() >= deadline:
            break
    return levels or [Level(1, 1 / profile.seconds_per_text)]


def fastest(levels: Sequence[Level]) -> Level:
    """Return the level with the most documents a second."""
    return max(levels, key=lambda level: level.documents_per_second)


def _levels(first: int, last: int) -> Iterator[int]:
    """Yield the first number of texts in flight, twice that, and so on, and in the end the last."""
    level = min(first, last)
    while level < last:
        yield level
        level *= 2
    yield last


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
        while len(waiting) < 2:
            waiting.append(client.submit([*itertools.islice(stream, _REQUESTS * in_flight)]))
        while waiting and waiting[0].done():
            waiting.popleft().result()  # which raises what went wrong
        now = time.monotonic()
        if (done := client.settled - before) > settled:
            settled, speed = done, done / (now - started)
        measured = f", {rate(speed)}" if speed else ""
        show(f"measuring the endpoint with {count(in_flight, 'text')} in flight{measured}")
        if now >= deadline or (now - started >= LEVEL_SECONDS and settled >= in_flight):
            return speed
        time.sleep(_LOOK_SECONDS)
