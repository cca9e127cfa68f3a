"""A connected socket, plain or TLS: bytes out and in before a deadline, whether it has ended, and its end."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import time
from typing import Any

RECEIVED_AT_ONCE = 1 << 17  # bytes
_TIMEVAL = struct.Struct("@ll")
_LONGEST_WAIT = 0.5  # seconds: Python begins anew, with all of its time, a wait that a signal or a stop interrupts


def send(sock: socket.socket, data: bytes, deadline: float) -> None:
    """Sends all of it.

    Raises:
        TimeoutError: `deadline` (`time.monotonic`) is past.
        OSError: the connection failed.
    """
    left = memoryview(data)
    while left:
        _limit(sock, socket.SO_SNDTIMEO, deadline)
        with contextlib.suppress(BlockingIOError):  # how the kernel's limit shows
            left = left[sock.send(left) :]


def receive(sock: socket.socket, deadline: float) -> bytes:
    """Waits for at least one byte; none where the other side has hung up. Raises as `send` does."""
    while True:
        _limit(sock, socket.SO_RCVTIMEO, deadline)
        with contextlib.suppress(BlockingIOError):
            return sock.recv(RECEIVED_AT_ONCE)


def _limit(sock: socket.socket, option: int, deadline: float) -> None:
    """Ends the socket's next wait at the deadline, or somewhat before it; raises TimeoutError where that is past."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    if type(sock) is not socket.socket:  # TLS
        sock.settimeout(seconds)
        return
    # By the kernel: Python's own limit lets go of the GIL once more, and has to wait for it, at each wait.
    if sock.gettimeout() is not None:
        sock.settimeout(None)
    microseconds = math.ceil(min(seconds, _LONGEST_WAIT) * 1e6)
    sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))


def was_ended(sock: Any) -> bool:
    """Whether the other side has ended a connection, which may be another thread's.

    Reads nothing, so it neither waits nor takes anything from the thread that does.
    """
    try:
        poll = select.poll()
        poll.register(sock, getattr(select, "POLLRDHUP", select.POLLHUP))
        return bool(poll.poll(0))
    except (OSError, ValueError, TypeError):  # there is none any more
        return True


def sever(sock: Any) -> None:
    """Ends a connection under a thread that reads from it."""
    with contextlib.suppress(OSError, TypeError):  # it is another thread's: it may have ended already, or be None
        # Not TLS's own, which would have another thread go on in plain text; TLS within TLS holds the socket beneath.
        socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)
