from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.commands.options import StatusOptions
from pipeline.commands.status import Screen, State, Status, judge, lines_of, status, status_of
from pipeline.errors import ExitCode
from pipeline.job.ledger import Ledger, SourceLedger
from pipeline.job.run_marker import AtWork
from pipeline.job.sharding import Plan
from tests.commands import started, tayyar_here
from tests.documents import write_corpus
from tests.pipeline.job.test_spec import JOB
from tests.shards import receipt
from transforms.elements import RequestStatistics, Source
from transforms.output.folder import OutputFolder

NOW = 1_767_323_045.0 + 3600
ELSEWHERE = AtWork("elsewhere", 7, "2026-01-02T03:04:05+00:00")  # an hour before NOW
GONE = AtWork(socket.gethostname(), 2**22 + 1, ELSEWHERE.since)  # no machine has a process of so high a number
REMOTE = replace(GONE, runner="DataflowRunner")
SOURCE = Source("/in/wiki.ndjson", "wiki", size=1000, mtime=1.0, compressed=True)


def ledger(*finished: float, seconds: float = 10.0, complete: bool = False) -> Ledger:
    """Shards of 100 bytes and 50 documents, each finished at one of these times and begun `seconds` before."""
    statistics = RequestStatistics(tokens=500, requests=5, retries=1, queue_ms=200, inference_ms=100, throttled_ms=400)
    receipts = {
        index: receipt(
            index, SOURCE, records=50, embedded=50, started_at=end - seconds, finished_at=end, statistics=statistics
        )
        for index, end in enumerate(finished)
    }
    return Ledger(Plan((SOURCE,), 100), (SourceLedger(SOURCE, receipts, complete),))


def at(now: float, by: AtWork | None, *finished: float, seconds: float = 10.0, complete: bool = False) -> Status:
    return status_of(ledger(*finished, seconds=seconds, complete=complete), JOB, by, now)


@pytest.mark.parametrize(
    ("by", "finished", "seconds", "complete", "state", "words"),
    [
        (None, [NOW], 10, True, State.FINISHED, "every shard"),
        (ELSEWHERE, [NOW], 10, True, State.FINISHED, "every shard"),
        (None, [NOW], 10, False, State.STOPPED, "the same run command goes on"),
        (GONE, [NOW], 10, False, State.STOPPED, "is gone"),
        (ELSEWHERE, [NOW - 599], 10, False, State.RUNNING, "elsewhere"),
        (ELSEWHERE, [NOW - 601], 10, False, State.STALLED, "no shard for 10 min 01 s"),
        (ELSEWHERE, [NOW - 601], 250, False, State.RUNNING, "elsewhere"),
        (ELSEWHERE, [NOW - 751], 250, False, State.STALLED, "longer than the 12 min 30 s"),
        (None, [NOW - 5], 10, False, State.STOPPED, "the last shard was finished 5.0 s ago"),
        (REMOTE, [NOW - 599], 10, False, State.RUNNING, "gone, but shards are being finished"),
        (REMOTE, [NOW - 601], 10, False, State.STOPPED, "is gone; the same run command goes on"),
        (ELSEWHERE, [], 10, False, State.RUNNING, "no shard finished yet, after 60 min"),
    ],
)
def test_how_the_state_is_judged(
    by: AtWork | None, finished: list[float], seconds: float, complete: bool, state: State, words: str
) -> None:
    found, why = judge(complete, list(ledger(*finished, seconds=seconds).receipts()), by, NOW)
    assert found is state
    assert words in why


def test_a_run_that_has_just_begun_in_an_old_folder_is_running() -> None:
    yesterday = NOW - 86_400
    assert at(ELSEWHERE.since_seconds + 5, ELSEWHERE, yesterday).state is State.RUNNING


def test_what_a_status_says() -> None:
    found = at(NOW, ELSEWHERE, NOW - 400, NOW - 200, NOW - 195, NOW)
    assert (found.sources, found.sources_done, found.shards, found.shards_done) == (1, 0, 10, 4)
    assert (found.records, found.records_expected, found.embedded) == (200, 500, 200)
    assert found.recent_rate == pytest.approx(150 / 300)
    assert found.overall_rate == pytest.approx(200 / 35, abs=0.05)
    assert found.seconds_left == pytest.approx(300 / 0.5)
    assert (found.tokens, found.requests, found.retries, found.throttled_seconds) == (2000, 20, 4, 1.6)
    assert (found.queue_ms, found.inference_ms) == (4.0, 2.0)


def test_the_time_left_counts_dead_letters_as_done() -> None:
    half = receipt(0, SOURCE, records=50, embedded=25, dead_letters=25, started_at=NOW - 10, finished_at=NOW)
    found = status_of(Ledger(Plan((SOURCE,), 100), (SourceLedger(SOURCE, {0: half}, False),)), JOB, None, NOW)
    assert (found.overall_rate, found.records_expected) == (2.5, 500)
    assert found.seconds_left == pytest.approx(450 / 5)


def test_requests_and_repeats_are_counts_of_their_own() -> None:
    assert any("20 requests, 4 repeats" in line for line in lines_of(at(NOW, None, NOW, NOW, NOW, NOW)))


def test_the_recent_rate_counts_from_the_beginning_of_this_run() -> None:
    began = ELSEWHERE.since_seconds
    found = at(began + 20, ELSEWHERE, began - 100, began + 10, began + 20)
    assert found.recent_rate == pytest.approx(100 / 20)


def test_nothing_is_divided_by_nothing() -> None:
    found = at(NOW, None)
    assert (found.recent_rate, found.overall_rate, found.seconds_left, found.queue_ms) == (None, None, None, None)
    assert "rate: not known yet" in lines_of(found)


def test_of_a_compressed_file_the_number_of_shards_is_not_known_before_its_end() -> None:
    packed = Source("/in/wiki.ndjson.gz", "wiki", size=1000, mtime=1.0, compressed=True)
    one = {0: receipt(0, packed)}
    assert Ledger(Plan((packed,), 100), (SourceLedger(packed, one, False),)).shards_expected is None
    assert Ledger(Plan((packed,), 100), (SourceLedger(packed, one, True),)).shards_expected == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_drawn_over_and_a_file_is_not() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        screen = Screen(stream)
        for _ in range(2):
            screen.show(at(NOW, None, NOW), stream)
    assert terminal.getvalue().count("\x1b[") == 2
    assert f"\x1b[{file.getvalue().count(chr(10)) // 2}F" in terminal.getvalue()
    assert "\x1b" not in file.getvalue()


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
    options = StatusOptions(str(output), how.get("watch", False), how.get("json", False))
    assert status(options, stream) is ExitCode.DONE
    return stream.getvalue()


def test_a_killed_run_is_stopped_and_a_whole_one_finished(whole: Path, broken: Path) -> None:
    finished = json.loads(said(whole, json=True))
    assert (finished["state"], finished["embedded"], finished["records_expected"]) == ("finished", 90, 90)
    assert said(whole, watch=True).startswith("finished: ")
    assert said(broken).startswith("stopped: ")
    assert "1 of 3 files" in said(broken)


def test_watching_ends_with_control_c_without_a_word(broken: Path) -> None:
    with started("status", "--output", broken, "--watch", "--json") as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["state"] == "stopped"
        os.kill(watching.pid, signal.SIGINT)
        rest, _ = watching.communicate(timeout=20)
        assert watching.returncode == 0
        assert "Traceback" not in rest


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    assert "is no output folder" in tayyar_here("status", "--output", tmp_path, code=2).stderr
