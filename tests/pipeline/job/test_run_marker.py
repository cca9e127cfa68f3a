from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.job.run_marker import FOLDER, RunMarker, read_marker, registered, remove_leftovers, writers
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


REMOTE = dataclasses.replace(GONE, runner="DataflowRunner")


def test_remote_work_may_live_on_without_its_launcher_until_the_folder_has_been_silent(tmp_path: Path) -> None:
    output = folder(tmp_path)
    say(output, REMOTE)
    output.write("data/wiki-00000.ndjson", [b"written by a worker"])
    half = Path(f"{tmp_path}/_job/tmp/another-1-2-3")
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    now = time.time()
    for path in (tmp_path / "data/wiki-00000.ndjson", half):
        os.utime(path, (now - 720, now - 720))
    (found,) = writers(output)
    assert found.marker.is_gone
    assert 719 < found.silent_seconds < 800
    for words in ("workers may live on", "12 min ago", "Cancel the job in DataflowRunner", output.path(REMOTE.name)):
        assert words in found.remedy(output)
    later = now + 3600
    assert writers(output, lambda: later) == []
    os.utime(half, (now - 4000, now - 4000))
    os.utime(tmp_path / "data/wiki-00000.ndjson", (now - 4000, now - 4000))
    remove_leftovers(output)
    assert [*output.list()] == ["data/wiki-00000.ndjson"]


def test_a_local_process_that_ended_writes_no_more(tmp_path: Path) -> None:
    output = folder(tmp_path)
    say(output, GONE, ELSEWHERE)
    assert [one.marker for one in writers(output)] == [ELSEWHERE]
    assert f"delete {output.path(ELSEWHERE.name)}" in writers(output)[0].remedy(output)


def test_several_at_work_keep_their_words(tmp_path: Path) -> None:
    output = folder(tmp_path)
    say(output, ELSEWHERE, GONE)
    with registered(output) as others:
        assert [one.marker for one in others] == [ELSEWHERE]
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
    remove_leftovers(output)
    assert [*output.list(JOB)] == [ELSEWHERE.name]


def test_a_process_of_this_machine_is_known_to_be_gone_and_one_of_another_never_is() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert RunMarker(socket.gethostname(), ended.pid, SINCE).is_gone
    assert not RunMarker("elsewhere", ended.pid, SINCE).is_gone
    assert not RunMarker(socket.gethostname(), 1, SINCE).is_gone


def test_since_is_a_time() -> None:
    assert RunMarker("elsewhere", 7, SINCE).since_seconds == 1767323045
    assert str(RunMarker("elsewhere", 7, SINCE)) == "process 7 on elsewhere, since 2026-01-02 03:04 UTC"
    assert str(RunMarker("elsewhere", 7, SINCE, "FnApiRunner")) == "process 7 on elsewhere, since 2026-01-02 03:04 UTC"
    assert (
        str(RunMarker("elsewhere", 7, SINCE, "FlinkRunner"))
        == "process 7 on elsewhere with FlinkRunner, since 2026-01-02 03:04 UTC"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"host": "a", "pid": 1, "since": "yesterday"}',
        b'{"host": "a", "pid": 1, "since": "2026-01-02T03:04:05", "runner": ""}',
        b'{"host": "a", "pid": 1e9, "since": "2026-01-02T03:04:05+00:00", "runner": ""}',
        b'{"host": "a", "pid": -1, "since": "2026-01-02T03:04:05+00:00", "runner": ""}',
        b'{"host": "../../a", "pid": 1, "since": "2026-01-02T03:04:05+00:00", "runner": ""}',
    ],
)
def test_a_damaged_file_is_nobody(tmp_path: Path, data: bytes) -> None:
    output = folder(tmp_path)
    output.write(f"{FOLDER}/a-1.json", [data])
    assert read_marker(output) is None
