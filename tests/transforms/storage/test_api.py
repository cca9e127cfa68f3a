from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from transforms.storage import api as storage
from transforms.storage.api import Crc32c, FileStat


def test_the_checksum_is_the_castagnoli_polynomials_as_object_stores_show_it() -> None:
    crc = Crc32c()
    assert crc.base64() == "AAAAAA=="
    crc.update(b"1234")
    crc.update(b"56789")
    assert crc.base64() == "4waSgw=="  # 0xE3069283, the check value of CRC-32C


def test_a_file_is_written_whole_in_folders_that_it_makes(tmp_path: Path) -> None:
    path, temporary = str(tmp_path / "a" / "b"), str(tmp_path / "t" / "x")
    assert storage.write_whole(path, temporary, [b"1234", b"", b"56789"]) == (9, "4waSgw==")
    assert storage.read_bytes(path) == b"123456789"
    assert not os.path.exists(temporary)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def chunks() -> Iterator[bytes]:
        yield b"half of it"
        raise RuntimeError("the endpoint is gone")

    with pytest.raises(RuntimeError):
        storage.write_whole(str(path), str(tmp_path / "t"), chunks())
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("name", ["a.gz", "a*b", "a[1]", "\u0643 #%41", "a?b"])
def test_names_are_taken_literally_and_bytes_as_they_are(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    storage.write_whole(path, str(tmp_path / "t"), [b"plain"])
    assert os.listdir(tmp_path) == [name]
    assert storage.read_bytes(path) == b"plain"
    found = storage.stat(path)
    assert found == FileStat(path, 5, os.stat(path).st_mtime, str(os.stat(path).st_mtime_ns))
    storage.delete([path, path])
    assert storage.stat(path) is None


def test_what_is_not_there_has_no_stat(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert storage.stat(str(tmp_path / "nothing")) is None
    assert storage.stat(str(tmp_path / "file" / "below")) is None


def test_a_listing_holds_every_file_below_in_order(tmp_path: Path) -> None:
    for name in ("b/c", "a", "b/[x]/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    found = storage.list_below(str(tmp_path))
    assert sorted(file.path for file in found) == [str(tmp_path / name) for name in ("a", "b/[x]/d", "b/c")]
    assert {file.size for file in found} == {2}
    assert [file.path for file in storage.list_below(str(tmp_path / "b" / "[x]"))] == [str(tmp_path / "b/[x]/d")]
    assert storage.list_below(str(tmp_path / "nothing")) == []


@pytest.mark.parametrize("target", ["nowhere", "link", "."])
def test_what_is_there_and_cannot_be_listed_is_said(tmp_path: Path, target: str) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(storage.StorageError, match=f"{tmp_path}/link"):
        storage.list_below(str(tmp_path))
    with pytest.raises(storage.StorageError, match=f"{tmp_path}/link"):
        storage.match(str(tmp_path / "**"))


def test_folders_are_followed_through_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b").write_bytes(b"1")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    assert [file.path for file in storage.match(str(tmp_path / "in" / "**"))] == [str(tmp_path / "in/link/b")]


def test_what_a_pattern_does_not_reach_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "link").symlink_to("nowhere")
    assert [file.path for file in storage.match(str(tmp_path / "*"))] == [str(tmp_path / "a")]
    assert storage.match(str(tmp_path / "*/*")) == []


def test_a_pattern_matches_files_and_no_folders(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "c").mkdir()
    found = storage.match(str(tmp_path / "*"))
    assert [(file.path, file.size) for file in found] == [(str(tmp_path / "a"), 2), (str(tmp_path / "b"), 1)]
    assert [file.mtime for file in found] == [os.stat(file.path).st_mtime for file in found]


def test_local_paths_are_told_from_others() -> None:
    assert storage.is_local("/a/b")
    assert storage.is_local("a")


def test_only_an_empty_folder_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "full" / "empty").mkdir(parents=True)
    storage.delete_empty_folder(str(tmp_path / "full"))
    assert (tmp_path / "full" / "empty").exists()
    storage.delete_empty_folder(str(tmp_path / "full" / "empty"))
    storage.delete_empty_folder(str(tmp_path / "nowhere"))
    assert os.listdir(tmp_path / "full") == []


def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(storage.StorageError, match=r"whole cannot be written: File too large\. Make room"):
            storage.write_whole(f"{tmp_path}/whole", f"{tmp_path}/t", [b"x" * 2000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []
