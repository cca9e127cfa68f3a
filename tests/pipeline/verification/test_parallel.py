from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from pipeline.errors import PipelineFailed
from pipeline.verification.parallel import run_parallel
from tests.commands import ROOT, environment
from tests.servers import wait_until
from transforms.storage.base import StorageError


def place(item: int) -> tuple[int, int]:
    return item, os.getpid()


def fails(item: int) -> int:
    if item == 3:
        raise StorageError("gs://bucket/a cannot be read")
    return item


def is_killed(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def hangs(item: int) -> None:
    threading.Event().wait()


def hangs_or_fails(item: int) -> None:
    if item == 1:
        raise StorageError("gs://bucket/a cannot be read")
    threading.Event().wait()


@pytest.mark.parametrize("processes", [1, 2])
def test_every_item_has_its_result(processes: int) -> None:
    found = dict(run_parallel(place, range(20), processes))
    assert {index: item for index, (item, _) in found.items()} == {number: number for number in range(20)}
    assert (os.getpid() in {process for _, process in found.values()}) == (processes == 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_the_callers(processes: int) -> None:
    with pytest.raises(StorageError, match="gs://bucket/a cannot be read"):
        list(run_parallel(fails, range(50), processes))


def test_an_error_ends_the_work_beside_it() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(StorageError, match="cannot be read"):
        list(run_parallel(hangs_or_fails, [0, 1], 2))
    wait_until(lambda: set(multiprocessing.active_children()) <= before, "the end of the other process")


def test_a_process_that_is_killed_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(PipelineFailed, match="a process was killed"):
        list(run_parallel(is_killed, range(4), 2))


def test_processes_end_with_the_one_that_started_them() -> None:
    code = (
        "from pipeline.verification.parallel import run_parallel\n"
        "from tests.pipeline.verification.test_parallel import hangs\n"
        "list(run_parallel(hangs, [1, 2], 2))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment()) as parent:
        try:
            family = psutil.Process(parent.pid)
            wait_until(
                lambda: sum("spawn_main" in " ".join(child.cmdline()) for child in family.children()) == 2, "start"
            )
            children = family.children()
        finally:
            parent.kill()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) >= 2
    assert not alive
