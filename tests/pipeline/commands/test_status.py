from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.commands.options.status import StatusOptions
from pipeline.commands.status import Screen, status
from pipeline.errors import ExitCode
from pipeline.job.run_marker import RunMarker
from pipeline.reporting.status import Status
from tests.commands import started, tayyar_here
from tests.documents import write_corpus
from tests.pipeline.reporting.test_status import ELSEWHERE, GONE, NOW, at
from transforms.output.folder import OutputFolder

ALIVE = RunMarker(socket.gethostname(), os.getpid(), ELSEWHERE.since)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Rows:
    """What a terminal of 40 columns shows: lines wrap, and the codes by which rows are redrawn are obeyed."""

    def __init__(self, written: str) -> None:
        self.rows = [""]
        row = column = 0
        for code, character in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|(.|\n)", written, flags=re.DOTALL):
            if code.endswith("A"):
                row -= int(code[:-1] or 1)
            elif code == "2K":
                self.rows[row] = ""
            elif character == "\r":
                column = 0
            elif character == "\n":
                row, column = row + 1, 0
            elif character:
                if column == 40:
                    row, column = row + 1, 0
                self.rows += [""] * (row + 1 - len(self.rows))
                self.rows[row] = self.rows[row][:column].ljust(column) + character
                column += 1
            self.rows += [""] * (row + 1 - len(self.rows))


def drawn(stream: io.StringIO, *statuses: Status) -> str:
    with Screen(stream) as screen:
        for one in statuses:
            screen.show(one)
    return stream.getvalue()


def test_lines_wider_than_the_terminal_leave_nothing_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is where `rich` takes the width of a terminal that is none."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "50")
    running = at(NOW, ELSEWHERE, NOW - 400, NOW)
    shown = "\n".join(Rows(drawn(Terminal(), running, replace(running, records=7), running)).rows)
    assert max(len(row) for row in shown.splitlines()) <= 40
    for word in ("running:", "records:", "rate:", "endpoint:"):
        assert shown.count(word) == 1, shown
    assert "endpoint: 35 texts in flight" in shown


def test_where_nobody_watches_each_status_stands_below_the_former() -> None:
    running = at(NOW, ELSEWHERE, NOW)
    text = drawn(io.StringIO(), running, running)
    assert "\x1b" not in text
    assert text.count("running: ") == 2


def test_a_name_from_elsewhere_stays_on_its_line_and_reorders_nothing() -> None:
    running = replace(at(NOW, ELSEWHERE, NOW), why="process 1 on a\nfinished: \u202eall")
    text = drawn(io.StringIO(), running)
    assert text.startswith("running: process 1 on a\\nfinished: \\u202eall\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    """The output folder of a run of 90 documents in three files."""
    root = tmp_path_factory.mktemp("status")
    write_corpus(root / "in", files=3, per_file=30)
    tayyar_here("run", "--input", root / "in", "--output", root / "out", "--endpoint", hash_tei, "--shard_bytes", 4000)
    return root / "out"


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """The same, as if its run had been killed before one file's receipts were written."""
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    shutil.rmtree(output / "_job/receipts/a")
    OutputFolder(str(output), "test").write(GONE.name, [json.dumps(asdict(GONE)).encode()])
    return output


def said(output: Path, **how: bool) -> str:
    stream = io.StringIO()
    options = StatusOptions(output=str(output), **how)
    assert status(options, stream) is ExitCode.DONE
    return stream.getvalue()


def test_a_killed_run_is_stopped_and_a_whole_one_finished(whole: Path, broken: Path) -> None:
    finished = json.loads(said(whole, json=True))
    assert (finished["state"], finished["embedded"], finished["records_expected"]) == ("finished", 90, 90)
    assert said(whole, watch=True).startswith("finished: ")
    assert said(broken).startswith("stopped: ")
    assert "1 of 3 files" in said(broken)


def test_watching_ends_when_the_job_has_stopped(broken: Path) -> None:
    assert said(broken, watch=True).count("stopped: ") == 1


def test_watching_ends_with_control_c_without_a_word(broken: Path) -> None:
    OutputFolder(str(broken), "test").write(ALIVE.name, [json.dumps(asdict(ALIVE)).encode()])
    with started("status", "--output", broken, "--watch", "--json") as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["state"] == "running"
        os.kill(watching.pid, signal.SIGINT)
        rest, _ = watching.communicate(timeout=20)
        assert watching.returncode == 0
        assert "Traceback" not in rest


def test_an_estimate_that_was_saved_is_used_before_the_first_shard(broken: Path) -> None:
    shutil.rmtree(broken / "_job/receipts")
    (broken / "_job/estimate.json").write_text('{"records": 90}')
    assert "records: 0 of about 90 (0%)" in said(broken)


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    assert "is not an output folder" in tayyar_here("status", "--output", tmp_path, code=2).stderr
