from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from transforms.storage import api as storage
from transforms.storage import local
from transforms.storage.base import StorageError


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_a_file_gets_the_rights_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        storage.write_whole(f"{tmp_path}/a/b", f"{tmp_path}/t", [b"x"])
    finally:
        os.umask(before)
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_pipe_a_socket_a_device_and_a_folder_are_no_files_to_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path, Path("/dev/zero")):
            with pytest.raises(StorageError, match=f"{path} is not a regular file"):
                storage.open_for_reading(str(path))
            with pytest.raises(StorageError, match=f"{path} is not a regular file"):
                storage.read_bytes(str(path))


def test_a_folder_that_goes_while_it_is_listed_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/a").write_bytes(b"1")
    (tmp_path / "in/deep/b").write_bytes(b"1")
    listed = local.list_below(f"{tmp_path}/in/")
    assert next(listed).path == f"{tmp_path}/in/a"
    shutil.rmtree(tmp_path / "in/deep")
    assert list(listed) == []


def test_links_are_listed_as_such_where_none_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b").write_bytes(b"12")
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/a").write_bytes(b"1")
    for name, target in {
        "folder": "../other",
        "deep/file": "../../other/b",
        "dangling": "nowhere",
        "loop": ".",
    }.items():
        (tmp_path / "in" / name).symlink_to(target)
    found = storage.list_below(f"{tmp_path}/in", follow_links=False)
    links = {file.path.removeprefix(f"{tmp_path}/in/"): file.is_link for file in found}
    assert links == {"a": False, "folder": True, "deep/file": True, "dangling": True, "loop": True}


def test_a_rewritten_file_has_another_version_and_a_change_of_rights_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first = storage.stat(f"{tmp_path}/a")
    (tmp_path / "a").chmod(0o600)
    assert storage.stat(f"{tmp_path}/a") == first
    os.utime(tmp_path / "a", ns=(1, 1_700_000_000_000_000_001))
    second = storage.stat(f"{tmp_path}/a")
    os.utime(tmp_path / "a", ns=(1, 1_700_000_000_000_000_002))  # no float tells these apart
    third = storage.stat(f"{tmp_path}/a")
    assert first is not None is not second
    assert third is not None
    assert second is not None
    assert len({first.version, second.version, third.version}) == 3


def exists_in_any_case(path: str) -> bool:
    """Look for a file as a case-insensitive file system does."""
    folder, name = os.path.split(path)
    return name.lower() in {found.lower() for found in os.listdir(folder)}


@pytest.mark.parametrize("folder", ["", "/there/is/none/yet"])
def test_whether_a_disk_ignores_case_is_tried(tmp_path: Path, folder: str) -> None:
    assert local.ignores_case(f"{tmp_path}{folder}", exists_in_any_case)
    assert not local.ignores_case(f"{tmp_path}{folder}", lambda path: os.path.basename(path) in os.listdir(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert not storage.ignores_case("gs://bucket/out")


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_call_returns(tmp_path: Path) -> None:
    path, temporary = tmp_path / "a/b", tmp_path / "tmp/t"
    synced: list[tuple[int, bytes | None, bytes | None]] = []

    def sync(descriptor: int) -> None:
        contents = [each.read_bytes() if each.exists() else None for each in (temporary, path)]
        synced.append((os.fstat(descriptor).st_ino, contents[0], contents[1]))

    local.write_whole(str(path), str(temporary), [b"some ", b"bytes"], sync)
    assert synced == [(path.stat().st_ino, b"some bytes", None), (path.parent.stat().st_ino, None, b"some bytes")]


def test_a_folder_that_cannot_be_synced_keeps_no_file_from_being_written(tmp_path: Path) -> None:
    def sync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")

    local.write_whole(f"{tmp_path}/a/b", f"{tmp_path}/t", [b"x"], sync)
    assert (tmp_path / "a/b").read_bytes() == b"x"


def test_what_cannot_be_cleaned_up_does_not_hide_the_first_error(tmp_path: Path) -> None:
    temporary = tmp_path / "t"

    def chunks() -> Iterator[bytes]:
        temporary.unlink()
        temporary.mkdir()  # which cannot be deleted as a file is
        raise ValueError("the first error")
        yield b""

    with pytest.raises(ValueError, match="the first error"):
        local.write_whole(f"{tmp_path}/b", str(temporary), chunks())
