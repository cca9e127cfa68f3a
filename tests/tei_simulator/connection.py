"""Connections that the server can break, and wait for the end of."""

from __future__ import annotations

import asyncio
import socket
import struct

from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.server import Protocol

_LINGER_ZERO = struct.pack("ii", 1, 0)


class BreakableConnection(Connection):
    """One accepted connection.

    Attributes:
        lost: set when the connection has ended, or is to end because the server does.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self.lost = asyncio.Event()

    def has_ended(self) -> None:
        super().has_ended()
        self.lost.set()

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


class BreakableProtocol(Protocol):
    """The server's HTTP protocol over such connections."""

    connection: BreakableConnection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.connection = BreakableConnection(transport)
        self.app_state = {"connection": self.connection}

    def shutdown(self) -> None:
        """Let a request that waits for its client's end go on when the server ends."""
        super().shutdown()
        self.connection.lost.set()
