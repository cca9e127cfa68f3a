"""When an endpoint may be asked again after failures and refusals. Pure; its owner locks."""

from __future__ import annotations

from transforms.tei.jitter import Jitter

FIRST_REST = 0.25  # seconds
LONGEST_REST = 5.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
SUSPECT_AFTER = 2  # failures in a row; one alone is a hiccup and stops nobody


class Health:
    """Whether an endpoint answers.

    Failures of requests that were under way together count as one. From the second in a row on, the endpoint rests for
    longer each time, and after each rest a single request finds out whether it is back.

    Attributes:
        failures: in a row.
        generation: how often the endpoint has failed; what was known of its model before holds no longer.
    """

    def __init__(self, jitter: Jitter) -> None:
        self.failures = 0
        self.generation = 0
        self._asked_until = float("-inf")  # for silence, by the endpoint
        self._rests_until = float("-inf")  # because it failed or refused
        self._refusals = 0
        self._failed_at = float("-inf")
        self._jitter = jitter

    @property
    def quiet_until(self) -> float:
        """The time before which nothing is sent."""
        return max(self._asked_until, self._rests_until)

    def admits(self, now: float, in_flight: int) -> bool:
        """Whether a request may go out."""
        return now >= self.quiet_until and (self.failures < SUSPECT_AFTER or in_flight == 0)

    def succeeded(self) -> None:
        """Any good reply ends the trouble, and the rest from it; silence that was asked for is kept."""
        self.failures = 0
        self._rests_until = float("-inf")
        self._refusals = 0

    def objected(self) -> None:
        """An answer of the server's own, though not to our liking: it is there."""
        self.failures = 0
        self._rests_until = float("-inf")

    def failed(self, sent_at: float, now: float, retry_after: float | None = None) -> float:
        """Counts a request without an answer of the server's own; gives back the seconds of silence asked for."""
        self.generation += 1
        asked = self._be_quiet(now, now + (retry_after or 0.0))
        if sent_at < self._failed_at:
            return asked
        self._failed_at = now
        self.failures += 1
        if self.failures >= SUSPECT_AFTER:
            rest = self._jitter.half(FIRST_REST, LONGEST_REST, self.failures)
            self._rests_until = max(self._rests_until, now + rest)
        return asked

    def refused(self, now: float, first_of_round: bool, retry_after: float | None = None) -> float:
        """Pauses after a 429, until a good reply at most; gives back the seconds of silence that this adds."""
        began = max(now, self.quiet_until)
        self._asked_until = max(self._asked_until, now + (retry_after or 0.0))
        if first_of_round:
            self._refusals += 1
            pause = self._jitter.full(FIRST_PAUSE, LONGEST_PAUSE, self._refusals)
            self._rests_until = max(self._rests_until, now + pause)
        return max(0.0, self.quiet_until - began)

    def _be_quiet(self, now: float, until: float) -> float:
        """Extends the silence; gives back the seconds that this adds."""
        added = max(0.0, until - max(now, self.quiet_until))
        self._asked_until = max(self._asked_until, until)
        return added
