"""Bytes out and in before a deadline, over real connections, plain and TLS."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transforms.tei.sockets import receive, send, sever, was_ended

LONG = bytes(64 << 20)  # more than the system takes before anybody reads
SECONDS = 0.5
PATIENCE = 20.0  # after which a test fails that waits for ever


@contextmanager
def connected(certificate: Path | None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection, with TLS where there is a certificate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    if certificate is not None:
        ours, theirs = _shaken_hands(ours, theirs, certificate)
    with ours, theirs:
        yield ours, theirs


def _shaken_hands(ours: socket.socket, theirs: socket.socket, certificate: Path) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    accepted: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: accepted.append(server.wrap_socket(theirs, server_side=True)))
    thread.start()
    client = ssl.create_default_context(cafile=str(certificate)).wrap_socket(ours, server_hostname="localhost")
    thread.join()
    return client, accepted[0]


@pytest.fixture(params=["plain", "TLS"])
def ends(request: pytest.FixtureRequest, certificate: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    with connected(certificate if request.param == "TLS" else None) as both:
        yield both


Ends = tuple[socket.socket, socket.socket]


def given_up(started: float) -> bool:
    """Whether the deadline was kept: not before it, and long before whoever waits for ever is found."""
    return SECONDS * 0.9 <= time.monotonic() - started < PATIENCE / 2


def test_all_of_a_long_request_arrives(ends: Ends) -> None:
    ours, theirs = ends
    data = bytes(range(256)) * (1 << 14)
    thread = threading.Thread(target=send, args=(ours, data, time.monotonic() + PATIENCE))
    thread.start()
    arrived = b""
    while len(arrived) < len(data):
        arrived += receive(theirs, time.monotonic() + PATIENCE)
    thread.join()
    assert arrived == data


def test_sending_ends_at_the_deadline_where_nobody_reads(ends: Ends) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        send(ends[0], LONG, started + SECONDS)
    assert given_up(started)


def test_sending_ends_at_the_deadline_where_little_is_read_now_and_then(ends: Ends) -> None:
    ours, theirs = ends
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.05):
            theirs.recv(1 << 16)

    thread = threading.Thread(target=read)
    thread.start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        send(ours, LONG, started + SECONDS)
    over.set()
    assert given_up(started)
    ours.close()
    thread.join()


def test_receiving_ends_at_the_deadline(ends: Ends) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        receive(ends[0], started + SECONDS)
    assert given_up(started)


def test_a_deadline_holds_where_the_process_was_stopped_meanwhile() -> None:
    stopped = """
import socket, time
from transforms.tei.sockets import receive
ours, theirs = socket.socketpair()
started = time.monotonic()
print("waits", flush=True)
try:
    receive(ours, started + 2)
except TimeoutError:
    print(time.monotonic() - started)
"""
    with subprocess.Popen([sys.executable, "-c", stopped], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        for _ in range(6):  # each of them has the system call begin anew
            time.sleep(0.7)
            process.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGCONT)
        assert 2 <= float(process.stdout.readline()) < 3


def test_what_has_arrived_is_received_only_before_the_deadline(ends: Ends) -> None:
    ours, theirs = ends
    theirs.sendall(b"vectors")
    assert receive(ours, time.monotonic() + PATIENCE) == b"vectors"
    theirs.sendall(b"more")
    with pytest.raises(TimeoutError):
        receive(ours, time.monotonic())


def test_a_timeout_that_a_socket_had_before_does_not_count(ends: Ends) -> None:
    ours, theirs = ends
    ours.settimeout(0.01)
    late = threading.Timer(0.3, theirs.sendall, [b"late"])
    late.start()
    assert receive(ours, time.monotonic() + PATIENCE) == b"late"


def test_a_later_deadline_replaces_an_earlier_one(ends: Ends) -> None:
    ours, theirs = ends
    with pytest.raises(TimeoutError):
        receive(ours, time.monotonic() + 0.05)
    late = threading.Timer(0.3, theirs.sendall, [b"late"])
    late.start()
    assert receive(ours, time.monotonic() + PATIENCE) == b"late"


def test_a_connection_that_the_other_side_closes_was_ended(ends: Ends) -> None:
    ours, theirs = ends
    assert not was_ended(ours)
    theirs.sendall(b"vectors")
    assert not was_ended(ours)
    theirs.close()
    assert receive(ours, time.monotonic() + PATIENCE) == b"vectors"
    assert receive(ours, time.monotonic() + PATIENCE) == b""
    assert was_ended(ours)


def test_a_connection_that_was_closed_or_never_made_was_ended(ends: Ends) -> None:
    ours, _ = ends
    ours.close()
    assert was_ended(ours)
    assert was_ended(None)


def test_a_connection_that_is_gone_can_be_severed(ends: Ends) -> None:
    ends[0].close()
    sever(ends[0])
    sever(None)


def test_who_waits_on_a_severed_connection_is_told_that_it_ended() -> None:
    with connected(None) as (ours, _):
        cut = threading.Timer(0.2, sever, [ours])
        cut.start()
        assert receive(ours, time.monotonic() + PATIENCE) == b""
