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
        self._pauses_until = float("-inf")  # because it refused
        self._rests_until = float("-inf")  # because it failed
        self._silent_since = float("inf")  # as far as that was not counted yet
        self._refusals = 0
        self._failed_at = float("-inf")
        self._jitter = jitter

    @property
    def quiet_until(self) -> float:
        """The time before which nothing is sent."""
        return max(self._asked_until, self._pauses_until, self._rests_until)

    def throttled(self, now: float) -> float:
        """Seconds of silence since the last call that were asked for, or a pause after a refusal."""
        end = min(now, max(self._asked_until, self._pauses_until))
        seconds = max(0.0, end - self._silent_since)
        self._silent_since = max(self._silent_since, end)
        return seconds

    def admits(self, now: float, in_flight: int) -> bool:
        """Whether a request may go out."""
        return now >= self.quiet_until and (self.failures < SUSPECT_AFTER or in_flight == 0)

    def succeeded(self) -> None:
        """Any good reply ends the trouble, and the rest from it; silence that was asked for is kept."""
        self.objected()
        self._pauses_until = float("-inf")
        self._refusals = 0

    def objected(self) -> None:
        """An answer of the server's own, though not to our liking: it is there."""
        self.failures = 0
        self._rests_until = float("-inf")

    def failed(self, sent_at: float, now: float, retry_after: float | None = None) -> None:
        """Counts a request without an answer of the server's own."""
        self.generation += 1
        self._keep_silent(now, retry_after or 0.0)
        if sent_at < self._failed_at:
            return
        self._failed_at = now
        self.failures += 1
        if self.failures >= SUSPECT_AFTER:
            rest = self._jitter.half(FIRST_REST, LONGEST_REST, self.failures)
            self._rests_until = max(self._rests_until, now + rest)

    def refused(self, now: float, first_of_round: bool, retry_after: float | None = None) -> None:
        """Pauses after a 429, until a good reply at most."""
        self._keep_silent(now, retry_after or 0.0)
        if first_of_round:
            self._refusals += 1
            pause = self._jitter.full(FIRST_PAUSE, LONGEST_PAUSE, self._refusals)
            self._pauses_until = max(self._pauses_until, now + pause)

    def _keep_silent(self, now: float, seconds: float) -> None:
        if now >= max(self._asked_until, self._pauses_until):
            self._silent_since = now
        self._asked_until = max(self._asked_until, now + seconds)
