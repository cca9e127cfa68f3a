"""How long the process goes on without a single success."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from transforms.tei.errors import EndpointUnreachable

FIRST_NOTICE = 2.0  # seconds without a success; the next ones after twice as many each

logger = logging.getLogger(__name__)


class Patience:
    """Counts the time since the last success, or since the first failure after it began where that was later.

    So neither time without work counts, nor what a request that hangs waits for while others succeed.

    Says in the log that it waits, and for what, more and more rarely: a run that stands still is not silent.

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
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Starts anew."""
        now = self._clock()
        with self._lock:
            since, noticed = self._failing_since, self._next_notice > FIRST_NOTICE
            self._succeeded_at = now
            self._failing_since = None
            self._next_notice = FIRST_NOTICE
        if since is not None and noticed:
            logger.warning("the endpoint answers again, after %.0f s", now - since)

    def failed(self, started: float, url: str, what: str, overloaded: bool = False) -> None:
        """Counts a request that began at `started`.

        Raises:
            EndpointUnreachable: nothing has succeeded for too long.
        """
        now = self._clock()
        with self._lock:
            if self._failing_since is None:
                self._failing_since = max(started, self._succeeded_at)
            seconds = now - self._failing_since
            notice = seconds >= self._next_notice
            if notice:
                self._next_notice = 2 * seconds
        if seconds >= self._limit:
            raise EndpointUnreachable(
                f"no request to {url} has succeeded for {seconds:.0f} s (--give_up_after {self._limit:g}); "
                f"the last one: {what}"
            )
        if not notice:
            return
        left = self._limit - seconds
        trouble = f"{url} is overloaded" if overloaded else f"no answer from {url}"
        logger.warning("%s for %.0f s (%s); waiting for %.0f s more", trouble, seconds, what, left)

    @property
    def left(self) -> float:
        """Seconds until it ends, if nothing succeeds."""
        since = self._failing_since
        return self._limit if since is None else max(0.0, self._limit - (self._clock() - since))
