"""Processes and what they took, from the operating system's own accounts. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.commands import ROOT, environment

_PR_SET_CHILD_SUBREAPER = 36
_EVERY = 0.1  # seconds


class Failed(Exception):
    """A process did not end well; the message ends with what it wrote last."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and all that it started took.

    Attributes:
        wall: seconds from its start to its end.
        cpu: seconds of all processes together, user and system.
        peak_mb: resident memory of the largest process, at its peak.
        together_mb: resident memory of all processes together, at their peak; what they share counts for each.
        output: what it wrote.
    """

    wall: float
    cpu: float
    peak_mb: float
    together_mb: float
    output: str


class _Watch:
    """Looks at a tree of processes while it lives.

    What a process used is known exactly to whoever waited for it. Some daemons throw that away for their children
    (Ray's do), so the last look at each counts where it is more.
    """

    def __init__(self, others: Sequence[int]) -> None:
        self._others = set(others)
        self._cpu: dict[tuple[int, float], float] = {}
        self._peaks: dict[int, float] = {}
        self.together_mb = 0.0

    def look(self) -> None:
        together = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                self._cpu[process.pid, process.create_time()] = times.user + times.system
                together += process.memory_info().rss / 1e6
                # One that has just ended has no memory any more.
                self._peaks[process.pid] = max(self._peaks.get(process.pid, 0.0), peak_mb(process.pid))
        self.together_mb = max(self.together_mb, together)

    def processes(self) -> list[psutil.Process]:
        """All that came of the root, also what it left behind: that becomes our own child."""
        with contextlib.suppress(psutil.Error):
            tops = [child for child in psutil.Process().children() if child.pid not in self._others]
            return [process for top in tops for process in (top, *_below(top))]
        return []

    @property
    def cpu(self) -> float:
        return sum(self._cpu.values())

    @property
    def peak_mb(self) -> float:
        return max(self._peaks.values(), default=0.0)


def _below(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def peak_mb(pid: int) -> float:
    """The most memory that a living process has had resident, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    _, _, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) * 1024 / 1e6 if rest else 0.0


def cpu_of(pids: Sequence[int]) -> float:
    """Seconds of CPU that living processes have used so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def measure(command: Sequence[str], stop: Callable[[], bool] | None = None) -> Usage:
    """Run a command to its end, and whatever it leaves behind.

    Args:
        command: what to run.
        stop: asked now and then; where it says so, the command is killed.

    Raises:
        Failed: if its exit code is not 0, and it was not killed.
    """
    others = [child.pid for child in psutil.Process().children()]
    with _adopting(), tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        started = time.perf_counter()
        child = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        watch = _Watch(others)
        code, cpu = _wait(child, watch, stop)
        wall = time.perf_counter() - started
        cpu += _reap(watch)
        output.seek(0)
        said = output.read()
    if code and not (stop and code == -signal.SIGKILL):
        raise Failed(f"{' '.join(command[:4])} … ended with {code}:\n{said[-3000:]}")
    return Usage(wall, max(cpu, watch.cpu), watch.peak_mb, watch.together_mb, said)


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Become the parent of what children leave behind, so that it can be counted and ended."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _wait(child: subprocess.Popen[bytes], watch: _Watch, stop: Callable[[], bool] | None) -> tuple[int, float]:
    """Watch until the child ends; its exit code, and the CPU of it and of all that it waited for."""
    for _ in _ticks():
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage.ru_utime + usage.ru_stime
        watch.look()
        if stop and stop():
            child.kill()
    raise AssertionError("time has ended")


def _reap(watch: _Watch) -> float:
    """End what was left behind; its CPU."""
    watch.look()
    cpu = 0.0
    for process in watch.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
    for process in watch.processes():
        with contextlib.suppress(ChildProcessError):
            usage = os.wait4(process.pid, 0)[2]
            cpu += usage.ru_utime + usage.ru_stime
    return cpu


def _ticks() -> Iterator[None]:
    while True:
        yield
        time.sleep(_EVERY)


def module(name: str, *arguments: object) -> list[str]:
    """The command of a module of this repository."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def program(code: str) -> list[str]:
    """The command of a few lines of Python."""
    return [sys.executable, "-c", code]
