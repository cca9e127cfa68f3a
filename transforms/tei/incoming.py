"""Reads one HTTP/1.1 reply from a socket, the whole of it before one deadline.

Half as dear as `http.client`, which parses headers as mail; and a server that sends a byte now and then cannot stretch
the deadline, because each wait is as long as what is left of it.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Iterable

from transforms.tei.sockets import receive

MOST_HEAD = 1 << 16  # bytes of a status line and headers
MOST_LINE = 1 << 12  # bytes of a line between the chunks of a body
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [^\r\n]*)?")
NAME_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGITS = {10: frozenset("0123456789"), 16: frozenset("0123456789abcdefABCDEF")}
FOLDED = re.compile(rb"\r?\n[ \t]+")
END_OF_HEAD = re.compile(rb"\n\r?\n")  # begins with a byte that can be searched for, not with one that may be missing


class NotAReply(Exception):
    """What came is no reply, or none that is taken. The message shows it, uncut: a secret in it must be found whole."""


class Incoming:
    """One reply on its way in.

    Args:
        sock: connected; its timeouts are changed.
        deadline: when the whole reply must be there (`time.monotonic`).
        most_bytes: that its body may have, on its way and unpacked.

    Attributes:
        begun: whether a byte has come.
        status: the HTTP status.
        headers: of the reply, by their names in lower case; what one is told several times is joined by commas.
        reusable: whether the connection can carry another exchange; known once the body was read.
    """

    def __init__(self, sock: socket.socket, deadline: float, most_bytes: int) -> None:
        self._socket = sock
        self._deadline = deadline
        self._most_bytes = most_bytes
        self._held = b""  # received, not used yet
        self.begun = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.reusable = False

    def read(self) -> bytes:
        """The body; status and headers are there once it is.

        Raises:
            TimeoutError: it is not whole in time.
            EOFError: the connection ended before it was whole.
            OSError: the connection failed.
            NotAReply: this is none.
        """
        minor = self._read_head()
        while 100 <= self.status < 200:  # announcements of the reply to come
            minor = self._read_head()
        encoding = self.headers.get("transfer-encoding", "").lower().removeprefix("identity")
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            body = b""
        elif encoding == "chunked":
            body = self._read_chunks()
        elif encoding:
            raise NotAReply(f"its transfer encoding is {encoding!r}")
        elif length is not None:
            body = self._exactly(self._allowed(_only_number(length)))
        else:
            return self._unpacked(self._read_to_end())
        closes = "close" in self.headers.get("connection", "").lower() or minor == 0
        closes = closes or bool(encoding and length)  # who reads the one differs from who reads the other
        self.reusable = not closes and not self._held
        return self._unpacked(body)

    def _receive(self) -> bytes:
        """Waits for at least one byte."""
        data = receive(self._socket, self._deadline)
        if not data:
            raise EOFError("the other side hung up")
        self.begun = True
        return data

    def _read_head(self) -> int:
        """Takes status and headers; gives back the minor version."""
        while (end := END_OF_HEAD.search(self._held)) is None:
            # What is no HTTP is not waited for.
            if not (self._held[:5] == b"HTTP/"[: len(self._held)] and len(self._held) < MOST_HEAD):
                raise NotAReply(f"it begins with {_shown(self._held)}")
            self._held += self._receive()
        head, self._held = self._held[: end.start()], self._held[end.end() :]
        if b"\n " in head or b"\n\t" in head:
            head = FOLDED.sub(b" ", head)
        first, *lines = head.splitlines() or [b""]
        status = STATUS_LINE.fullmatch(first)
        if status is None:
            raise NotAReply(f"it begins with {_shown(first)}")
        self.status = int(status[2])
        self.headers = _headers(lines)
        return int(status[1])

    def _exactly(self, size: int) -> bytes:
        parts, missing = [], size
        while True:
            parts.append(self._held[:missing])
            self._held = self._held[missing:]
            missing -= len(parts[-1])
            if not missing:
                return b"".join(parts)
            self._held = self._receive()

    def _line(self) -> bytes:
        while b"\n" not in self._held:
            if len(self._held) > MOST_LINE:
                raise NotAReply(f"between chunks there is {_shown(self._held)}")
            self._held += self._receive()
        line, _, self._held = self._held.partition(b"\n")
        return line.rstrip(b"\r")

    def _read_chunks(self) -> bytes:
        parts, total = [], 0
        while size := _number(self._line().split(b";")[0].decode("latin-1"), 16):
            total = self._allowed(total + size)
            parts.append(self._exactly(size))
            if self._line():
                raise NotAReply("a chunk is longer than it says")
        while self._line():  # trailers, of which none is of use
            pass
        return b"".join(parts)

    def _read_to_end(self) -> bytes:
        parts, total = [self._held], self._allowed(len(self._held))
        self._held = b""
        while True:
            try:
                parts.append(self._receive())
            except EOFError:
                return b"".join(parts)
            total = self._allowed(total + len(parts[-1]))

    def _allowed(self, size: int) -> int:
        if size > self._most_bytes:
            raise NotAReply(f"it has more than {self._most_bytes} bytes")
        return size

    def _unpacked(self, body: bytes) -> bytes:
        """The body as it was before a gateway packed it, unasked."""
        packing = self.headers.get("content-encoding", "identity").lower()
        if packing == "identity" or not body:
            return body
        if packing not in ("gzip", "x-gzip", "deflate"):
            raise NotAReply(f"its content encoding is {packing!r}, which was not asked for")
        unpacker = zlib.decompressobj(wbits=47)  # finds out which of the two it is
        try:
            body = unpacker.decompress(body, self._most_bytes + 1)
        except zlib.error as error:
            raise NotAReply(f"it cannot be unpacked: {error}") from error
        self._allowed(len(body))
        if not unpacker.eof:
            raise EOFError("it ends before what is packed in it does")
        return body


def _headers(lines: Iterable[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not (name and colon) or name.translate(None, NAME_BYTES) or b"\0" in value:
            raise NotAReply(f"a header is {_shown(line)}")
        key, told = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        headers[key] = f"{headers[key]}, {told}" if key in headers else told
    return headers


def _only_number(text: str) -> int:
    """A size that may be told several times, if it is the same each time."""
    number, *others = {_number(part, 10) for part in text.split(",")}
    if others:
        raise NotAReply(f"it has sizes that differ: {text!r}")
    return number


def _number(text: str, base: int) -> int:
    """A size as HTTP writes it: digits alone."""
    text = text.strip(" \t")
    if not (0 < len(text) <= 15 and DIGITS[base].issuperset(text)):
        raise NotAReply(f"a size in it is {text!r}")
    return int(text, base)


def _shown(data: bytes) -> str:
    return repr(data.decode("utf-8", "replace"))
