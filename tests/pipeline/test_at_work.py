from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.at_work import NAME, AtWork, announce, read_at_work, withdraw
from tests.shards import folder

SINCE = "2026-01-02T03:04:05+00:00"


def test_who_is_at_work_can_be_read_until_it_withdraws(tmp_path: Path) -> None:
    output = folder(tmp_path)
    assert read_at_work(output) is None
    announce(output)
    found = read_at_work(output)
    assert found is not None
    assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
    assert not found.is_gone
    withdraw(output)
    assert read_at_work(output) is None


def test_a_process_of_this_machine_is_known_to_be_gone_and_one_of_another_never_is() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert AtWork(socket.gethostname(), ended.pid, SINCE).is_gone
    assert not AtWork("elsewhere", ended.pid, SINCE).is_gone
    assert not AtWork(socket.gethostname(), 1, SINCE).is_gone


def test_since_is_a_time() -> None:
    assert AtWork("elsewhere", 7, SINCE).since_seconds == 1767323045
    assert str(AtWork("elsewhere", 7, SINCE)) == f"process 7 on elsewhere, since {SINCE}"


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"host": "a", "pid": 1, "since": "yesterday"}'])
def test_a_damaged_file_is_nobody(tmp_path: Path, data: bytes) -> None:
    output = folder(tmp_path)
    output.write(NAME, [data])
    assert read_at_work(output) is None
