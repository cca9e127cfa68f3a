"""Commands in processes of their own, forked from a server that has imported Beam already.

An interpreter that imports Beam and the commands takes two seconds of CPU, which is most of what a small run costs. A
forked command is a process like any other: it has its own arguments, variables, folder, output, signals and exit code,
and ends as an interpreter ends. Only what an interpreter reads at its start (`PYTHONIOENCODING`, `python -m`) is not
tested this way: tests of that start one, by `commands.call`.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_ROOT = Path(__file__).resolve().parent.parent
_MAX_REQUEST = 128 << 10  # bytes: arguments and variables
_IMPORTED = (
    *("run", "plan", "check", "status", "report", "redrive", "verify", "serve"),  # each imports its own when called
    *("pipeline.__main__", "pipeline.reporting.page", "apache_beam.runners.portability.fn_api_runner.fn_runner"),
)


class Forked:
    """A command under way, with those methods of `subprocess.Popen` that tests use.

    Args:
        arguments: of the command line, the command first.
        folder: to work in.
        environment: all of its variables.
        output: takes its standard output; None for a pipe.
        errors: takes its standard error; None for where its output goes.

    Attributes:
        args: the arguments.
        pid: the process's id.
        stdout: the pipe's end to read from; None where the output goes elsewhere.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: IO[str] | None = None,
        errors: IO[str] | None = None,
    ) -> None:
        reading, writing = os.pipe() if output is None else (-1, output.fileno())
        self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.args = list(arguments)
        request = json.dumps([self.args, str(folder), dict(environment)]).encode()
        assert len(request) < _MAX_REQUEST
        files = [writing, writing if errors is None else errors.fileno(), status.fileno()]
        socket.send_fds(_server(), [request], files)
        status.close()
        self.stdout: IO[str] | None = None
        if output is None:
            os.close(writing)
            self.stdout = os.fdopen(reading, encoding="utf-8")
        self.pid = int(self._status.recv(32))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, as `subprocess` gives it, or None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.recv(32))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: if it does not end in so many seconds.
        """
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Read the rest of the pipe, wait for the end, and return what was read."""
        assert self.stdout is not None
        deadline = time.monotonic() + timeout
        said: list[str] = []
        reader = threading.Thread(target=lambda stream: said.append(stream.read()), args=[self.stdout], daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(max(deadline - time.monotonic(), 0))
        return said[0], None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask the process to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End the process, and release what belongs to it here."""
        self.kill()
        self.wait()
        self._status.close()
        if self.stdout is not None:
            self.stdout.close()


@functools.cache
def _server() -> socket.socket:
    """Return the connection to this process's server, which is started with the first command and ends with it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = [sys.executable, "-m", "tests.forked", str(its.fileno())]
    variables = {**os.environ, "PYTHONPATH": str(_ROOT)}
    subprocess.Popen(program, pass_fds=[its.fileno()], stdout=subprocess.DEVNULL, cwd=_ROOT, env=variables)
    its.close()
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request, and return in that process; the server itself does not return."""
    for name in _IMPORTED:
        importlib.import_module(name if "." in name else f"pipeline.commands.{name}")
    # A lock that another thread holds would stay locked in the fork.
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()  # a collection in the fork would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 3)
        if not request:
            sys.exit()
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _become(json.loads(request), *files)


def _become(request: tuple[list[str], str, dict[str, str]], output: int, errors: int, status: int) -> None:
    """Return in a process that is as the request wants it; its parent waits for it and reports how it ended."""
    child = os.fork()
    if child:
        for file in (output, errors):  # the pipe ends with the command
            os.close(file)
        os.write(status, str(child).encode())
        _, state = os.waitpid(child, 0)
        os.write(status, str(os.waitstatus_to_exitcode(state)).encode())
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for file in (output, errors, status):
        os.close(file)
    # The server's own know whether they can be rewound, and that was another file.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace")
    logging.getLogger().handlers.clear()  # one that Beam's import made; a command sets up its log before that
    arguments, folder, environment = request
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[1:] = arguments


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    importlib.import_module("pipeline.__main__").console()
