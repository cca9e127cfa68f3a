"""One endpoint as this process sees it: what it serves, how much it takes, and when it may be asked again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from transforms.tei.concurrency_limit import ConcurrencyLimit
from transforms.tei.errors import EndpointUnreachable
from transforms.tei.handshake import EndpointProfile

FAILURES_TO_OPEN = 2  # in a row; one alone is a hiccup and stops nobody
FIRST_REST = 0.25  # seconds
MAX_REST = 5.0  # an endpoint that is back waits no longer for its first request
FIRST_REFUSAL_PAUSE = 0.05  # seconds after a 429: about as long as a request takes, and makes room
MAX_REFUSAL_PAUSE = 1.0
FIRST_NOTICE = 2.0  # seconds without a success before the log says so; the next ones after twice as many each

logger = logging.getLogger(__name__)


class Backoff:
    """Random delays, so that clients that failed together do not come back together.

    Args:
        rng: where chance comes from.
        pace: what all delays are multiplied by.
    """

    def __init__(self, rng: random.Random, pace: float = 1.0) -> None:
        self._rng = rng
        self._pace = pace

    def full(self, first: float, maximum: float, times: int) -> float:
        """Return seconds between none and a bound that begins at `first` and doubles every time."""
        return self._rng.uniform(0, self._bound(first, maximum, times))

    def half(self, first: float, maximum: float, times: int) -> float:
        """Return the same, but at least half the bound: for a rest that must be one."""
        bound = self._bound(first, maximum, times)
        return self._rng.uniform(bound / 2, bound)

    def _bound(self, first: float, maximum: float, times: int) -> float:
        return self._pace * min(maximum, first * 2.0 ** min(times, 30))


class CircuitBreaker:
    """When an endpoint may be asked. Its owner locks.

    Failures of requests that were under way together count as one. From the second in a row on the circuit is open,
    for longer each time; then a single request, the handshake, finds out whether the endpoint is back.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._refusals = 0
        self._failed_at = float("-inf")
        self._succeeded_at = float("-inf")
        self._asked_until = float("-inf")  # the endpoint asked for silence until then
        self._paused_until = float("-inf")  # after a refusal
        self._open_until = float("-inf")  # after failures
        self._silent_since = float("inf")  # as far as that was not counted yet

    @property
    def is_open(self) -> bool:
        """Whether the endpoint has failed so often that only a handshake may go out."""
        return self._failures >= FAILURES_TO_OPEN

    @property
    def quiet_until(self) -> float:
        """The time before which nothing is sent."""
        return max(self._asked_until, self._paused_until, self._open_until)

    def throttled_seconds(self, now: float) -> float:
        """Return the seconds since the last call in which the endpoint wanted to be left alone."""
        end = min(now, max(self._asked_until, self._paused_until))
        seconds = max(0.0, end - self._silent_since)
        self._silent_since = max(self._silent_since, end)
        return seconds

    def record_success(self, now: float) -> None:
        """Close the circuit; silence that was asked for is kept."""
        self.record_answer(now)
        self._paused_until = float("-inf")
        self._refusals = 0

    def record_answer(self, now: float) -> None:
        """Close the circuit after an error of the server's own about the texts: it is there."""
        self._succeeded_at = now
        self._failures = 0
        self._open_until = float("-inf")

    def record_failure(self, sent_at: float, now: float, retry_after: float | None = None) -> None:
        """Count a request without an answer of the server's own."""
        self._keep_silent(now, retry_after or 0.0)
        if sent_at < self._failed_at:
            return
        self._failed_at = now
        self._failures += 1
        if self.is_open:
            self._open_until = max(self._open_until, now + self._backoff.half(FIRST_REST, MAX_REST, self._failures))

    def record_timeout(self, sent_at: float, now: float) -> None:
        """Count a request that took too long: a failure only where nothing succeeded meanwhile."""
        if self._succeeded_at <= sent_at:
            self.record_failure(sent_at, now)

    def record_refusal(self, now: float, *, first_of_round: bool, retry_after: float | None = None) -> None:
        """Pause after a 429, until a success at most."""
        self._keep_silent(now, retry_after or 0.0)
        if first_of_round:
            self._refusals += 1
            pause = self._backoff.full(FIRST_REFUSAL_PAUSE, MAX_REFUSAL_PAUSE, self._refusals)
            self._paused_until = max(self._paused_until, now + pause)

    def _keep_silent(self, now: float, seconds: float) -> None:
        if now >= max(self._asked_until, self._paused_until):
            self._silent_since = now
        self._asked_until = max(self._asked_until, now + seconds)


class GiveUpTimer:
    """How long the process goes on without a single success.

    The time counts from the last success, or from the beginning of the first failed request after it where that was
    later: neither time without work counts, nor what a request that hangs waits for while others succeed. The log says
    that the client waits and for what, more and more rarely: a run that stands still is not silent.

    Args:
        limit: seconds.
        clock: seconds.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._failing_since: float | None = None
        self._succeeded_at = float("-inf")
        self._next_notice = FIRST_NOTICE
        self._stopped = False
        self._lock = threading.Lock()

    def record_success(self) -> None:
        """Start anew."""
        now = self._clock()
        with self._lock:
            since, noticed = self._failing_since, self._next_notice > FIRST_NOTICE
            self._succeeded_at = now
            self._failing_since = None
            self._next_notice = FIRST_NOTICE
        if since is not None and noticed:
            logger.warning("the endpoint answers again, after %.0f s", now - since)

    def record_failure(self, started: float, url: str, message: str, cause: str = "no answer from") -> None:
        """Count a request that began at `started`.

        Raises:
            EndpointUnreachable: nothing has succeeded for too long.
        """
        now = self._clock()
        with self._lock:
            if self._stopped:
                return
            if self._failing_since is None:
                self._failing_since = max(started, self._succeeded_at)
            seconds = now - self._failing_since
            # With less than a second to go, the end is the better notice.
            notice = seconds >= self._next_notice and self._limit - seconds >= 1
            if notice:
                self._next_notice = 2 * seconds
        if seconds >= self._limit:
            # Commands that a person waits for set limits of their own, so the message names no option.
            raise EndpointUnreachable(
                f"no request to {url} has succeeded for {seconds:.0f} s, and the client waits no longer than "
                f"{self._limit:g} s. Check that the server is up and that this is its address. "
                f"The last failure: {message}"
            )
        if notice:
            left = self._limit - seconds
            logger.warning("%s %s for %.0f s (%s); waiting for %.0f s more", cause, url, seconds, message, left)

    def stop(self) -> None:
        """Count no more failures: the client itself is about to end what is under way."""
        with self._lock:
            self._stopped = True

    @property
    def left(self) -> float:
        """Seconds until it ends, if nothing succeeds."""
        since = self._failing_since
        return self._limit if since is None else max(0.0, self._limit - (self._clock() - since))


class Endpoint:
    """One server. Guarded by its scheduler's lock.

    Attributes:
        url: base URL, without a slash at its end.
        breaker: whether it may be asked.
        limit: texts in flight; that of a small request before the handshake.
        profile: what the handshake found; None before it, and again after the endpoint was away: then the next request
            is a handshake, which finds out what came back.
        batch_limit: texts that one request may hold; a lower one than `/info` reports may have been found.
        requests: under way.
    """

    def __init__(
        self,
        url: str,
        backoff: Backoff,
        *,
        max_in_flight: int | None = None,
        processes: int = 1,
        timeout: float = 60.0,
    ) -> None:
        self.url = url
        self.breaker = CircuitBreaker(backoff)
        self.profile: EndpointProfile | None = None
        self.limit = ConcurrencyLimit(1, 1)
        self.batch_limit = 1
        self.requests = 0
        self._reported_batch_limit: int | None = None
        self._max_in_flight = max_in_flight
        self._processes = processes
        self._timeout = timeout

    @property
    def one_by_one(self) -> bool:
        """Whether a request holds one text alone, so that the canary needs requests of its own."""
        return self.batch_limit == 1

    @property
    def max_request_texts(self) -> int:
        """Texts that a request may hold now, the canary included; 1 where texts go one by one."""
        return 1 if self.one_by_one else max(2, min(self.batch_limit, self.limit.request_texts))

    def admits(self, now: float) -> bool:
        """Return whether a request may go out, as far as its size does not matter."""
        return now >= self.breaker.quiet_until and (self.profile is not None or self.requests == 0)

    def adopt(self, profile: EndpointProfile) -> None:
        """Take a handshake's profile; what replies have shown of the limit is kept."""
        info = profile.info
        permits = info.max_concurrent_requests
        if self._max_in_flight is not None:
            permits = min(permits, self._max_in_flight)
        first = self._reported_batch_limit is None
        if info.batch_limit != self._reported_batch_limit:
            self.batch_limit = self._reported_batch_limit = info.batch_limit
        self.batch_limit = min(self.batch_limit, permits)
        # With less than a batch the server would get small ones, which cost it more than a refusal now and then.
        share = max(info.batch_limit, info.max_concurrent_requests // self._processes)
        if first:
            in_flight = self.limit.in_flight  # of the handshake
            self.limit = ConcurrencyLimit(permits, self.batch_limit, share, self._timeout, profile.seconds_per_text)
            self.limit.in_flight = in_flight
        else:
            self.limit.resize(permits, self.batch_limit, share)
        self.profile = profile
