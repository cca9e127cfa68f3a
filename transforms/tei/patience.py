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
    """Counts the time since the first failure after the last success, so that time without work counts for nothing.

    Says in the log that it waits, and for what, more and more rarely: a run that stands still is not silent.

    Args:
        limit: seconds.
        clock: seconds.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._failing_since: float | None = None
        self._next_notice = FIRST_NOTICE
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Starts anew."""
        if self._failing_since is not None and self._next_notice > FIRST_NOTICE:
            logger.warning("the endpoint answers again, after %.0f s", self._clock() - self._failing_since)
        self._failing_since = None
        self._next_notice = FIRST_NOTICE

    def failed(self, started: float, url: str, what: str) -> None:
        """Counts a request that began at `started`.

        Raises:
            EndpointUnreachable: nothing has succeeded for too long.
        """
        with self._lock:
            since = self._failing_since
            if since is None:
                since = self._failing_since = started
        seconds = self._clock() - since
        if seconds >= self._limit:
            raise EndpointUnreachable(
                f"no request to {url} has succeeded for {seconds:.0f} s (--give_up_after {self._limit:g}); "
                f"the last one: {what}"
            )
        with self._lock:
            if seconds < self._next_notice:
                return
            self._next_notice = 2 * seconds
        left = self._limit - seconds
        logger.warning("no answer from %s for %.0f s (%s); waiting for %.0f s more", url, seconds, what, left)

    @property
    def left(self) -> float:
        """Seconds until it ends, if nothing succeeds."""
        since = self._failing_since
        return self._limit if since is None else max(0.0, self._limit - (self._clock() - since))
