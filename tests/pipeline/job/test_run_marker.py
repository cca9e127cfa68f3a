from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.job.run_marker import FOLDER, RunMarker, read_marker, registered
from tests.shards import folder
from transforms.output.folder import JOB, OutputFolder
from transforms.storage.base import StorageError

SINCE = "2026-01-02T03:04:05+00:00"
ELSEWHERE = RunMarker("elsewhere", 7, SINCE)
GONE = RunMarker(socket.gethostname(), 2**22 + 1, SINCE)  # no machine has a process of so high a number


def say(output: OutputFolder, *words: RunMarker) -> None:
    for word in words:
        output.write(word.name, [json.dumps(asdict(word)).encode()])


def test_who_is_at_work_can_be_read_until_the_end(tmp_path: Path) -> None:
    output = folder(tmp_path)
    assert read_marker(output) is None
    with registered(output, "FlinkRunner") as others:
        assert others == []
        found = read_marker(output)
        assert found is not None
        assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
        assert not found.is_gone
        assert (found.runner, found.is_remote) == ("FlinkRunner", True)
    assert read_marker(output) is None
    assert not (tmp_path / "_job/run_markers").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, StorageError, SystemExit])
def test_the_word_and_own_temporary_files_go_however_it_ends(tmp_path: Path, error: type[BaseException]) -> None:
    output = folder(tmp_path)
    mine, another = f"{output.temporary}/{output.run}-1-2-3", f"{output.temporary}/another-1-2-3"
    for name in (mine, another):
        path = Path(output.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with pytest.raises(error), registered(output):
        raise error
    assert [*output.list(f"{JOB}")] == [another]


def test_several_at_work_keep_their_words(tmp_path: Path) -> None:
    output = folder(tmp_path)
    say(output, ELSEWHERE, GONE)
    with registered(output) as others:
        assert others == [ELSEWHERE]
    assert read_marker(output) == ELSEWHERE
    assert {*output.list(FOLDER)} == {ELSEWHERE.name, GONE.name}
    output.delete([ELSEWHERE.name])
    assert read_marker(output) == GONE


def test_what_dead_commands_left_is_swept(tmp_path: Path) -> None:
    output = folder(tmp_path)
    say(output, ELSEWHERE, GONE)
    left = Path(output.path(f"{output.temporary}/another-1-2-3"))
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    sweep(output)
    assert [*output.list(JOB)] == [ELSEWHERE.name]


def test_a_process_of_this_machine_is_known_to_be_gone_and_one_of_another_never_is() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert RunMarker(socket.gethostname(), ended.pid, SINCE).is_gone
    assert not RunMarker("elsewhere", ended.pid, SINCE).is_gone
    assert not RunMarker(socket.gethostname(), 1, SINCE).is_gone


def test_since_is_a_time() -> None:
    assert RunMarker("elsewhere", 7, SINCE).since_seconds == 1767323045
    assert str(RunMarker("elsewhere", 7, SINCE)) == f"process 7 on elsewhere, since {SINCE}"
    assert str(RunMarker("elsewhere", 7, SINCE, "FnApiRunner")) == f"process 7 on elsewhere, since {SINCE}"
    assert (
        str(RunMarker("elsewhere", 7, SINCE, "FlinkRunner"))
        == f"process 7 on elsewhere with FlinkRunner, since {SINCE}"
    )


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"host": "a", "pid": 1, "since": "yesterday"}'])
def test_a_damaged_file_is_nobody(tmp_path: Path, data: bytes) -> None:
    output = folder(tmp_path)
    output.write(f"{FOLDER}/a-1.json", [data])
    assert read_marker(output) is None
