"""A small server that speaks TEI's protocol over a hash, and does as a script tells it."""

from __future__ import annotations

import base64
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from transforms.elements import Vectors
from transforms.tei.vector_space import PROBE_TEXTS

DIMENSIONS = 16
INFO: dict[str, Any] = {
    "model_id": "hash",
    "model_sha": "abc",
    "model_dtype": "float32",
    "model_type": {"embedding": {"pooling": "mean"}},
    "max_concurrent_requests": 512,
    "max_input_length": 512,
    "max_batch_tokens": 16384,
    "max_batch_requests": None,
    "max_client_batch_size": 32,
    "auto_truncate": True,
    "tokenization_workers": 1,
    "version": "1.9.3",
}


def vector_of(text: str, dimensions: int = DIMENSIONS) -> Vectors:
    """The unit vector that is this text's and no other's."""
    seed = zlib.crc32(text.encode("utf-8", "replace"))
    values = np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
    return (values / np.linalg.norm(values)).astype(np.float32)


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        loaded: dict[str, Any] = orjson.loads(self.body)
        return loaded

    @property
    def texts(self) -> list[str]:
        """What was to be embedded; empty for other requests."""
        if self.method != "POST":
            return []
        texts: list[str] = self.json.get("inputs") or self.json.get("input") or []
        return texts

    @property
    def documents(self) -> list[str]:
        """The texts that are no probe sentences, and so no canary."""
        return [text for text in self.texts if not is_probe(text)]


def is_probe(text: str) -> bool:
    """Return whether a text is one of the handshake's, of which the last one is cut to what the server reads."""
    return text in PROBE_TEXTS or (len(text) > 1000 and PROBE_TEXTS[-1].startswith(text))


@dataclass(frozen=True)
class Says:
    """A scripted answer. `cut` sends only so many bytes of the body and hangs up; no status hangs up at once."""

    status: int | None = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


def error(status: int, message: str, kind: str = "Validation", *, flat: bool = False) -> Says:
    """One of the server's own errors, native or as `/v1/embeddings` words it."""
    shape = {"message": message, "code": status, "type": kind} if flat else {"error": message, "error_type": kind}
    return Says(status, orjson.dumps(shape), {"Content-Type": "application/json"})


HANG_UP = Says(status=None)
Script = Callable[[Asked], Says | None]


def honest(asked: Asked, info: Mapping[str, Any], vectors: Callable[[str], Vectors] = vector_of) -> Says:
    """What a healthy server says."""
    if asked.path == "/info":
        return Says(body=orjson.dumps(info))
    rows = [vectors(text) for text in asked.texts]
    headers = {
        "x-compute-tokens": str(sum(tokens_of(text) for text in asked.texts)),
        "x-queue-time": "3",
        "x-inference-time": "5",
    }
    if asked.path == "/embed":
        return Says(body=orjson.dumps([row.tolist() for row in rows]).replace(b"NaN", b"null"), headers=headers)
    if asked.path == "/v1/embeddings":
        return Says(body=openai_body(rows), headers=headers)
    return Says(404)


def openai_body(rows: list[Vectors]) -> bytes:
    data = [
        {"object": "embedding", "embedding": base64.b64encode(row.tobytes()).decode(), "index": index}
        for index, row in enumerate(rows)
    ]
    return orjson.dumps({"object": "list", "data": data, "model": "hash", "usage": {}})


def tokens_of(text: str) -> int:
    return len(text.split()) + 2


class ScriptedTei:
    """The server. `script` may answer a request in the server's stead; `asked` holds all requests.

    With a `certificate`, a file that holds its key too, it speaks TLS.
    """

    def __init__(
        self, script: Script | None = None, port: int = 0, certificate: Path | None = None, **info: Any
    ) -> None:
        self.script = script
        self.info = {**INFO, **info}
        self.asked: list[Asked] = []
        self.vectors: Callable[[str], Vectors] = vector_of
        self._lock = threading.Lock()
        self.in_flight = 0
        self.most_in_flight = 0
        self._server = _Server(("127.0.0.1", port), _handler(self))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.tls = context
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def accepted(self) -> list[Any]:
        """The addresses of all connections that there were."""
        return self._server.accepted

    def answer(self, asked: Asked) -> Says:
        texts = len(asked.texts)
        with self._lock:
            self.asked.append(asked)
            self.in_flight += texts
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            says = self.script(asked) if self.script else None
            return says if says is not None else honest(asked, self.info, self.vectors)
        finally:
            with self._lock:
                self.in_flight -= texts

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self.open: set[socket.socket] = set()
        self.accepted: list[Any] = []
        self.tls: ssl.SSLContext | None = None
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.accepted.append(client_address)
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that hang up are part of the tests."""

    def hang_up(self) -> None:
        """Closes every connection, as a server does that ends."""
        for request in list(self.open):
            reset(request)


def reset(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _handler(tei: ScriptedTei) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

        def _answer(self, body: bytes) -> None:
            says = tei.answer(Asked(self.command, self.path, dict(self.headers), body))
            if says.status is None:
                self.close_connection = True
                reset(self.connection)
                return
            head = [f"HTTP/1.1 {says.status} X", f"Content-Length: {len(says.body)}"]
            head += [f"{name}: {value}" for name, value in says.headers.items()]
            self.wfile.write("\r\n".join(head).encode() + b"\r\n\r\n" + says.body[: says.cut])
            if says.cut is not None:
                self.close_connection = True
                reset(self.connection)

    return Handler


@contextmanager
def scripted(script: Script | None = None, **info: Any) -> Iterator[ScriptedTei]:
    tei = ScriptedTei(script, **info)
    try:
        yield tei
    finally:
        tei.close()
