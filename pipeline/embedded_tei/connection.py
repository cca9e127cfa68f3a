"""The connection under a request: what ASGI hides, and cancellation needs."""

from __future__ import annotations

from collections.abc import Callable


class Connection:
    """One accepted connection.

    Attributes:
        on_lost: called once if the client closes it while its request is being answered.
        is_open: whether the client has not closed it yet.
    """

    def __init__(self) -> None:
        self.on_lost: Callable[[], None] | None = None
        self.is_open = True

    def has_ended(self) -> None:
        """Record that the connection has ended."""
        self.is_open = False
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()
