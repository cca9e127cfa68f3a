"""How often an S3 is asked that fails."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.storages import KEYS, fresh_clients
from transforms.storage import s3
from transforms.storage.base import StorageError


class FailingStore(socketserver.ThreadingTCPServer):
    """An S3 that breaks off every connection, or the body of the first replies.

    Attributes:
        broken_bodies: replies whose body is to be broken off; None if there is to be no reply at all.
        requests: received so far.
    """

    daemon_threads = True
    broken_bodies: int | None = None
    requests = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    server: FailingStore

    def handle(self) -> None:
        all(map(bytes.strip, self.rfile))  # reads the request to the empty line behind its head
        self.server.requests += 1
        if self.server.broken_bodies is not None:
            head = (
                "HTTP/1.1 200 OK",
                "Content-Length: 4",
                "Last-Modified: Fri, 01 Nov 2024 00:00:00 GMT",
                "Connection: close",
            )
            broken = self.server.requests <= self.server.broken_bodies
            self.wfile.write("\r\n".join((*head, "", "")).encode() + (b"fu" if broken else b"full"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingStore]:
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))  # it waits between attempts
    with FailingStore() as server, fresh_clients("s3"):
        for name, value in {**KEYS, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_address[1]}"}.items():
            monkeypatch.setenv(name, value)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


def test_a_store_that_breaks_off_every_connection_is_asked_seven_times(store: FailingStore) -> None:
    with pytest.raises(StorageError, match="s3://b/a: Connection was closed before we received a valid response"):
        s3.read("s3://b/a", 100)
    assert store.requests == 7


def test_a_body_that_breaks_off_is_asked_for_again(store: FailingStore) -> None:
    store.broken_bodies = 3
    assert s3.read("s3://b/a", 100) == b"full"
    assert store.requests == 4


def test_a_body_that_breaks_off_every_time_is_an_error(store: FailingStore) -> None:
    store.broken_bodies = 100
    with pytest.raises(StorageError, match="s3://b/a: "):
        s3.read("s3://b/a", 100)
    assert store.requests == 4
