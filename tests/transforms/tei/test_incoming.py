"""Replies as servers and gateways write them, byte by byte where it matters."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from transforms.tei.incoming import Incoming, NotAReply

MOST = 1000


@contextmanager
def arriving(data: bytes, pieces: int | None = None, *, ends: bool = True) -> Iterator[Incoming]:
    """A reply that comes in pieces of so many bytes; None for at once."""
    ours, theirs = socket.socketpair()
    size = pieces or max(len(data), 1)

    def send() -> None:
        for start in range(0, len(data), size):
            theirs.sendall(data[start : start + size])
        if ends:
            theirs.close()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    with ours, theirs:
        yield Incoming(ours, time.monotonic() + 5, MOST)
        thread.join()


def head(*lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "".join(f"{line}\r\n" for line in (status, *lines, "")).encode("latin-1")


PACKED = gzip.compress(b"vectors" * 20, mtime=0)
LONG = gzip.compress(bytes(1001), mtime=0)  # ids of cases must not change from one process to the next
DEFLATED = zlib.compress(b"vectors" * 20)
WHOLE = {
    "length": (head("Content-Length: 7") + b"vectors", b"vectors"),
    "length told twice": (head("Content-Length: 7", "Content-Length: 7") + b"vectors", b"vectors"),
    "identity": (head("Transfer-Encoding: identity", "Content-Length: 7") + b"vectors", b"vectors"),
    "empty and gzip": (head("Content-Encoding: gzip", "Content-Length: 0"), b""),
    "empty": (head("Content-Length: 0"), b""),
    "no content": (head(status="HTTP/1.1 204 No Content"), b""),
    "chunks": (head("Transfer-Encoding: chunked") + b"3\r\nvec\r\n4;x=y\r\ntors\r\n0\r\n\r\n", b"vectors"),
    "trailers": (head("transfer-encoding: Chunked") + b"7\r\nvectors\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"vectors"),
    "to the end": (head("Connection: close") + b"vectors", b"vectors"),
    "HTTP/1.0": (head("Content-Length: 7", status="HTTP/1.0 200 OK") + b"vectors", b"vectors"),
    "announced": (head(status="HTTP/1.1 100 Continue") + head("Content-Length: 7") + b"vectors", b"vectors"),
    "bare line ends": (head("Content-Length: 7").replace(b"\r", b"") + b"vectors", b"vectors"),
    "mixed line ends": (b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 7\n\r\nvectors", b"vectors"),
    "a tab folds": (head("Content-Length:", "\t7") + b"vectors", b"vectors"),
    "an empty header": (head("A:", "Content-Length:7") + b"vectors", b"vectors"),
    "no reason": (head("Content-Length: 7", status="HTTP/1.1 200") + b"vectors", b"vectors"),
    "a folded header": (head("Content-Length: 7", "A: b", "  c") + b"vectors", b"vectors"),
    "gzip": (head("Content-Encoding: gzip", f"Content-Length: {len(PACKED)}") + PACKED, b"vectors" * 20),
    "deflate": (head("Content-Encoding: deflate", f"Content-Length: {len(DEFLATED)}") + DEFLATED, b"vectors" * 20),
}


@pytest.mark.parametrize("pieces", [None, 1])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_reply(name: str, pieces: int | None) -> None:
    data, body = WHOLE[name]
    with arriving(data, pieces) as incoming:
        assert incoming.read() == body
    assert incoming.status == (204 if name == "no content" else 200)


def test_headers_are_named_in_lower_case_and_joined() -> None:
    with arriving(head("Content-Length: 0", "X-Compute-Tokens:  7 ", "Vary: a", "vary: b")) as incoming:
        incoming.read()
    assert incoming.headers["x-compute-tokens"] == "7"
    assert incoming.headers["vary"] == "a, b"


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (head("Content-Length: 2") + b"ok", True),
        (head("Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n", True),
        (head("Content-Length: 2", "Connection: Close") + b"ok", False),
        (head("Content-Length: 2", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n", False),
        (head("Content-Length: 2", status="HTTP/1.0 200 OK") + b"ok", False),
        (head() + b"ok", False),
        (head("Content-Length: 2") + b"ok, and what nobody asked for", False),
    ],
)
def test_a_connection_is_used_again_only_where_nothing_is_left_on_it(data: bytes, reusable: bool) -> None:
    with arriving(data) as incoming:
        incoming.read()
    assert incoming.reusable is reusable


@pytest.mark.parametrize("name", ["length", "chunks", "gzip"])
def test_a_reply_that_ends_early_is_none_wherever_it_does(name: str) -> None:
    data, _ = WHOLE[name]
    for end in range(len(data)):
        with arriving(data[:end]) as incoming, pytest.raises(EOFError):
            incoming.read()
        assert incoming.begun is (end > 0)


def test_a_packed_body_that_ends_early_is_none() -> None:
    with arriving(head("Content-Encoding: gzip", "Content-Length: 20") + PACKED[:20]) as incoming:
        with pytest.raises(EOFError, match="packed"):
            incoming.read()
        assert incoming.begun


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "begins with 'SSH-2.0"),
        (head(status="HTTP/2 200"), "begins with 'HTTP/2 200'"),
        (head(status="HTTP/1.1 OK"), "begins with"),
        (head("Content-Length: 7", "no header"), "a header is 'no header'"),
        (head("Content-Length: 7", ": no name"), "a header is ': no name'"),
        (head("Content-Length : 7"), "a header is 'Content-Length : 7'"),
        (head("Content-Length: 7", "A: b\0c"), "a header is 'A: b"),
        (head("Content-Length: 7", "Ä: b"), "a header is '"),
        (head("Content-Length: 7\r") + b"vectors", "a header is ''"),
        (head("Content-Length: 7\f") + b"vectors", "a size in it is '7.x0c'"),
        (b"\n\nvectors", "begins with"),
        (b"HTTP/1.1\n\nvectors", "begins with 'HTTP/1.1'"),
        (head("Content-Length: -7"), "a size in it is '-7'"),
        (head("Content-Length: 7", "Content-Length: 8") + b"vectors", "sizes that differ: '7, 8'"),
        (head("Content-Length: a"), "a size in it is 'a'"),
        (head("Transfer-Encoding: chunked") + b"zz\r\n", "a size in it is 'zz'"),
        (head("Transfer-Encoding: chunked") + b"2\r\nvec\r\n", "longer than it says"),
        (head("Transfer-Encoding: chunked") + b"1" * 9000, "between chunks"),
        (head("Transfer-Encoding: gzip"), "transfer encoding is 'gzip'"),
        (head("Content-Length: 1001") + b"x", "more than 1000 bytes"),
        (head("Transfer-Encoding: chunked") + b"3e9\r\n", "more than 1000 bytes"),
        (head() + b"x" * 1001, "more than 1000 bytes"),
        (head(f"Content-Length: {len(LONG)}", "Content-Encoding: gzip") + LONG, "more than 1000 bytes"),
        (head("Content-Length: 7", "Content-Encoding: gzip") + b"vectors", "cannot be unpacked"),
        (head("Content-Length: 7", "Content-Encoding: br") + b"vectors", "content encoding is 'br'"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, "begins with"),
    ],
)  # fmt: skip
def test_what_is_no_reply_is_not_waited_for(data: bytes, says: str) -> None:
    # The connection stays open, so that whoever waits for more waits until the deadline.
    with arriving(data, ends=False) as incoming, pytest.raises(NotAReply, match=says):
        incoming.read()


WHERE = {
    "status line": b"",
    "headers": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "body": head("Content-Length: 100"),
    "chunk size": head("Transfer-Encoding: chunked") + b"1;",
    "chunk": head("Transfer-Encoding: chunked") + b"64\r\n",
    "body without a length": head(),
}
REST = {
    "status line": b"HTTP/1.1 200 OK\r\n",
    "headers": b"x" * 20,
    "body": b"x" * 100,
    "chunk size": b"x" * 20,
    "chunk": b"x" * 100,
    "body without a length": b"x" * 20,
}


@pytest.mark.parametrize("name", WHERE)
def test_bytes_that_come_now_and_then_do_not_move_the_deadline(name: str) -> None:
    ours, theirs = socket.socketpair()
    gone = threading.Event()

    def drip() -> None:
        for byte in REST[name]:
            theirs.sendall(bytes([byte]))
            if gone.wait(0.05):
                break
        theirs.close()

    thread = threading.Thread(target=drip, daemon=True)
    with ours:
        theirs.sendall(WHERE[name])
        thread.start()
        with pytest.raises(TimeoutError):
            Incoming(ours, time.monotonic() + 0.2, MOST).read()
        gone.set()
        thread.join()
