"""Run markers: a small file of each command that writes to an output folder, for as long as it runs."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import orjson

from pipeline.reporting.numbers import timestamp
from transforms import list_shards
from transforms.output.folder import JOB, OutputFolder
from transforms.output.json_fields import build_dataclass
from transforms.storage import api as storage
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/run_markers"
# Workers elsewhere save their vectors every 30 s, and give up after ten minutes without an endpoint.
REMOTE_SILENCE_SECONDS = 3600.0
_LOCAL_RUNNERS = ("", "fnapi", "fnapirunner", "directrunner", "bundlebaseddirectrunner", "prismrunner", "prism")
_MAX_TEXT = 1000  # characters of a host's or a runner's name
_MAX_PID = 1 << 31  # what a pid_t can hold


def new_run_name() -> str:
    """Return a name that no other run has, also none of this process in the same second.

    Temporary files, indexes and saved vectors are kept by it, and receipts and notes of doubt name it.
    """
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}-{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class RunMarker:
    """A process that has registered itself.

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
        """Whether the process has ended, as far as this machine's list of processes shows; False for other machines.

        Machines are told apart by their host names alone: a process in another container of the same host name, which
        this one's list does not show, looks ended. Of a remote job, the process is the launcher: its workers may live
        on.
        """
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
        """The name of its file in the output folder."""
        return f"{FOLDER}/{self.host}-{self.pid}.json"

    def __str__(self) -> str:
        """Describe it for a person."""
        where = f" with {self.runner}" if self.is_remote else ""
        return f"process {self.pid} on {self.host}{where}, since {timestamp(self.since_seconds)}"


@dataclass(frozen=True, slots=True)
class Writer:
    """A registered command that may still write to the folder.

    Attributes:
        marker: its marker.
        silent_seconds: since something was last written to the folder; since its beginning if that was later.
    """

    marker: RunMarker
    silent_seconds: float

    def remedy(self, output: OutputFolder) -> str:
        """Return what a person can do about it."""
        path = output.path(self.marker.name)
        if not self.marker.is_gone:
            return f"Wait for its end, or stop it; if it was killed, delete {path}."
        return (
            f"Its launcher has ended, but its workers may live on; the last file here was written "
            f"{self.silent_seconds / 60:.0f} min ago. Cancel the job in {self.marker.runner}, then delete {path}; "
            f"after {REMOTE_SILENCE_SECONDS / 60:.0f} min of silence it counts as ended."
        )

    def __str__(self) -> str:
        """Describe it for a person."""
        return str(self.marker)


def read_marker(output: OutputFolder) -> RunMarker | None:
    """Return the first marker whose process may be alive, or else the last one of all."""
    found = _read_all(output)
    alive = [one for one in found if not one.is_gone]
    return next(iter([*alive, *reversed(found)]), None)


def writers(output: OutputFolder, now: Callable[[], float] = time.time) -> list[Writer]:
    """Return the other commands that may still write to the folder, by their beginnings.

    A process of this machine that has ended writes no more, unless its work is done elsewhere: then its workers may,
    until the folder has been silent for long enough.
    """
    found = [one for one in _read_all(output) if not one.is_me]
    candidates = [one for one in found if not one.is_gone or one.is_remote]
    if not candidates:
        return []
    last = _last_written(output) if any(one.is_remote and one.is_gone for one in candidates) else 0.0
    silences = [Writer(one, max(0.0, now() - max(last, one.since_seconds))) for one in candidates]
    return [one for one in silences if not one.marker.is_gone or one.silent_seconds <= REMOTE_SILENCE_SECONDS]


def _last_written(output: OutputFolder) -> float:
    """Return when a worker last wrote a file, in seconds since the epoch."""
    files = output.list()
    return max((file.mtime for name, file in files.items() if not name.startswith(f"{FOLDER}/")), default=0.0)


@contextmanager
def registered(output: OutputFolder, runner: str = "") -> Iterator[list[Writer]]:
    """Write this process's marker, and delete it with its temporary files, however the work ends.

    Yields:
        the other commands that may be writing.
    """
    me = RunMarker(socket.gethostname(), os.getpid(), datetime.now(timezone.utc).isoformat(timespec="seconds"), runner)
    others = writers(output)
    output.write(me.name, [orjson.dumps(asdict(me), option=orjson.OPT_APPEND_NEWLINE)])
    try:
        # Once more: of two commands that begin at once, at least one sees the other.
        yield [*others, *(one for one in writers(output) if one.marker not in {other.marker for other in others})]
    except BaseException:
        with suppress(StorageError, OSError):  # the error that ended the work is the one to report
            _withdraw(output, me)
        raise
    _withdraw(output, me)


def remove_leftovers(output: OutputFolder) -> None:
    """Delete what commands that died left: markers, temporary files, lists; only for a command that is alone."""
    alive = {one.marker for one in writers(output)}
    output.delete([one.name for one in _read_all(output) if one.is_gone and one not in alive])
    output.delete([*output.list(output.temporary), *output.list(list_shards.FOLDER)])


def _withdraw(output: OutputFolder, me: RunMarker) -> None:
    mine = f"{output.temporary}/{output.run}-"
    output.delete([me.name, *(name for name in output.list(output.temporary) if name.startswith(mine))])
    storage.delete_empty_folder(output.path(FOLDER))
    output.tidy()
    storage.delete_empty_folder(output.path(JOB))  # after a command that was refused in a folder without a job


def _read_all(output: OutputFolder) -> list[RunMarker]:
    """Return all markers, by their beginnings; files that cannot be read are nobody's."""
    found = []
    for name in output.list(FOLDER):
        with suppress(ValueError, StorageError):
            one = decode_marker(output.read(name) or b"")
            if one.name == name:
                found.append(one)
    return sorted(found, key=lambda one: one.since_seconds)


def decode_marker(data: bytes) -> RunMarker:
    """Return the marker in a file's bytes.

    Raises:
        ValueError: if they are none.
    """
    try:
        marker = build_dataclass(RunMarker, orjson.loads(data))
        seconds = marker.since_seconds
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise ValueError(f"this is not a run marker: {error}") from error
    if datetime.fromisoformat(marker.since).tzinfo is None or not math.isfinite(seconds):
        raise ValueError("this is not a run marker: its time has no zone")
    if not 0 < marker.pid < _MAX_PID or max(len(marker.host), len(marker.runner)) > _MAX_TEXT:
        raise ValueError("this is not a run marker: a value is out of bounds")
    return marker


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
