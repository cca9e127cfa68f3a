"""TEI's semaphore: one permit a text."""

from __future__ import annotations

import asyncio
from collections import deque


class Permits:
    """Counts free permits on one event loop.

    Args:
        size: how many there are.
    """

    def __init__(self, size: int) -> None:
        self.free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_acquire(self, count: int) -> bool:
        """Takes all of them at once, or none."""
        if count > self.free:
            return False
        self.free -= count
        return True

    async def acquire(self) -> None:
        """Takes one, in turn."""
        if self.try_acquire(1):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(1)
            raise

    def release(self, count: int) -> None:
        """Gives permits back, first to those who wait."""
        self.free += count
        while self.free and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self.free -= 1
                turn.set_result(None)
