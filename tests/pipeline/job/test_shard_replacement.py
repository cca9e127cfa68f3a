from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.job.shard_replacement import FOLDER, finish_replacements, replace_shard
from tests.dying_folder import Dying, Killed
from tests.shards import JOB, SOURCE, folder, receipt
from transforms.doubt import record_doubt
from transforms.elements import Shard
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt, decode_receipt, encode_receipt, is_done
from transforms.storage.api import Crc32c, WrittenFile

SHARD = Shard(SOURCE, 0, 0, 100)
KEYS = b"12345678"
BEFORE, AFTER = b"a\nc\n", b"a\nb\nc\n"
STEPS = 8  # the staged output, the intent, the output, the dead letters, the keys, the receipt, two deletions


def is_planned(shard: str) -> bool:
    return shard == SHARD.name


def written(path: str, content: bytes) -> WrittenFile | None:
    crc = Crc32c()
    crc.update(content)
    return WrittenFile(path, len(content), crc.base64()) if content else None


def receipt_of(output: OutputFolder, content: bytes, letters: bytes) -> Receipt:
    embedded, dead = content.count(b"\n"), letters.count(b"\n")
    return receipt(
        embedded=embedded, records=embedded + dead, dead_letters=dead, reasons={"invalid_vector": dead} if dead else {},
        output=written(output.embedded(SHARD.name), content),
        dead_letter_output=written(output.dead_letters(SHARD.name), letters),
    )  # fmt: skip


def put(output: OutputFolder, content: bytes, letters: bytes) -> Receipt:
    made = receipt_of(output, content, letters)
    output.write(output.embedded(SHARD.name), [content])
    output.write(output.dead_letters(SHARD.name), [letters])
    output.write(output.receipt(SHARD.name), [encode_receipt(made)])
    return made


def state_of(output: OutputFolder) -> tuple[bytes | None, ...]:
    names = (output.embedded(SHARD.name), output.dead_letters(SHARD.name), output.receipt(SHARD.name))
    return tuple(output.read(name) for name in names)


@pytest.mark.parametrize("letters", [b"", b"B\n"])
def test_a_shard_is_replaced_as_if_it_had_been_so_at_first(tmp_path: Path, letters: bytes) -> None:
    output = folder(tmp_path)
    put(output, BEFORE, b"B\nD\n")
    replace_shard(output, receipt_of(output, AFTER, letters), [b"a\nb\n", b"c\n"], letters, lambda: KEYS)
    assert state_of(output) == (AFTER, letters or None, encode_receipt(receipt_of(output, AFTER, letters)))
    assert is_done(output, SHARD, JOB)
    assert output.list(FOLDER) == {}
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("letters", [b"", b"B\n"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_death_at_any_step_is_made_good(tmp_path: Path, step: int, before: bool, letters: bytes) -> None:
    output = folder(tmp_path)
    put(output, BEFORE, b"B\nD\n")
    old = state_of(output)
    Dying.left, Dying.before = step, before
    with pytest.raises(Killed):
        replace_shard(Dying(output.root, "dying"), receipt_of(output, AFTER, letters), [AFTER], letters, lambda: KEYS)
    intended = any(name.endswith(".json") for name in output.list(FOLDER))
    if not is_done(output, SHARD, JOB):
        assert intended
    new = (AFTER, letters or None, encode_receipt(receipt_of(output, AFTER, letters)))
    finish_replacements(output, is_planned)
    assert state_of(output) in ((new,) if intended else (old, new))
    assert is_done(output, SHARD, JOB)
    assert output.list(FOLDER) == {}


def test_every_step_is_among_those(tmp_path: Path) -> None:
    output = folder(tmp_path)
    put(output, BEFORE, b"B\n")
    Dying.left = 100
    replace_shard(Dying(output.root, "dying"), receipt_of(output, AFTER, b""), [AFTER], b"", lambda: KEYS)
    assert 100 - Dying.left == STEPS


@pytest.mark.parametrize("embedded_again", [AFTER, b"a\nb\nc\nd\n"])
def test_a_promise_gives_way_to_a_run_that_has_redone_the_shard(tmp_path: Path, embedded_again: bytes) -> None:
    output = folder(tmp_path)
    put(output, BEFORE, b"B\nD\n")
    Dying.left, Dying.before = 3, False  # the output is in its place
    with pytest.raises(Killed):
        replace_shard(Dying(output.root, "dying"), receipt_of(output, AFTER, b"D\n"), [AFTER], b"D\n", lambda: KEYS)
    put(output, embedded_again, b"")
    redone = state_of(output)
    assert finish_replacements(output, is_planned) == 0
    assert state_of(output) == redone


def test_output_that_turns_out_wrong_changes_nothing(tmp_path: Path) -> None:
    output = folder(tmp_path)
    put(output, BEFORE, b"B\nD\n")
    old = state_of(output)

    def blocks() -> Iterable[bytes]:
        yield b"a\n"
        raise Killed

    with pytest.raises(Killed):
        replace_shard(output, receipt_of(output, AFTER, b""), blocks(), b"", lambda: KEYS)
    assert state_of(output) == old
    assert finish_replacements(output, is_planned) == 0


def test_a_promise_of_a_redrive_in_doubt_is_not_kept(tmp_path: Path) -> None:
    output = folder(tmp_path)
    put(output, BEFORE, b"B\nD\n")
    old = state_of(output)
    Dying.left, Dying.before = 2, False
    new = dataclasses.replace(receipt_of(output, AFTER, b"D\n"), run="dying")
    with pytest.raises(Killed):
        replace_shard(Dying(output.root, "dying"), new, [AFTER], b"D\n", lambda: KEYS)
    record_doubt(OutputFolder(output.root, "dying"), "Rows were mixed up.")
    assert finish_replacements(output, is_planned) == 0
    assert state_of(output) == old
    assert output.list(FOLDER) == {}


def test_the_promise_holds_the_receipt(tmp_path: Path) -> None:
    output = folder(tmp_path)
    put(output, BEFORE, b"B\nD\n")
    Dying.left, Dying.before = 2, False
    with pytest.raises(Killed):
        replace_shard(Dying(output.root, "dying"), receipt_of(output, AFTER, b"D\n"), [AFTER], b"D\n", lambda: KEYS)
    assert is_done(output, SHARD, JOB)  # as it was
    assert finish_replacements(output, is_planned) == 1
    assert decode_receipt(output.read(output.receipt(SHARD.name)) or b"").embedded == 3


def interrupted(output: OutputFolder) -> str:
    """Leave an intent that was not carried out, and return its name."""
    put(output, BEFORE, b"B\nD\n")
    Dying.left, Dying.before = 2, False
    with pytest.raises(Killed):
        replace_shard(Dying(output.root, "dying"), receipt_of(output, AFTER, b"D\n"), [AFTER], b"D\n", lambda: KEYS)
    (name,) = [name for name in output.list(FOLDER) if name.endswith(".json")]
    return name


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"null", b'{"receipt": 1}', b"\xff", b'{"receipt": "{}"'])
def test_an_intent_that_cannot_be_read_is_reported_and_deleted(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    output = folder(tmp_path)
    name = interrupted(output)
    old = state_of(output)
    output.write(name, [damage])
    assert finish_replacements(output, is_planned) == 0
    assert f"{tmp_path}/{name} cannot be carried out" in caplog.text
    assert state_of(output) == old
    assert output.list(FOLDER) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"shard": "../../victim-00000"},
        {"shard": "other-00000"},
        {"shard": "wiki-00001", "index": 1},
        {"output": {"path": "data/../../victim.ndjson", "bytes": 6, "crc32c": "AAAAAA=="}},
        {"output": {"path": "data/wiki-00000.ndjson", "bytes": 7, "crc32c": "AAAAAA=="}},
        {"dead_letter_output": None},
        {"embedded": -1},
        {"records": 1 << 60},
        {"finished_at": 1e300},
        {"reasons": {"nonsense": 1}},
    ],
)
def test_a_forged_intent_touches_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    output = folder(tmp_path / "out")
    name = interrupted(output)
    (tmp_path / "victim.ndjson").write_text("theirs")
    intent = json.loads(output.read(name) or b"")
    intent["receipt"] = json.dumps(json.loads(intent["receipt"]) | change)
    output.write(name, [json.dumps(intent).encode()])
    old = state_of(output)
    assert finish_replacements(output, is_planned) == 0
    assert state_of(output) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "victim.ndjson"]


def test_an_intent_of_a_shard_that_the_plan_does_not_have_is_not_carried_out(tmp_path: Path) -> None:
    output = folder(tmp_path)
    interrupted(output)
    old = state_of(output)
    assert finish_replacements(output, lambda _: False) == 0
    assert state_of(output) == old
