from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from pipeline.errors import PipelineFailed
from pipeline.verification.parallel import spread
from tests.commands import ROOT, environment
from tests.servers import wait_until
from transforms.storage.base import StorageError

Done = Callable[[int], None]


def place(item: int, done: Done) -> tuple[int, int, int]:
    done(item)
    return item, os.getpid(), threading.get_ident()


def fails(item: int, done: Done) -> int:
    if item == 3:
        raise StorageError("gs://bucket/a cannot be read")
    return item


def is_killed(item: int, done: Done) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def tells_for_ever(item: int, done: Done) -> None:
    while item == 0:
        done(0)
    raise StorageError("gs://bucket/a cannot be read")


def hangs(item: int, done: Done) -> None:
    threading.Event().wait()


@pytest.mark.parametrize(("processes", "at_once"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_results_come_in_the_order_of_the_items(processes: int, at_once: int) -> None:
    found = spread(place, range(20), processes, at_once, 190, " items")
    assert [item for item, _, _ in found] == [*range(20)]
    assert (os.getpid() in {process for _, process, _ in found}) == (processes == 1)
    assert (threading.get_ident() in {thread for _, _, thread in found}) == (processes == at_once == 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_the_callers(processes: int) -> None:
    with pytest.raises(StorageError, match="gs://bucket/a cannot be read"):
        spread(fails, range(50), processes, 1, 50, " items")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_the_work_beside_it(processes: int) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        spread(tells_for_ever, [0, 1, 0, 1], processes, 2, 4, " items")


def test_a_process_that_is_killed_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(PipelineFailed, match="a process was killed"):
        spread(is_killed, range(4), 2, 1, 4, " items")


def test_processes_end_with_the_one_that_started_them() -> None:
    imports = (
        "from pipeline.verification.parallel import spread; from tests.pipeline.verification.test_parallel import hangs"
    )
    code = f"{imports}; spread(hangs, [1, 2], 2, 1, 2, '')"
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
