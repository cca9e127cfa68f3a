from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from tests.shards import LAYOUT, MADE, embedded_shard, folder
from transforms.elements import Vectors
from transforms.output.folder import OutputFolder
from transforms.reuse.index import FormerFile, make_index
from transforms.reuse.keys import encode_keys
from transforms.reuse.partial import (
    FOLDER,
    PartialWriter,
    count_partial,
    decode_header,
    decode_partial,
    encode_partial,
    keys_of,
)
from transforms.reuse.reuse import find_vectors
from transforms.storage.api import WrittenFile
from transforms.storage.base import StorageError
from transforms.write_embedded import write_shard

TEXTS = [f"text {number}" for number in range(6)]
VECTORS = np.arange(1, 13, dtype=np.float32).reshape(6, 2)


class Pending:
    """A shard of which some vectors are there."""

    def __init__(self) -> None:
        self.vectors = np.zeros((6, 2), dtype=np.float32)
        self.there = np.zeros(6, dtype=np.bool_)

    def so_far(self) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        return self.vectors, self.there.copy()

    def arrive(self, *rows: int) -> None:
        self.vectors[list(rows)] = VECTORS[list(rows)]
        self.there[list(rows)] = True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def writer(output: OutputFolder, clock: Clock) -> PartialWriter:
    # Its own thread looks once an hour: the tests look themselves.
    return PartialWriter(output, "space", "truncate", look_seconds=3600, save_seconds=20, clock=clock)


def saved(output: OutputFolder) -> list[str]:
    """The texts whose vectors were saved."""
    found = []
    for name in output.list(FOLDER):
        header, digests, vectors = decode_partial(output.read(name) or b"")
        assert (header.shard, header.space, header.overlong) == ("wiki-00000", "space", "truncate")
        for digest, vector in zip(digests, vectors, strict=True):
            (text,) = [text for text in TEXTS if keys_of([digest]) == keys_of(decode(text))]
            assert vector.tolist() == VECTORS[TEXTS.index(text)].tolist()
            found.append(text)
    return found


def decode(text: str) -> list[bytes]:
    return decode_partial(b"".join(encode_partial("x", "s", "truncate", [text], VECTORS[:1])))[1]


def test_vectors_that_are_there_are_saved_when_the_shard_is_old_enough(tmp_path: Path) -> None:
    output, clock, pending = folder(tmp_path), Clock(), Pending()
    one = writer(output, clock)
    try:
        one.add("wiki-00000", TEXTS, pending)
        pending.arrive(0, 3)
        one.look()
        clock.now += 19
        one.look()
        assert saved(output) == []  # a shard that finishes within 20 s is never written
        pending.vectors[4, 1] = 1  # a row that is half written
        clock.now += 1
        one.look()
        assert saved(output) == [TEXTS[0], TEXTS[3]]
        pending.arrive(4)
        clock.now += 19
        one.look()
        assert saved(output) == [TEXTS[0], TEXTS[3]]
        clock.now += 1
        one.look()
        assert saved(output) == [TEXTS[0], TEXTS[3], TEXTS[4]]
        assert len(output.list(FOLDER)) == 1
        assert count_partial(output, output.list(), [], "space") == 3
        assert count_partial(output, output.list(), ["wiki-00000"], "space") == 0
        assert count_partial(output, output.list(), [], "another") == 0
        assert one.remove("wiki-00000") in output.list(FOLDER)
        assert one.remove("wiki-00000") is None
        pending.arrive(1, 2, 5)
        clock.now += 100
        one.look()
        assert saved(output) == [TEXTS[0], TEXTS[3], TEXTS[4]]
    finally:
        one.close()


def test_a_shard_that_is_forgotten_during_a_look_is_not_saved(tmp_path: Path) -> None:
    class Forgotten(Pending):
        def so_far(self) -> tuple[Vectors, npt.NDArray[np.bool_]]:
            if clock.now > 100:
                one.clear()
            return super().so_far()

    output, clock, pending = folder(tmp_path), Clock(), Forgotten()
    one = writer(output, clock)
    try:
        one.add("wiki-00000", TEXTS, pending)
        pending.arrive(0)
        one.look()
        clock.now += 100
        one.look()
        assert saved(output) == []
    finally:
        one.close()


def test_a_storage_that_fails_costs_nothing_but_the_saving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(OutputFolder):
        def write(self, name: str, chunks: object) -> WrittenFile:
            raise StorageError(f"{name} cannot be written, of which there are {chunks}: the disk is full")

    clock, pending = Clock(), Pending()
    one = writer(Full(str(tmp_path), "run"), clock)
    try:
        one.add("wiki-00000", TEXTS, pending)
        pending.arrive(0)
        one.look()
        clock.now += 60
        one.look()
    finally:
        one.close()
    assert "the vectors of wiki-00000 so far cannot be saved" in caplog.text


def test_a_look_that_lacks_memory_is_not_the_last_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Large(Pending):
        def so_far(self) -> tuple[Vectors, npt.NDArray[np.bool_]]:
            if clock.now < 200:
                raise MemoryError
            return super().so_far()

    output, clock, pending = folder(tmp_path), Clock(), Large()
    one = writer(output, clock)
    try:
        one.add("wiki-00000", TEXTS, pending)
        pending.arrive(0)
        clock.now += 20
        one.look()
        assert "the vectors of wiki-00000 so far cannot be saved: out of memory" in caplog.text
        clock.now += 80
        one.look()
        assert saved(output) == [TEXTS[0]]
    finally:
        one.close()


@pytest.mark.parametrize("at", [0, 5, -40, -1])
def test_a_damaged_file_is_refused(at: int) -> None:
    content = bytearray(b"".join(encode_partial("wiki-00000", "space", "truncate", TEXTS, VECTORS)))
    decode_partial(bytes(content))
    content[at] ^= 1
    with pytest.raises(ValueError, match=r"damaged|header"):
        decode_partial(bytes(content))


@pytest.mark.parametrize(
    "change", [{"documents": -1}, {"dimensions": 0}, {"documents": 1 << 60}, {"documents": "6"}, {"shard": None}]
)
def test_absurd_headers_are_refused(change: dict[str, object]) -> None:
    line = encode_partial("wiki-00000", "space", "truncate", TEXTS, VECTORS)[0]
    fields = dataclasses.asdict(decode_header(line)) | change
    with pytest.raises(ValueError, match="header"):
        decode_header(orjson.dumps(fields) + b"\n")


def test_vectors_that_were_put_down_are_found_by_the_whole_digest_of_their_texts(tmp_path: Path) -> None:
    output = folder(tmp_path)
    content = b"".join(encode_partial("wiki-00000", "space", "truncate", TEXTS[:3], VECTORS[:3]))
    written = output.write(f"{FOLDER}/x", [content])
    _, digests, _ = decode_partial(content)
    file = FormerFile(output.path(written.path), written.bytes, written.crc32c, None, "")
    # The keys are in another order than the vectors: the digests decide.
    index = make_index([(file, keys_of([digests[1], digests[0], digests[2]]))])
    assert index is not None
    found = find_vectors(["unknown", *TEXTS], index, 2)
    assert found.mask.tolist() == [False, False, False, True, False, False, False]
    assert found.vectors[3].tolist() == VECTORS[2].tolist()


def test_a_file_is_used_up_by_the_shard_that_takes_all_of_its_vectors(tmp_path: Path) -> None:
    output = folder(tmp_path)
    written = output.write(f"{FOLDER}/x", encode_partial("wiki-00000", "space", "truncate", TEXTS[:3], VECTORS[:3]))
    file = FormerFile(output.path(written.path), written.bytes, written.crc32c, None, "")
    index = make_index([(file, encode_keys(TEXTS[:3]))])
    assert index is not None
    assert find_vectors([TEXTS[1], "other"], index, 2).used_up == []
    assert find_vectors([*TEXTS[:3], "other"], index, 2).used_up == [file.path]


def test_a_file_that_another_worker_has_used_up_is_no_cause_for_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = folder(tmp_path)
    written = output.write(f"{FOLDER}/x", encode_partial("wiki-00000", "space", "truncate", TEXTS[:3], VECTORS[:3]))
    file = FormerFile(output.path(written.path), written.bytes, written.crc32c, None, "")
    index = make_index([(file, encode_keys(TEXTS[:3]))])
    assert index is not None
    output.delete([written.path])
    found = find_vectors(TEXTS[:3], index, 2)
    assert not found.mask.any()
    assert not found.used_up
    assert not caplog.messages


def test_a_shards_files_go_when_its_receipt_is_written(tmp_path: Path) -> None:
    output = folder(tmp_path)
    for name in ("x", "y"):
        output.write(f"{FOLDER}/{name}", encode_partial("wiki-00000", "space", "truncate", TEXTS, VECTORS))
    shard = dataclasses.replace(embedded_shard(), partial=(f"{FOLDER}/x",))
    write_shard(shard, output, MADE, LAYOUT)
    assert list(output.list(FOLDER)) == [f"{FOLDER}/y"]
