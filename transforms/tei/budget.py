"""How many texts may be in flight on one endpoint: additive increase, multiplicative decrease.

Pure: whoever owns a budget locks it.
"""

from __future__ import annotations

DECREASE = 0.7
ROUND_TRIPS_TO_FULL = 64


class Budget:
    """Texts in flight, bounded by a limit that follows what the server takes.

    Every client of a server adds the same number of texts a round trip and gives up the same share when it is refused:
    that takes them to equal limits without their knowing of each other.

    Attributes:
        ceiling: what the server permits; a client that is alone starts there, and is never refused.
        in_flight: texts of requests under way.

    Args:
        ceiling: as above.
        first: the limit to start with, for one of several clients; None for the ceiling.
    """

    def __init__(self, ceiling: int, first: int | None = None) -> None:
        self.ceiling = ceiling
        self.in_flight = 0
        self._limit = float(ceiling if first is None else min(first, ceiling))
        self._cut_at = float("-inf")

    @property
    def limit(self) -> int:
        """Texts that may be in flight; at least 1."""
        return int(self._limit)

    def fits(self, texts: int) -> bool:
        """Whether a request of so many texts may go out now."""
        return self.in_flight + texts <= self.limit

    def acquire(self, texts: int) -> None:
        """Counts a request that goes out."""
        self.in_flight += texts

    def release(self, texts: int) -> None:
        """Counts a request that has ended, however it did."""
        self.in_flight -= texts

    def succeeded(self, texts: int) -> None:
        """Raises the limit by the same step for every full round trip."""
        step = max(1.0, self.ceiling / ROUND_TRIPS_TO_FULL)
        self._limit = min(self.ceiling, self._limit + step * texts / self._limit)

    def refused(self, sent_at: float, now: float) -> bool:
        """Lowers the limit, at most once for all requests that were under way together; says whether it did.

        Call it before `release`. What counts is what was in flight, where that was less than the limit; but a client
        with little to send learns little from a refusal, so not much less.
        """
        if sent_at < self._cut_at:
            return False
        self._cut_at = now
        used = min(self._limit, max(self.in_flight, self._limit / 2))
        self._limit = max(1.0, used * DECREASE)
        return True

    def resize(self, ceiling: int) -> None:
        """Takes a limit that the server has changed."""
        self.ceiling = ceiling
        self._limit = min(self._limit, ceiling)
