"""Who is at work in an output folder: a small file of each command that writes there, for as long as it runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import orjson

from transforms.output.folder import JOB, OutputFolder
from transforms.storage import api as storage
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/at_work"
_LOCAL_RUNNERS = ("", "fnapi", "fnapirunner", "directrunner", "bundlebaseddirectrunner", "prismrunner", "prism")


@dataclass(frozen=True, slots=True)
class AtWork:
    """A process that said it is at work.

    Attributes:
        host: the machine's name.
        pid: of the process there.
        since: ISO 8601, with its time zone.
        runner: Beam's runner; empty where the process does the work itself.
    """

    host: str
    pid: int
    since: str
    runner: str = ""

    @property
    def since_seconds(self) -> float:
        """Since when, in seconds since the epoch."""
        return datetime.fromisoformat(self.since).timestamp()

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended: only that of one on this machine can be known."""
        return self.host == socket.gethostname() and not _is_alive(self.pid)

    @property
    def is_remote(self) -> bool:
        """Whether the work is done elsewhere, and may go on without the process."""
        return self.runner.rpartition(".")[2].lower() not in _LOCAL_RUNNERS

    @property
    def is_me(self) -> bool:
        """Whether it is this process."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    @property
    def name(self) -> str:
        """Of its file in the output folder."""
        return f"{FOLDER}/{self.host}-{self.pid}.json"

    def __str__(self) -> str:
        """Name it for a person."""
        where = f" with {self.runner}" if self.is_remote else ""
        return f"process {self.pid} on {self.host}{where}, since {self.since}"


def read_at_work(output: OutputFolder) -> AtWork | None:
    """Return who said to be at work: the first of those that may be alive, or the last of those that are gone."""
    found = _read_all(output)
    alive = [one for one in found if not one.is_gone]
    return next(iter([*alive, *reversed(found)]), None)


@contextmanager
def announced(output: OutputFolder, runner: str = "") -> Iterator[list[AtWork]]:
    """Leave word that this process is at work, and take it back with its temporary files, however the work ends.

    Yields:
        the other processes that seem to be at work.
    """
    me = AtWork(socket.gethostname(), os.getpid(), datetime.now(timezone.utc).isoformat(timespec="seconds"), runner)
    output.write(me.name, [orjson.dumps(asdict(me), option=orjson.OPT_APPEND_NEWLINE)])
    try:
        yield [one for one in _read_all(output) if not one.is_me and not one.is_gone]
    except BaseException:
        with suppress(StorageError, OSError):  # what ended the work is what must be told
            _withdraw(output, me)
        raise
    _withdraw(output, me)


def sweep(output: OutputFolder) -> None:
    """Delete what commands that died have left; only for one that is alone at work."""
    output.delete([one.name for one in _read_all(output) if one.is_gone])
    output.delete(output.list(output.temporary))


def _withdraw(output: OutputFolder, me: AtWork) -> None:
    mine = f"{output.temporary}/{output.run}-"
    output.delete([me.name, *(name for name in output.list(output.temporary) if name.startswith(mine))])
    storage.delete_empty_folder(output.path(FOLDER))
    output.tidy()


def _read_all(output: OutputFolder) -> list[AtWork]:
    """Return all who said to be at work, by their beginnings; files that cannot be read are nobody's."""
    found = []
    for name in output.list(FOLDER):
        with suppress(ValueError, KeyError, TypeError):
            fields = orjson.loads(output.read(name) or b"")
            one = AtWork(str(fields["host"]), int(fields["pid"]), str(fields["since"]), str(fields["runner"]))
            datetime.fromisoformat(one.since)
            found.append(one)
    return sorted(found, key=lambda one: one.since_seconds)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True
