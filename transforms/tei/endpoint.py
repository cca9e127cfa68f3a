"""How many texts may be in flight on one endpoint: additive increase, multiplicative decrease.

Pure: whoever owns a budget locks it.
"""

from __future__ import annotations

DECREASE = 0.7
ROUND_TRIPS_TO_FULL = 64
LEAST_PART = 8  # texts: a gateway that counts requests gets ever more of them otherwise, and refuses those too
PARTS = 4  # of a limit, in as many requests at least: a refusal takes away more than one of them


class Budget:
    """Texts in flight, bounded by a limit that follows what the server takes.

    Every client of a server adds the same number of texts a round trip. When it is refused, one with more than its
    share in flight goes back to that, and another gives up the same part of its limit: that takes them to equal limits
    without their knowing of each other.

    Attributes:
        ceiling: what the server permits; a client that is alone starts there, and is never refused.
        share: what is this client's of it, where it knows how many there are; it starts there.
        in_flight: texts of requests under way.

    Args:
        ceiling: as above.
        share: as above; None for the ceiling.
    """

    def __init__(self, ceiling: int, share: int | None = None) -> None:
        self.ceiling = ceiling
        self.share = ceiling if share is None else min(share, ceiling)
        self.in_flight = 0
        self._limit = float(self.share)
        self._cut_at = float("-inf")

    @property
    def limit(self) -> int:
        """Texts that may be in flight; at least 1."""
        return int(self._limit)

    @property
    def most_texts(self) -> int:
        """Texts that one request may hold; at least 1.

        Whole batches for a client that has its share, or knows of no others. Smaller ones for another: a limit of a
        few batches would be used by halves or thirds, which no small change of the limit moves from one client to
        another.
        """
        if self._limit >= self.share or self.share == self.ceiling:
            return self.limit
        return min(self.limit, max(LEAST_PART, self.limit // PARTS))

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
        self._limit = float(self.share) if self.in_flight > self.share else max(1.0, used * DECREASE)
        return True

    def resize(self, ceiling: int, share: int | None = None) -> None:
        """Takes what the server permits now, and this client's share of it."""
        self.ceiling = ceiling
        self.share = ceiling if share is None else min(share, ceiling)
        self._limit = min(self._limit, ceiling)
