from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.runners.progress import Progress, records_expected
from tests.shards import SOURCE, folder, put, receipt
from transforms.elements import Source
from transforms.output.folder import OutputFolder
from transforms.storage.base import FileStat, StorageError

PACKED = Source("/in/packed.ndjson.gz", "packed", 40, "1.0", compressed=True)


def test_the_bar_counts_the_receipts_that_appear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder(tmp_path)
    put(output, receipt(0))
    seen = set(output.list(output.receipts))
    with Progress(output, seen, bytes_left=150, visible=True):
        put(output, receipt(1, records=2000), receipt(2, records=500))
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in last
    assert "2500/2500" in last
    assert "documents/s" in last


def test_a_run_that_fails_keeps_what_the_bar_showed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(folder(tmp_path), set(), 250, visible=True)
    put(folder(tmp_path), receipt(0))
    progress.__enter__()
    progress.__exit__(RuntimeError, RuntimeError("the endpoint is gone"), None)
    assert "100%" not in capsys.readouterr().err


class OutOfReach(OutputFolder):
    """A folder in a storage that fails."""

    def list(self, folder: str = "") -> dict[str, FileStat]:
        raise StorageError(f"{self.path(folder)} cannot be listed")


def test_a_storage_that_fails_does_not_fail_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(OutOfReach(str(tmp_path), "test"), set(), 250, visible=True) as progress:
        progress.look()
    assert "0 documents" in capsys.readouterr().err


@pytest.mark.parametrize("visible", [False, None])
def test_where_nobody_watches_there_is_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], visible: bool | None
) -> None:
    output = folder(tmp_path)
    with Progress(output, set(), 250, visible=visible):
        put(output, receipt(0))
    assert capsys.readouterr().err == ""


def test_shards_larger_than_the_compressed_source_do_not_count_as_stored_bytes() -> None:
    first = replace(receipt(0, records=10), source="/in/a.gz", source_size=1000, start=0, end=900, last=False)
    second = replace(first, index=1, start=900, end=1800, records=10)
    third = replace(first, index=2, start=1800, end=2700, records=10, last=True)
    assert (
        records_expected([first], 2000, {"/in/a.gz"}) is None
    )  # 900 decompressed bytes are not 900 of the stored 1,000
    assert records_expected([first, second, third], 2000, {"/in/a.gz"}) == 60


def test_shards_of_a_compressed_source_count_when_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder(tmp_path)
    with Progress(output, set(), PACKED.size + SOURCE.size, visible=True, compressed={PACKED.path}):
        put(output, receipt(0, PACKED, end=100), receipt(1, PACKED, end=200, last=True), receipt(0))
    assert "9/9" in capsys.readouterr().err.split("\r")[-1]
