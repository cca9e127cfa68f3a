"""How long to wait: at random, so that clients that failed together do not come back together."""

from __future__ import annotations

import random


class Jitter:
    """Draws delays.

    Args:
        rng: where chance comes from.
        pace: what all delays are multiplied by.
    """

    def __init__(self, rng: random.Random, pace: float = 1.0) -> None:
        self._rng = rng
        self._pace = pace

    def full(self, first: float, longest: float, times: int) -> float:
        """Seconds between none and a bound that begins at `first` and doubles every time."""
        return self._rng.uniform(0, self._bound(first, longest, times))

    def half(self, first: float, longest: float, times: int) -> float:
        """The same, but at least half the bound: for a rest that must be one."""
        bound = self._bound(first, longest, times)
        return self._rng.uniform(bound / 2, bound)

    def _bound(self, first: float, longest: float, times: int) -> float:
        return self._pace * min(longest, first * 2.0 ** min(times, 30))
