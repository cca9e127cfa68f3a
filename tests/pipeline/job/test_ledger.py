from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.errors import NotProven
from pipeline.job.ledger import (
    Ledger,
    Part,
    ReceiptCache,
    SourceLedger,
    extrapolate,
    read_ledger,
    read_receipts,
    shard_of,
    stale_files,
)
from pipeline.job.sharding import Plan
from pipeline.runners.progress import Progress
from tests.shards import JOB, MADE, SOURCE, folder, put, receipt
from transforms.elements import Source
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt, encode_receipt
from transforms.storage.api import WrittenFile

# SOURCE has three shards of 100 bytes; of a compressed source only its last receipt says how many it has.
PACKED = Source("/in/deep/packed.ndjson.gz", "deep/packed", 70, "5.5", compressed=True)
PLAN = Plan((PACKED, SOURCE), 100)


def dead(index: int) -> WrittenFile:
    return WrittenFile(f"dead_letters/wiki-{index:05d}.ndjson", 4, "AAAAAA==")


def packed(index: int, *, last: bool = False) -> Receipt:
    return receipt(index, PACKED, end=100 * index + 100, last=last)


def ledger_of(output: OutputFolder, plan: Plan = PLAN) -> Ledger:
    return read_ledger(plan, output, JOB, output.list())


def full(output: OutputFolder) -> None:
    one = receipt(
        1, records=5, dead_letters=2, reasons={"empty_text": 1, "invalid_json": 1}, dead_letter_output=dead(1)
    )
    put(output, receipt(0), one, receipt(2, last=True), packed(0), packed(1, last=True))


def test_the_ledger_of_a_finished_job(tmp_path: Path) -> None:
    output = folder(tmp_path)
    full(output)
    ledger = ledger_of(output)
    assert ledger.complete
    ledger.require_balance()
    assert (ledger.records, ledger.embedded, ledger.dead_letters) == (17, 15, 2)
    assert [(s.source, s.records, s.embedded, s.dead_letters) for s in ledger.sources] == [
        (PACKED, 6, 6, 0),
        (SOURCE, 11, 9, 2),
    ]
    assert [one.shard for one in ledger.receipts()] == [
        "deep/packed-00000",
        "deep/packed-00001",
        "wiki-00000",
        "wiki-00001",
        "wiki-00002",
    ]
    assert ledger.reasons() == {"empty_text": 1, "invalid_json": 1}
    assert ledger.work_left() == []
    assert ledger.vouched_files(output) == set(output.list())
    assert stale_files(ledger, output, output.list()) == []


def test_an_empty_folder_has_everything_left(tmp_path: Path) -> None:
    ledger = ledger_of(folder(tmp_path))
    assert not ledger.complete
    assert ledger.records == 0
    assert ledger.work_left() == [*PLAN.shards_of(PACKED), *PLAN.shards_of(SOURCE)]
    with pytest.raises(NotProven, match=r"/in/deep/packed\.ndjson\.gz is not complete"):
        ledger.require_balance()


@pytest.mark.parametrize(
    "name", ["data/wiki-00001.ndjson", "dead_letters/wiki-00001.ndjson", "_job/receipts/wiki-00001.json"]
)
@pytest.mark.parametrize("damage", [None, b"", b"not what it was"])
def test_a_shard_of_which_anything_is_wrong_is_left_to_do(tmp_path: Path, name: str, damage: bytes | None) -> None:
    output = folder(tmp_path)
    full(output)
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    ledger = ledger_of(output)
    assert ledger.work_left() == [PLAN.shards_of(SOURCE)[1]]
    assert [source.complete for source in ledger.sources] == [True, False]
    with pytest.raises(NotProven, match=r"/in/wiki\.ndjson is not complete"):
        ledger.require_balance()
    # what the shard left behind is stale, and nothing else is
    left = {"data/wiki-00001.ndjson", "dead_letters/wiki-00001.ndjson", "_job/receipts/wiki-00001.json"}
    left |= {"_job/keys/wiki-00001.u64"}
    assert set(stale_files(ledger, output, output.list())) == left & set(output.list())


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": dataclasses.replace(MADE, space="another")},
        {"provenance": dataclasses.replace(MADE, settings="another")},
        {"source_version": "1"},
        {"source_size": 251},
        {"start": 99},
    ],
)
def test_a_receipt_of_something_else_does_not_count(tmp_path: Path, change: dict[str, object]) -> None:
    output = folder(tmp_path)
    full(output)
    put(output, receipt(1, **change))
    assert [shard.name for shard in ledger_of(output).work_left()] == ["wiki-00001"]


def test_a_shard_beyond_the_end_of_a_source_does_not_count(tmp_path: Path) -> None:
    output = folder(tmp_path)
    full(output)
    put(output, receipt(3))
    ledger = ledger_of(output)
    assert ledger.embedded == 15
    stale = stale_files(ledger, output, output.list())
    assert set(stale) == {
        "_job/receipts/wiki-00003.json",
        "_job/keys/wiki-00003.u64",
        "data/wiki-00003.ndjson",
    }


def test_files_of_a_source_with_a_newline_in_its_name_are_found(tmp_path: Path) -> None:
    output, plan = folder(tmp_path), Plan((dataclasses.replace(SOURCE, name="wi\nki"),), 100)
    kinds = ("data/%s.ndjson", "dead_letters/%s.ndjson", "_job/receipts/%s.json", "_job/keys/%s.u64")
    names = {kind % "wi\nki-00001" for kind in kinds}
    for name in names:
        output.write(name, [b"left behind"])
    assert {shard_of(name) for name in names} == {"wi\nki-00001"}
    assert set(stale_files(ledger_of(output, plan), output, output.list())) == names


@pytest.mark.parametrize(("missing", "complete"), [(0, False), (1, False), (None, True)])
def test_a_compressed_source_is_complete_up_to_its_last_shard(
    tmp_path: Path, missing: int | None, complete: bool
) -> None:
    output = folder(tmp_path)
    put(output, *(one for one in (packed(0), packed(1, last=True)) if one.index != missing))
    ledger = ledger_of(output, Plan((PACKED,), 100))
    assert ledger.complete is complete
    assert ledger.work_left() == ([] if complete else PLAN.shards_of(PACKED))


def test_a_ledger_that_does_not_balance_names_the_shard_and_the_numbers(tmp_path: Path) -> None:
    output = folder(tmp_path)
    full(output)
    put(output, receipt(2, last=True, records=4))
    with pytest.raises(
        NotProven, match="the ledger of wiki-00002 does not balance: 4 records, but 3 embedded and 0 dead"
    ):
        ledger_of(output).require_balance()


def test_two_names_of_one_path_stay_apart(tmp_path: Path) -> None:
    output = folder(tmp_path)
    other = dataclasses.replace(SOURCE, name="other")
    put(output, receipt(0), receipt(0, other), receipt(1, other), receipt(2, other, last=True))
    ledger = ledger_of(output, Plan((other, SOURCE), 100))
    assert [source.complete for source in ledger.sources] == [True, False]


def test_a_corpus_that_has_moved_is_known_by_its_names(tmp_path: Path) -> None:
    output = folder(tmp_path)
    full(output)
    moved = [dataclasses.replace(one, path=one.path.replace("/in/", "/moved/")) for one in PLAN.sources]
    assert ledger_of(output, Plan(tuple(moved), 100)).complete


def test_what_was_embedded_of_a_gone_source_is_vouched_for_and_never_stale(tmp_path: Path) -> None:
    output = folder(tmp_path)
    full(output)
    ledger = ledger_of(output, Plan((SOURCE,), 100))
    assert ledger.gone == (PACKED.path,)
    assert sorted(one.shard for one in ledger.gone_receipts) == ["deep/packed-00000", "deep/packed-00001"]
    assert ledger.embedded == 9
    assert ledger.vouched_files(output) == set(output.list())
    assert stale_files(ledger, output, output.list()) == []


def test_a_receipt_under_another_shards_name_vouches_for_nothing(tmp_path: Path) -> None:
    output = folder(tmp_path)
    put(output, receipt(0))
    output.write(output.receipt("wiki-00001"), [encode_receipt(receipt(0))])
    assert [one.shard for one in read_receipts(output, list(output.list(output.receipts)))] == ["wiki-00000"]


def test_files_of_others_are_never_stale(tmp_path: Path) -> None:
    output = folder(tmp_path)
    mine = ["data/wiki-00007.ndjson", "dead_letters/wiki-00007.ndjson", "_job/receipts/wiki-00007.json"]
    others = [
        *["notes.txt", "data/wiki.ndjson", "data/wiki-7.ndjson", "data/wiki-00007.ndjson.gz", "data/wiki-00007.json"],
        *["data/other-00007.ndjson", "wiki-00007.ndjson", "_job/receipts/dead_letters/wiki-00007.json"],
        *[
            "data/a/wiki-00007.ndjson",
            "dead_letters/wiki-00007.json",
            "_job/receipts/wiki-00007.ndjson",
            "_job/job.json",
        ],
    ]
    for name in (*mine, *others):
        output.write(name, [b"x"])
    assert set(stale_files(ledger_of(output), output, output.list())) == set(mine)


class Counting(OutputFolder):
    """A folder that counts what is read of it."""

    names: ClassVar[list[str]] = []

    def read(self, name: str, max_bytes: int = 1 << 20) -> bytes | None:
        self.names.append(name)
        return super().read(name, max_bytes)


def test_who_looks_again_reads_only_what_is_new_also_what_the_progress_bar_has_read(tmp_path: Path) -> None:
    output, cache = Counting(str(tmp_path), "run"), ReceiptCache()
    full(folder(tmp_path))
    read_ledger(PLAN, output, JOB, output.list(), cache)
    assert len(output.names) == 5
    with Progress(output, set(output.list(output.receipts)), PLAN.shards_of(SOURCE), cache=cache):
        put(folder(tmp_path), receipt(2, last=True, records=4, embedded=4), packed(2, last=True))
    ledger = read_ledger(PLAN, output, JOB, output.list(), cache)
    assert sorted(output.names[5:]) == [output.receipt("deep/packed-00002"), output.receipt("wiki-00002")]
    assert ledger.sources[1].records == 12
    assert sorted(ledger.sources[0].by_index) == [0, 1, 2]


def test_what_is_no_receipt_is_as_good_as_not_there(tmp_path: Path) -> None:
    output = folder(tmp_path)
    put(output, receipt(0))
    output.write(output.receipt("wiki-00001"), [b"{}"])
    names = [output.receipt(f"wiki-{index:05d}") for index in range(3)]
    assert [one.shard for one in read_receipts(output, names)] == ["wiki-00000"]


def test_records_are_expected_by_the_bytes_that_are_done_or_else_by_the_plan() -> None:
    plan = Plan((SOURCE,), 100)
    nothing = Ledger(plan, (SourceLedger(SOURCE, {}, False),))
    assert (nothing.records_expected(), nothing.records_expected(500)) == (None, 500)
    some = Ledger(plan, (SourceLedger(SOURCE, {0: receipt(0, records=30)}, False),))
    assert some.records_expected(500) == 75  # 30 records of 100 bytes of 250
    shards = {0: receipt(0, records=30), 1: receipt(1), 2: receipt(2, last=True)}
    assert Ledger(plan, (SourceLedger(SOURCE, shards, True),)).records_expected(500) == 36


def test_records_of_a_compressed_file_that_is_not_complete_are_not_taken_for_all_of_its_bytes() -> None:
    """Its shards count decompressed bytes, of which there are several times as many as it has."""
    shards = {index: receipt(index, PACKED, records=30, last=index == 2) for index in (0, 2, 3)}
    packed = SourceLedger(PACKED, shards, False)
    alone = Ledger(Plan((PACKED,), 100), (packed,))
    assert [alone.records_expected(planned) for planned in (None, 500, 10)] == [None, 500, 90]
    other = Source("/in/other.ndjson.gz", "other", 100, "1.0", compressed=True)
    both = SourceLedger(other, {0: receipt(0, other, records=400)}, True)
    assert Ledger(Plan((other, PACKED), 100), (both, packed)).records_expected() == 680  # 400 + 70 bytes of 4 each


def test_a_kind_of_file_of_which_nothing_is_done_is_taken_to_be_as_dense_as_the_other() -> None:
    plain, packed = Part(200, 100, 30, compressed=False), Part(50, 0, 0, compressed=True)
    assert extrapolate([plain, packed]) == 75
    assert extrapolate([plain, packed._replace(records=40)]) == 100  # but of no fewer than are there
    assert extrapolate([plain, packed, Part(10, 10, 20, compressed=True)]) == 60 + 100 + 20
    assert extrapolate([]) == 0
