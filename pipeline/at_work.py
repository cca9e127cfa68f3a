"""Who is at work in an output folder: one small file that a command leaves while it runs."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import orjson

from transforms.output import JOB, OutputFolder

_logger = logging.getLogger(__name__)

NAME = f"{JOB}/run.json"


@dataclass(frozen=True, slots=True)
class AtWork:
    """A process that said it is at work.

    Attributes:
        host: the machine's name.
        pid: of the process there.
        since: ISO 8601, with its time zone.
    """

    host: str
    pid: int
    since: str

    @property
    def since_seconds(self) -> float:
        """Since when, in seconds since the epoch."""
        return datetime.fromisoformat(self.since).timestamp()

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended: only that of one on this machine can be known."""
        return self.host == socket.gethostname() and not _is_alive(self.pid)

    @property
    def is_me(self) -> bool:
        """Whether it is this process."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        """Name it for a person."""
        return f"process {self.pid} on {self.host}, since {self.since}"


def read_at_work(output: OutputFolder) -> AtWork | None:
    """Return who said to be at work, alive or not; None if nobody did, or the file cannot be read."""
    data = output.read(NAME)
    if data is None:
        return None
    try:
        fields = orjson.loads(data)
        found = AtWork(str(fields["host"]), int(fields["pid"]), str(fields["since"]))
        datetime.fromisoformat(found.since)
    except (ValueError, KeyError, TypeError):
        return None
    return found


def announce(output: OutputFolder) -> bool:
    """Leave word that this process is at work; warn if another one seems to be, and return whether one does."""
    other = _another(output)
    if other is not None:
        _logger.warning(
            "another command (%s) may still be at work in %s; two at once do no harm, but send texts twice",
            other,
            output.root,
        )
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    me = AtWork(socket.gethostname(), os.getpid(), since)
    output.write(NAME, [orjson.dumps(asdict(me), option=orjson.OPT_APPEND_NEWLINE)])
    return other is not None


def withdraw(output: OutputFolder) -> None:
    """Remove the word that this process is at work; another one's stays."""
    if _another(output) is None:
        output.delete([NAME])


def _another(output: OutputFolder) -> AtWork | None:
    """Return the process, other than this one, that seems to be at work."""
    other = read_at_work(output)
    return None if other is None or other.is_me or other.is_gone else other


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True
