from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from backports import zstd

from transforms.ndjson.decompress import COMPRESSIONS, DamagedSource, decompressed_chunks, window_bytes
from transforms.ndjson.lines import CHUNK_BYTES


def _zst(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": _zst}
FIRST, SECOND = b'{"content":"one"}\n' * 20, b"".join(b"%d\n" % n for n in range(100))

all_codecs = pytest.mark.parametrize("ending", COMPRESS)


def read(stored: bytes, ending: str) -> tuple[bytes, DamagedSource | None]:
    """What could be read, and what ended it."""
    data = bytearray()
    try:
        for chunk in decompressed_chunks(io.BytesIO(stored), f"/in/wiki{ending}", len(stored)):
            assert 0 < len(chunk) <= CHUNK_BYTES
            data += chunk
    except DamagedSource as damage:
        return bytes(data), damage
    return bytes(data), None


def test_there_is_a_codec_for_every_ending() -> None:
    assert tuple(COMPRESS) == COMPRESSIONS


@all_codecs
@pytest.mark.parametrize("parts", [[b""], [FIRST], [FIRST, SECOND], [b"", FIRST, b"", SECOND, b""]])
def test_members_one_behind_the_other_are_one_stream(ending: str, parts: list[bytes]) -> None:
    stored = b"".join(map(COMPRESS[ending], parts))
    assert read(stored, ending) == (b"".join(parts), None)


@all_codecs
def test_more_than_one_chunk_comes_whole(ending: str) -> None:
    data = random.Random(1).randbytes(CHUNK_BYTES + 7)
    assert read(COMPRESS[ending](data) + COMPRESS[ending](FIRST), ending) == (data + FIRST, None)


@all_codecs
def test_a_file_cut_at_any_byte_is_never_a_shorter_file(ending: str) -> None:
    first = COMPRESS[ending](FIRST)
    stored = first + COMPRESS[ending](SECOND)
    for length in range(len(stored)):
        data, damage = read(stored[:length], ending)
        assert (FIRST + SECOND).startswith(data)
        if length == len(first):  # nothing in the file says that there was more
            assert (data, damage) == (FIRST, None)
        else:
            assert damage is not None, length
            assert length < len(first) or data.startswith(FIRST)


@all_codecs
def test_a_flipped_bit_is_noticed_or_harmless(ending: str) -> None:
    stored = COMPRESS[ending](FIRST) + COMPRESS[ending](SECOND)
    noticed = 0
    for position in range(len(stored)):
        for bit in range(8):
            flipped = bytearray(stored)
            flipped[position] ^= 1 << bit
            data, damage = read(bytes(flipped), ending)
            noticed += damage is not None
            assert damage is not None or data == FIRST + SECOND, (position, bit)
    assert noticed > 0.9 * 8 * (len(stored) - 20)  # a .gz file's header holds bytes that mean nothing


@all_codecs
def test_what_stands_before_the_damage_is_read(ending: str) -> None:
    good = random.Random(2).randbytes(CHUNK_BYTES + 7)
    stored = COMPRESS[ending](good) + COMPRESS[ending](good)[:-1000]
    data, damage = read(stored, ending)
    assert data.startswith(good)
    assert (good + good).startswith(data)
    message = str(damage)
    assert f"/in/wiki{ending} is truncated or corrupt" in message
    assert f"{len(data)} decompressed bytes could be read" in message
    assert f"of {len(stored)} in the file" in message


@all_codecs
@pytest.mark.parametrize("stored", [b"", b"no such thing\n" * 9, bytes(100)])
def test_what_is_not_compressed_at_all_is_damaged(ending: str, stored: bytes) -> None:
    data, damage = read(stored, ending)
    assert (data, damage is None) == (b"", False)


@all_codecs
def test_rubbish_behind_the_stream_is_damage(ending: str) -> None:
    data, damage = read(COMPRESS[ending](FIRST) + b"rubbish", ending)
    assert (data, damage is None) == (FIRST, False)


@all_codecs
def test_a_small_file_that_grows_a_thousandfold_stays_small_in_memory(ending: str) -> None:
    expanded = 48 << 20
    stored = COMPRESS[ending](bytes(expanded))
    assert len(stored) * 900 < expanded
    tracemalloc.start()
    try:
        chunks = decompressed_chunks(io.BytesIO(stored), f"wiki{ending}", len(stored))
        assert sum(map(len, chunks)) == expanded
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


_READ_ALL = """
import hashlib, os, resource, sys
from transforms.ndjson.decompress import decompressed_chunks
digest, path = hashlib.sha256(), sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open(path, "rb") as file:
    for chunk in decompressed_chunks(file, path, os.path.getsize(path)):
        digest.update(chunk)
print(digest.hexdigest(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count a process's memory in other units")
@pytest.mark.parametrize("window_log", [28, pytest.param(31, marks=pytest.mark.slow)])
def test_matches_far_back_in_a_long_window_are_read_in_the_windows_memory(tmp_path: Path, window_log: int) -> None:
    # The same lines at both ends of a window, and between them what compresses to nothing: an encoder that finds the
    # first ones stores them once.
    lines = b"".join(b'{"content":"%s"}\n' % random.Random(n).randbytes(40).hex().encode() for n in range(20_000))
    blank = b" " * (CHUNK_BYTES - 1) + b"\n"
    blanks = ((1 << window_log) - 2 * len(lines)) // len(blank)
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log, enable_ldm=True)
    digest, path = hashlib.sha256(), tmp_path / "far.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as writer:
        for part in (lines, *[blank] * blanks, lines):
            writer.write(part)
            digest.update(part)
    once = len(zstandard.ZstdCompressor(level=1).compress(lines))
    assert once < path.stat().st_size < 1.5 * once
    assert window_bytes(path.read_bytes()[:18]) == 1 << window_log

    program = [sys.executable, "-c", _READ_ALL, str(path)]
    found, kibibytes = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
    assert found == digest.hexdigest()
    assert int(kibibytes) << 10 < (1 << window_log) + (32 << 20)


_SMALL_MEMORY = """
import io, resource, sys
from transforms.ndjson.decompress import DamagedSource, decompressed_chunks
stored = bytes.fromhex(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    list(decompressed_chunks(io.BytesIO(stored), "/in/a.zst", len(stored)))
except DamagedSource as damage:
    print(damage)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's memory so")
@pytest.mark.parametrize("before", [b"", _zst(FIRST), b"\x50\x2a\x4d\x18\x04\0\0\0skip"])
def test_a_window_beyond_the_memory_is_an_error_that_gives_its_size(before: bytes) -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.compression_level: 1}
    compressor = zstd.ZstdCompressor(options=options)
    stored = bytearray(compressor.compress(FIRST) + compressor.flush())
    assert stored[5] == (28 - 10) << 3
    stored[5] = (31 - 10) << 3  # the largest window that there is
    program = [sys.executable, "-c", _SMALL_MEMORY, (before + stored).hex()]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert "/in/a.zst cannot be decompressed in the memory that is left: its window alone takes 2048 MiB." in printed
    assert "compress the file without --long" in printed
