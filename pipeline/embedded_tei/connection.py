"""The connection under a request: what ASGI does not tell, and faults and cancellation need."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

_LINGER_ZERO = struct.pack("ii", 1, 0)


class Connection:
    """One accepted connection.

    Attributes:
        on_lost: called once if the client goes while its request is being answered.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.on_lost: Callable[[], None] | None = None

    def lost(self) -> None:
        """The client has gone."""
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def reset(self) -> None:
        """Ends the connection with RST, without another byte."""
        handle = self._transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    def write(self, data: bytes) -> None:
        """Writes bytes beside the HTTP layer."""
        self._transport.write(data)
