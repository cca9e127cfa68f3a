"""A TEI endpoint that is no bottleneck: the routes that are measured, the test model's vectors, any latency.

The embedded TEI is a faithful one, and spends more on a request than some contestants do. This one is as little as
asyncio allows; it gives the same vectors, and permits everything.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import orjson

from pipeline.embedded_tei import wire
from pipeline.embedded_tei.app import TeiApp
from pipeline.embedded_tei.device import Device
from pipeline.embedded_tei.engine import Engine
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import Encoded, Vectors
from tests.commands import ROOT, environment
from tests.tei_simulator.hash_model import HashModel

_HEADERS = (
    "content-type: application/json\r\nx-compute-type: gpu+optimized\r\nx-compute-time: 0\r\n"
    "x-compute-characters: 0\r\nx-compute-tokens: {tokens}\r\nx-total-time: 0\r\nx-tokenization-time: 0\r\n"
    "x-queue-time: 0\r\nx-inference-time: 0\r\n"
)
_PERMITS = 512


def vectors_of(model: HashModel, texts: Sequence[str]) -> Vectors:
    """float32[len(texts), 384]: what the endpoint answers."""
    return model.embed([Encoded("", text, 0, 0) for text in texts])


class Answers:
    """What is answered to each request, and when the requests came."""

    def __init__(self, permits: int) -> None:
        self._model = HashModel()
        limits = replace(ServerLimits(), max_concurrent_requests=permits)
        self._info = orjson.dumps(TeiApp(Engine(Device(self._model, limits), limits)).info())
        self.first_request = self.first_batch = 0.0
        self.requests = self.texts = 0

    def to(self, path: bytes, body: bytes) -> tuple[bytes, int]:
        """A response's body and its tokens."""
        self.first_request = self.first_request or time.time()
        if path == b"/info":
            return self._info, 0
        if path == b"/stats":
            return self._stats(), 0
        asked = orjson.loads(body)
        return self.embed(asked["input" if path == b"/v1/embeddings" else "inputs"], path == b"/v1/embeddings")

    def embed(self, inputs: str | list[str], openai: bool) -> tuple[bytes, int]:
        """The body with the vectors of some texts."""
        texts = [inputs] if isinstance(inputs, str) else inputs
        if len(texts) > 1:
            self.first_batch = self.first_batch or time.time()
        self.requests += 1
        self.texts += len(texts)
        vectors = vectors_of(self._model, texts)
        tokens = sum([text.count(" ") + 3 for text in texts])
        if openai:
            return wire.render_openai(wire.render_base64(vectors), self._model.model_id, tokens), tokens
        return wire.render_rows(vectors), tokens

    def _stats(self) -> bytes:
        names = ("first_request", "first_batch", "requests", "texts")
        return orjson.dumps({name: getattr(self, name) for name in names})


class _Protocol(asyncio.Protocol):
    """One connection: whole requests in, whole responses out, one after another."""

    def __init__(self, answers: Answers, latency: float) -> None:
        self._answers = answers
        self._latency = latency
        self._pieces: list[bytes] = []
        self._missing = 0  # bytes until the request that has begun can be whole
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        received = b"".join(self._pieces)
        end = received.find(b"\r\n\r\n") + 4
        if end >= 4:
            size = _content_length(received[:end])
            self._missing = end + size - len(received)
            if self._missing <= 0:
                self._pieces = [received[end + size :]] if self._missing else []
                self._missing = 0
                self._answer(received[:end], received[end : end + size])
                return
        self._pieces = [received]

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        reply, tokens = self._answers.to(path, body)
        headers = f"HTTP/1.1 200 OK\r\n{_HEADERS.format(tokens=tokens)}content-length: {len(reply)}\r\n\r\n"
        whole = headers.encode() + reply
        if self._latency and body:
            asyncio.get_running_loop().call_later(self._latency, self._send, whole)
        else:
            self._send(whole)

    def _send(self, whole: bytes) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(whole)


def _content_length(head: bytes) -> int:
    _, name, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r", 1)[0]) if name else 0


async def _serve(port: int, latency: float, permits: int) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # several processes share the port
    listener.bind(("127.0.0.1", port))
    make = functools.partial(_Protocol, Answers(permits), latency)
    server = await asyncio.get_running_loop().create_server(make, sock=listener, backlog=4096)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


class Endpoint:
    """The endpoint's processes, for as long as this context.

    Attributes:
        url: where it answers.
        pids: of its processes.
    """

    def __init__(self, processes: int = 1, latency: float = 0.0, permits: int = _PERMITS) -> None:
        self._options = ["--latency", str(latency), "--permits", str(permits)]
        self._processes = processes
        self._children: list[subprocess.Popen[str]] = []
        self.url = ""

    def __enter__(self) -> Endpoint:
        for _ in range(self._processes):
            port = self.url.rpartition(":")[2] or "0"
            command = [sys.executable, "-m", "tests.benchmark.endpoint", "--port", port, *self._options]
            child = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._children.append(child)
            assert child.stdout is not None
            self.url = child.stdout.readline().strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
            child.communicate()

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]


def _end_with_parent() -> None:
    while os.read(0, 4096):
        continue
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmark.endpoint", description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--permits", type=int, default=_PERMITS, help="texts in flight, as told in /info")
    options = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(options.port, options.latency, options.permits))


if __name__ == "__main__":
    main()
