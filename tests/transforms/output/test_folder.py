from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shards import folder
from transforms.output.folder import OutputFolder, check_name
from transforms.storage.base import StorageError


def test_the_names_are_a_contract() -> None:
    output = OutputFolder("/out", "run")
    assert output.embedded("a/wiki-00003") == "data/a/wiki-00003.ndjson"
    assert output.dead_letters("a/wiki-00003") == "dead_letters/a/wiki-00003.ndjson"
    assert output.receipt("a/wiki-00003") == "_job/receipts/a/wiki-00003.json"
    assert (output.job, output.plan, output.report) == ("_job/job.json", "_job/plan.ndjson", "_job/report.json")
    assert output.path("x") == "/out/x"


def test_a_file_is_written_read_listed_and_deleted(tmp_path: Path) -> None:
    output = folder(tmp_path)
    name = "data/b-00000.ndjson"
    assert output.read(name) is None is output.stat(name)
    written = output.write(name, [b"1234", b"56789"])
    assert (written.path, written.bytes, written.crc32c) == (name, 9, "4waSgw==")
    assert output.read(name) == b"123456789"
    assert output.list() == {name: output.stat(name)} == output.list("data")
    assert output.list("b") == {}
    output.delete([name, "data/nothing-00000.ndjson"])
    assert output.list() == {}


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX"))
    folder(tmp_path).write(name, [b"1"])
    assert folder(tmp_path).list().keys() == {name}


def test_what_is_not_whole_lies_with_the_temporary_files_alone(tmp_path: Path) -> None:
    output = folder(tmp_path)

    def chunks() -> Iterator[bytes]:
        yield b"half"
        assert all(name.startswith(output.temporary + "/") for name in output.list())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        output.write("a", chunks())
    assert "a" not in output.list()


@pytest.mark.parametrize("name", ["a", "data/a b/\u0643-00000.ndjson", "..a/b..", "a:b", "x" * 255, "\u0643" * 127])
def test_names_below_the_folder_are_good(name: str) -> None:
    check_name(name)


OUTSIDE = {
    "": "is empty",
    "/etc/passwd": "begins or ends with a slash",
    "a//b": "two in a row",
    "data/": "begins or ends with a slash",
    ".": "'.' or '..'",
    "..": "'.' or '..'",
    "data/../../victim/f": "'.' or '..'",
    "data/./a": "'.' or '..'",
    "a\0b": "NUL",
    "a\\..\\b": "backslash",
    "x" * 256: "a part of 256 bytes",
    "a/" + "\u0643" * 128: "a part of 256 bytes",
    "a\udcff": "not UTF-8",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_other_names_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=OUTSIDE[name]):
        check_name(name)
    output = folder(tmp_path / "out")
    for act in (
        lambda: output.path(name),
        lambda: output.read(name),
        lambda: output.stat(name),
        lambda: output.write(name, [b"x"]),
        lambda: output.write(output.embedded(f"{name}/x"), [b"x"]) if name != "x" * 256 else output.path(name),
        lambda: output.delete([f"_job/tmp/{name}/x"]),
    ):
        with pytest.raises(StorageError, match="cannot hold"):
            act()
    assert not list(tmp_path.iterdir())


def test_a_bucket_may_have_backslashes_and_nothing_else_of_these() -> None:
    output = OutputFolder("gs://b/out", "run")
    assert output.path("a\\b") == "gs://b/out/a\\b"
    with pytest.raises(StorageError, match=r"gs://b/out cannot hold 'data/\.\./x': its name has a part '\.' or '\.\.'"):
        output.path("data/../x")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else's, with files that are named as Tayyar's are."""
    (tmp_path / "victim/a").mkdir(parents=True)
    for name in ("x-00000.ndjson", "x-00000.json", "a/x-00000.json"):
        (tmp_path / "victim" / name).write_text("theirs")
    return tmp_path / "victim"


@pytest.mark.parametrize("linked", ["data", "_job", "_job/tmp", "_job/receipts", "_job/receipts/a", "_job/redrive"])
def test_a_linked_folder_is_not_entered_and_only_the_link_is_deleted(tmp_path: Path, victim: Path, linked: str) -> None:
    output, link = folder(tmp_path / "out"), tmp_path / "out" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    before = {path: path.read_bytes() for path in victim.rglob("*.*")}
    assert len(before) == 3
    for act in (
        lambda: output.read(f"{linked}/x-00000.json"),
        lambda: output.stat(f"{linked}/x-00000.json"),
        lambda: output.write(f"{linked}/x-00000.json", [b"ours"]),
        lambda: output.delete([f"{linked}/a/x-00000.ndjson"]),
        lambda: output.list(f"{linked}/a"),
    ):
        with pytest.raises(StorageError, match=f"{link} is a link, and none is followed"):
            act()
    assert output.list().keys() == output.list(linked).keys() == {linked}
    assert output.list()[linked].is_link
    output.delete(output.list(linked))
    assert link.is_symlink() == (linked in ("data", "_job"))  # these are the user's to decide on
    assert {path: path.read_bytes() for path in victim.rglob("*.*")} == before


def test_a_linked_file_is_not_read_and_is_replaced_and_deleted_itself(tmp_path: Path, victim: Path) -> None:
    output, target = folder(tmp_path / "out"), victim / "x-00000.ndjson"
    name = "data/x-00000.ndjson"
    link = tmp_path / "out" / name
    for act in (lambda: output.write(name, [b"ours"]), lambda: output.delete([name])):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(StorageError, match=f"{link} is a link"):
            output.read(name)
        found = output.stat(name)
        assert found is not None
        assert found.is_link
        act()
        assert not link.is_symlink()
        assert target.read_text() == "theirs"


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    output = folder(tmp_path / "out")
    output.write("data/a-00000.ndjson", [b"1"])
    assert output.list().keys() == {"data/a-00000.ndjson"}
    output.delete(output.list())
    assert output.list() == {}


def test_only_files_of_tayyars_own_form_are_deleted(tmp_path: Path) -> None:
    output = folder(tmp_path)
    theirs = ["notes.txt", "data/notes.txt", "data/a.ndjson", "data/a-7.ndjson", "dead_letters/a-00000.json"]
    theirs += ["_job/notes.txt", "_job/.htaccess", "a-00000.ndjson", "other/a-00000.ndjson"]
    ours = ["data/a-00000.ndjson", "data/b/a-123456.parquet", "dead_letters/a-00000.ndjson", "_job/job.json"]
    ours += ["_job/report.html", "_job/tmp/anything", "_job/receipts/b/a-00000.json", "_job/plan.ndjson"]
    for name in theirs + ours:
        output.write(name, [b"x"])
    assert output.list().keys() == {*theirs, *ours}
    output.delete(output.list())
    assert output.list().keys() == set(theirs)


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    output = folder(tmp_path)
    output.write("_job/job.json", [b"12345"])
    assert output.read("_job/job.json", 5) == b"12345"
    with pytest.raises(StorageError, match=r"_job/job\.json has more than 4 bytes"):
        output.read("_job/job.json", 4)
    os.mkfifo(tmp_path / "_job/plan.ndjson")
    with pytest.raises(StorageError, match=r"_job/plan\.ndjson is not a regular file"):
        output.read(output.plan)  # waited for a writer, forever
    with pytest.raises(StorageError, match="_job is not a regular file"):
        output.read("_job")
