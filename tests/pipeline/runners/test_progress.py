from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from pipeline.job.sharding import Plan
from pipeline.runners.progress import CountBar, Progress, Waiting
from tests.shards import SOURCE, folder, put, receipt
from transforms.elements import Source
from transforms.output.folder import OutputFolder
from transforms.storage.base import FileStat, StorageError

WORK = Plan((SOURCE,), 100).shards_of(SOURCE)  # three shards, of 100, 100 and 50 bytes
PACKED = Source("/in/packed.ndjson.gz", "packed", 40, "1.0", compressed=True)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What the bar showed last."""
    return capsys.readouterr().err.split("\r")[-1].strip()


def test_the_bar_counts_the_receipts_that_appear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder(tmp_path)
    put(output, receipt(0))
    seen = set(output.list(output.receipts))
    with Progress(output, seen, WORK[1:], visible=True):
        put(output, receipt(1, records=2000, embedded=2000), receipt(2, records=500, embedded=500))
    last = shown(capsys)
    assert last.startswith("100%|")
    # The receipts are of the seconds 1001 to 1003.
    assert last.endswith("| 2,500 of 2,500 documents, 1,250 documents/s")


def test_a_bar_of_other_things_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with CountBar(1200, "dead letter", visible=True) as bar:
        assert shown(capsys).endswith("| 0 of 1,200 dead letters")
        bar.add(1200)
    assert re.search(r"^100%\|.*\| 1,200 of 1,200 dead letters, [\d,]+ dead letters/s$", shown(capsys))


def test_a_share_is_rounded_down_as_in_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    with CountBar(2000, "record", visible=True) as bar:
        bar.add(1999)
    assert shown(capsys).startswith("99.9%|")


def test_a_wait_is_seen_to_go_on_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    deadline = time.monotonic() + 20
    with Waiting("asking " + 200 * "x", visible=True) as waiting:
        while not lines or "measuring; " not in lines[-1]:
            assert time.monotonic() < deadline, lines
            time.sleep(0.05)
            lines += filter(None, capsys.readouterr().err.split("\r"))
            if lines and lines[-1].startswith("asking xxx"):
                waiting.show("measuring")
    assert max(map(len, lines)) < 80  # a wider line could not be drawn over
    assert not shown(capsys)


class Run:
    """A run in this process, at a time that is set."""

    def __init__(self, path: Path) -> None:
        self.now = 1000.0
        self.texts = 70  # of a former run of the process
        self.output = folder(path)
        self.progress = Progress(
            self.output, set(), WORK[:2], visible=True, settled=lambda: self.texts, clock=lambda: self.now
        )

    def look(self, now: float, texts: int) -> None:
        self.now, self.texts = now, 70 + texts
        self.progress.look()


def test_documents_count_as_soon_as_they_have_their_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.look(1010, 0)
    assert shown(capsys) == "0 documents"
    run.look(1011, 0)
    run.look(1012, 40)
    assert shown(capsys) == "40 documents, 40 documents/s"
    # A shard of fifty texts of which one was refused, with thirty more that were not sent, is finished.
    put(
        run.output,
        receipt(
            0, records=80, embedded=69, sent=49, reused=15, duplicates=5, dead_letters=11,
            reasons={"rejected_by_endpoint": 1, "missing_text": 10}, started_at=1010.0, finished_at=1013.0,
        ),
    )  # fmt: skip
    run.look(1020, 70)
    last = shown(capsys)
    assert last.startswith("62%|")
    # It makes 80 records of half of the bytes; twenty texts of the other half are settled.
    assert last.endswith("| 100 of about 160 documents, 8.9 documents/s, 6 s left")
    run.progress._bar.close()


def test_texts_that_were_sent_twice_are_counted_once_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    with run.progress:
        run.look(1010, 60)
        put(run.output, receipt(0, records=50, embedded=50), receipt(1, records=50, embedded=50))
        run.look(1020, 160)
        assert "100 of 100 documents" in shown(capsys)
    assert "100 of 100 documents" in shown(capsys)


def test_a_run_that_fails_keeps_what_the_bar_showed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(folder(tmp_path), set(), WORK, visible=True, clock=lambda: 1001.0)
    progress.__enter__()
    put(folder(tmp_path), receipt(0))
    progress.look()
    progress.__exit__(RuntimeError, RuntimeError("the endpoint is gone"), None)
    last = shown(capsys)
    assert last.startswith("37%|")  # rounded down: all of it is done only at the end
    assert "3 of about 8 documents, 3 documents/s" in last


class OutOfReach(OutputFolder):
    """A folder in a storage that fails."""

    def list(self, folder: str = "") -> dict[str, FileStat]:
        raise StorageError(f"{self.path(folder)} cannot be listed")


def test_a_storage_that_fails_does_not_fail_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(OutOfReach(str(tmp_path), "test"), set(), WORK, visible=True) as progress:
        progress.look()
    assert "0 documents" in capsys.readouterr().err


@pytest.mark.parametrize("visible", [False, None])
def test_where_nobody_watches_there_is_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], visible: bool | None
) -> None:
    output = folder(tmp_path)
    with Progress(output, set(), WORK, visible=visible):
        put(output, receipt(0))
    assert capsys.readouterr().err == ""


def test_shards_of_a_compressed_source_count_when_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder(tmp_path)
    work = [*Plan((PACKED,), 100).shards_of(PACKED), *WORK]
    with Progress(output, set(), work, visible=True) as progress:
        put(output, receipt(0, PACKED, end=100), receipt(0))
        progress.look()
        # One shard of the plain file's 250 bytes holds 3 records; the compressed one's 40 bytes hold at least its 3.
        assert "6 of about 10 documents" in shown(capsys)
        put(output, receipt(0, PACKED, end=100), receipt(1, PACKED, end=200, last=True), receipt(0))
    assert "9 of 9 documents" in shown(capsys)
