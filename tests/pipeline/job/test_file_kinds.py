from __future__ import annotations

import bz2
import gzip
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job.file_kinds import HEAD_BYTES, FileKind, kind_of, look_at, look_at_all
from transforms.storage import api as storage
from transforms.storage.base import FileStat

LINE = b'{"content":"a"}\n'
PACKERS = pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstd.compress], ids=["gzip", "bzip2", "zstd"])


def kind(path: Path, data: bytes) -> FileKind:
    path.write_bytes(data)
    found = storage.stat(str(path))
    assert found is not None
    return look_at(found)


@pytest.mark.parametrize(
    "data",
    [
        LINE,
        b"\n\r\n" + LINE,
        b"\xef\xbb\xbf" + LINE,
        b"broken\n" + LINE,
        b"[1]\n" + LINE,
        b'{"content":"a"\n' + LINE,
        b'{"x":NaN}\n',
        b'{"content":"' + b"a" * HEAD_BYTES,
        b" " * (HEAD_BYTES + 1),
    ],
)
def test_records_are_records_with_some_that_are_broken(data: bytes) -> None:
    assert kind_of(data[:HEAD_BYTES], len(data) <= HEAD_BYTES).problem is None


@PACKERS
def test_a_compressed_file_is_known_by_its_content(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert kind(tmp_path / "a", pack(LINE)) == FileKind(True, records=({"content": "a"},), bytes_per_record=len(LINE))
    assert kind(tmp_path / "b", pack(b"[]")).problem == "a JSON array"
    assert kind(tmp_path / "c", pack(b"\n")).problem == "an empty file"


@PACKERS
def test_the_first_block_of_a_compressed_file_may_be_longer_than_the_head(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    noise = random.Random(1).randbytes(400_000).hex().encode()
    found = kind(tmp_path / "a", pack(LINE * 10 + b'{"content":"' + noise + b'"}\n'))
    assert found.records[:1] == ({"content": "a"},)


@PACKERS
def test_a_damaged_beginning_is_left_to_reading(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert kind(tmp_path / "a", pack(LINE * 9)[:20]) == FileKind(True)


def test_a_skippable_zstd_frame_may_come_first(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert kind(tmp_path / "a", skippable + zstd.compress(LINE)).records == ({"content": "a"},)


def test_many_files_keep_their_order(tmp_path: Path) -> None:
    for n in range(200):
        (tmp_path / f"{n:03d}").write_bytes(b'{"n":%d}\n' % n)
    files = sorted(storage.list_below(str(tmp_path)), key=lambda file: file.path)
    assert [found.records for found in look_at_all(files)] == [({"n": n},) for n in range(200)]


def test_the_first_bytes_of_many_objects_are_fetched_at_once_and_by_one_request_each() -> None:
    """64 at once, so that 20,000 of them in a bucket that answers after 60 ms take 19 s."""
    requests = []
    all_at_once = threading.Barrier(64)

    def read_beginning(path: str, count: int) -> bytes:
        all_at_once.wait(20)  # breaks if fewer come
        requests.append((path, count))
        return LINE

    files = [FileStat(f"s3://b/{n}", len(LINE), 0.0, "1") for n in range(64 * 30)]
    kinds = look_at_all(files, read_beginning)
    assert [kind.records for kind in kinds] == [({"content": "a"},)] * len(files)
    assert sorted(requests) == sorted((file.path, HEAD_BYTES) for file in files)


def test_a_file_that_goes_in_between_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(LINE)
    (file,) = storage.list_below(str(tmp_path))
    os.remove(tmp_path / "a")
    with pytest.raises(storage.StorageError, match="a is gone since it was listed"):
        look_at(file)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_have_a_kind(data: bytes, whole: bool) -> None:
    found = kind_of(data, whole)
    assert found.problem is None or (found.remedy or found.problem == "an empty file")
