"""What a file holds, as far as its first bytes show: records, or something of a wrong kind that has a remedy."""

from __future__ import annotations

import bz2
import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
from backports import zstd

from transforms.ndjson.decompress import COMPRESSIONS, codec_of, start_zstd
from transforms.ndjson.parse import BOM
from transforms.storage import api as storage
from transforms.storage.base import PARALLEL, FileStat, StorageError

HEAD_BYTES = 8 << 10  # several records of usual size, by one small read
EMPTY_FILE = "an empty file"  # a problem that files which must hold records may have
_PARALLEL = 2 * PARALLEL  # heads at once, as many as stores keep connections: each is a wait of some 60 ms
_BLOCK_BYTES = 1 << 20  # of a compressed file whose first bytes give nothing: codecs such as bzip2 work in blocks
_PARQUET = "Write its rows as NDJSON first, for instance with DuckDB's COPY … (FORMAT json)."
_UNPACK = "Unpack it and give what is in it."
# What a file begins with, what it is then, and what to do.
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch the file with git lfs pull."),
    (b"PAR1", "Parquet", _PARQUET),
    (b"Obj\x01", "Avro", "Write its records as NDJSON first, for instance with avro-tools tojson."),
    (b"ARROW1", "Arrow", "Write its rows as NDJSON first."),
    (b"ORC", "ORC", "Write its rows as NDJSON first."),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed by xz", "Compress it by zstd or gzip instead: xz -dc FILE | zstd > FILE.zst"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "Compress it by zstd or gzip instead: lz4 -dc FILE | zstd > FILE.zst"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed by snappy", "Compress it by zstd or gzip instead."),
    (b"%PDF-", "a PDF document", "Extract its text into NDJSON first."),
    (b"SQLite format 3\x00", "an SQLite database", "Write its rows as NDJSON first."),
)
_ENCODINGS = (  # UTF-32 before UTF-16, whose byte order mark it begins with
    (re.compile(rb"\xff\xfe\x00\x00|[{\[ \n\r]\x00\x00\x00"), "UTF-32LE"),
    (re.compile(rb"\x00\x00\xfe\xff|\x00\x00\x00[{\[ \n\r]"), "UTF-32BE"),
    (re.compile(rb"\xff\xfe|[{\[ \n\r]\x00"), "UTF-16LE"),
    (re.compile(rb"\xfe\xff|\x00[{\[ \n\r]"), "UTF-16BE"),
)


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file looks like.

    Attributes:
        compressed: by a codec that is read here.
        problem: what it holds instead of records, as in "it looks like …"; None if it holds them.
        remedy: a sentence on what to do then.
        records: the objects in its complete first lines, for a look at their fields.
        bytes_per_record: mean length of those lines that are not blank, whatever they hold, with the bytes between
            them; 0 if there is no complete one.
    """

    compressed: bool = False
    problem: str | None = None
    remedy: str = ""
    records: tuple[dict[str, Any], ...] = ()
    bytes_per_record: float = 0


def look_at_all(
    files: Sequence[FileStat], read_beginning: Callable[[str, int], bytes] = storage.read_beginning
) -> list[FileKind]:
    """Look at the first bytes of many files in parallel.

    Args:
        files: that a listing found.
        read_beginning: returns the first bytes of a file, at most so many.

    Returns:
        their kinds, in the same order.

    Raises:
        StorageError: if a file cannot be read, or is gone since it was listed.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(functools.partial(look_at, read_beginning=read_beginning), files))


def look_at(file: FileStat, read_beginning: Callable[[str, int], bytes] = storage.read_beginning) -> FileKind:
    """Fetch a file's first bytes and return its kind; the arguments are those of `look_at_all`."""
    if file.size == 0:
        # Cut off before its first byte, if it should be compressed: reading finds that.
        return FileKind(compressed=file.path.lower().endswith(COMPRESSIONS), problem=EMPTY_FILE)
    head = _read_head(file.path, HEAD_BYTES, read_beginning)
    codec = codec_of(head)
    if codec is None:
        return kind_of(head, whole=len(head) >= file.size)
    unpacked, ended = _unpack(head, codec)
    if not unpacked and len(head) < file.size:
        unpacked, ended = _unpack(_read_head(file.path, _BLOCK_BYTES, read_beginning), codec)
    # A first block that cannot be read says nothing; what is damaged ends its own source when it is read.
    kind = kind_of(unpacked, whole=ended) if unpacked else FileKind()
    return dataclasses.replace(kind, compressed=True)


def _read_head(path: str, count: int, read_beginning: Callable[[str, int], bytes]) -> bytes:
    try:
        return read_beginning(path, count)
    except FileNotFoundError:
        raise StorageError(f"{path} is gone since it was listed. Run again.") from None


def _unpack(stored: bytes, codec: str) -> tuple[bytes, bool]:
    """Return the first decompressed bytes of a file's beginning, and whether the stream ends with them."""
    if codec == "gzip":
        return _unpack_gzip(stored)
    try:
        decompressor = bz2.BZ2Decompressor() if codec == "bzip2" else start_zstd()
        data = decompressor.decompress(stored, HEAD_BYTES)
        while not data and decompressor.eof and decompressor.unused_data:  # frames without data come first
            stored = decompressor.unused_data
            decompressor = bz2.BZ2Decompressor() if codec == "bzip2" else start_zstd()
            data = decompressor.decompress(stored, HEAD_BYTES)
    except (OSError, ValueError, EOFError, MemoryError, zlib.error, zstd.ZstdError):
        return b"", False
    else:
        return data, decompressor.eof and not decompressor.unused_data


def _unpack_gzip(stored: bytes) -> tuple[bytes, bool]:
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(stored, HEAD_BYTES)
    except zlib.error:
        return b"", False
    else:
        return data, stream.eof and not stream.unused_data


def kind_of(head: bytes, whole: bool) -> FileKind:
    """Return the kind of a file from its first, decompressed bytes.

    Args:
        head: the bytes.
        whole: whether they are all that there is; otherwise the last line may be cut off.
    """
    for beginning, encoding in _ENCODINGS:
        if beginning.match(head):
            remedy = f"Convert it: iconv -f {encoding} -t UTF-8 FILE > NEW"
            return FileKind(problem=f"{encoding[:6]} text, not UTF-8", remedy=remedy)
    for magic, problem, remedy in _MAGIC:
        if head.startswith(magic):
            return FileKind(problem=problem, remedy=remedy)
    if head[257:262] == b"ustar":
        return FileKind(problem="a tar archive", remedy=_UNPACK)
    return _kind_of_text(head, whole)


def _kind_of_text(head: bytes, whole: bool) -> FileKind:
    text = head.removeprefix(BOM).strip()
    if not text:
        return FileKind(problem=EMPTY_FILE if whole else None)
    if re.match(rb"<(!doctype|html|head|body)", text, re.IGNORECASE):
        return FileKind(problem="an HTML page", remedy="A download may have ended at a page of errors or of a login.")
    if text.startswith(b"<"):
        return FileKind(problem="XML or HTML", remedy="Write its records as NDJSON first.")
    lines = [line.removeprefix(BOM).strip() for line in head.split(b"\n")]
    complete = [line for line in (lines if whole else lines[:-1]) if line]
    values = [_value_of(line) for line in complete]
    records = tuple(value for value in values if isinstance(value, dict))
    first = values[0] if values else None
    if text.startswith(b"[") and (first is None or (isinstance(first, list) and not records)):
        return FileKind(problem="a JSON array", remedy="Write one object a line: jq -c '.[]' FILE > NEW.ndjson")
    if text.startswith(b"{") and first is None and _begins_with_two_objects(text):
        return FileKind(problem="JSON objects without a newline between them", remedy=_ONE_A_LINE)
    if records:
        size = len(head) if whole else len(head) - len(lines[-1])
        return FileKind(records=records, bytes_per_record=size / len(complete))
    if text.startswith(b"{"):
        # One line that is longer than the head looks like this, too.
        indented = len(complete) > 1 and _is_indented(complete)
        return FileKind(problem="an indented JSON document", remedy=_ONE_A_LINE) if indented else FileKind()
    if not complete and not whole:
        return FileKind(problem="text or binary data, not JSON", remedy=_NOT_JSON)
    problem = "JSON values that are not objects" if first is not None else "text or binary data, not JSON"
    return FileKind(problem=problem, remedy=_NOT_JSON)


_ONE_A_LINE = "Write one object a line: jq -c . FILE > NEW.ndjson"
_NOT_JSON = 'Each line must be a JSON object, such as {"content": "…"}.'


def _value_of(line: bytes) -> Any:
    """Return the JSON value of a line; None if it is none."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:  # NaN, for instance
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _begins_with_two_objects(text: bytes) -> bool:
    decoded = text.decode("utf-8", "replace")
    try:
        value, end = json.JSONDecoder().raw_decode(decoded)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "\n" not in decoded[:end] and decoded[end:].lstrip(" \t\r,").startswith("{")


def _is_indented(lines: Sequence[bytes]) -> bool:
    """Return whether an object's first lines break it where a printer would."""
    return lines[0] == b"{" or lines[0].endswith((b"{", b"[", b",")) or lines[1].startswith((b'"', b"}"))
