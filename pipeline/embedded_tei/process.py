"""Start the server as a child process. Standard library only."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_PACKAGES = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT = 10.0  # seconds
_LAST_LINES = 10


class EmbeddedTeiError(Exception):
    """The server did not start; the message ends with its last output."""


class EmbeddedTei:
    """The embedded TEI as a child that lives as long as this context, or this process.

    The child's stdin is a pipe whose other end this process holds, so the child ends however this process ends.

    Args:
        arguments: options of the module's command line.
        start_timeout: seconds until it must answer.

    Attributes:
        module: what `python -m` starts; the tests' simulator is another one.
        url: the server's address.
    """

    module = "pipeline.embedded_tei"

    def __init__(self, arguments: Sequence[str] = (), *, start_timeout: float = 60.0) -> None:
        self._arguments = list(arguments)
        self._start_timeout = start_timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        """Start the child and wait until it answers.

        Raises:
            EmbeddedTeiError: if it ends, or does not answer in time.
        """
        command = [sys.executable, "-m", self.module, "--exit_with_parent", *self._arguments]
        self._log = tempfile.TemporaryFile()
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=self._child_environment()
        )
        try:
            self.url = self._read_url()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The child's process id.

        Raises:
            RuntimeError: if it is not running.
        """
        if self._child is None:
            raise RuntimeError("the embedded TEI is not running")
        return self._child.pid

    @property
    def death(self) -> str | None:
        """How the child ended and its last output, if it ended by itself; None while it runs."""
        if self._child is None or self._child.poll() is None:
            return None
        return f"it ended with {self._child.returncode}: {self._last_lines() or 'it wrote nothing'}"

    def stop(self) -> None:
        """Stop the child: requests under way get ten seconds. May be called again."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for stream in (child.stdin, child.stdout, self._log):
            if stream is not None:
                stream.close()

    def _child_environment(self) -> dict[str, str]:
        found = os.environ.get("PYTHONPATH")
        # The child may be started anywhere, and nothing that lies there may stand in a module's place.
        path = os.pathsep.join([str(_PACKAGES), *([found] if found else [])])
        return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}

    def _read_url(self) -> str:
        child = self._child
        assert child is not None
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], self._start_timeout)
        line = child.stdout.readline() if ready else b""
        if line.endswith(b"\n"):
            return line.decode().strip()
        what = (
            f"did not answer within {self._start_timeout:g} s"
            if child.poll() is None and not ready
            else "ended at its start"
        )
        raise EmbeddedTeiError(f"Tayyar's own server {what}: {self._last_lines() or 'it wrote nothing'}")

    def _last_lines(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-_LAST_LINES:])
