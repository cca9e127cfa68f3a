"""The connection under a request: what ASGI hides, and cancellation needs."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

_LINGER_ZERO = struct.pack("ii", 1, 0)


class Connection:
    """One accepted connection.

    Attributes:
        on_lost: called once if the client closes it while its request is being answered.
        is_open: whether the client has not closed it yet.
        lost: set when the connection has ended, or is to end because the server does.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.on_lost: Callable[[], None] | None = None
        self.is_open = True
        self.lost = asyncio.Event()

    def has_ended(self) -> None:
        """Record that the connection has ended."""
        self.is_open = False
        self.lost.set()
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    def reset(self) -> None:
        """End the connection with RST, without another byte."""
        if self._transport.is_closing():
            return
        handle = self._transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    def close(self) -> None:
        """End the connection with FIN, behind what was written."""
        self._transport.close()
