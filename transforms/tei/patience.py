"""How long the process goes on without a single success."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from transforms.tei.errors import EndpointUnreachable


class Patience:
    """Counts the time since the first failure after the last success, so that time without work counts for nothing.

    Args:
        limit: seconds.
        clock: seconds.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._failing_since: float | None = None
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Starts anew."""
        self._failing_since = None

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
