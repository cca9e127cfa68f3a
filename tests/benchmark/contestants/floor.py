"""The floor: the same work in a bare loop, in one thread, without HTTP.

`--url` names a file with the endpoint's replies, one after another, each behind its length.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
import pybase64

from tests.benchmark.contestants import arguments

LENGTH = struct.Struct("<Q")
_BLOCK_BYTES = 1 << 20
Exchange = Callable[[bytes], bytes]


def texts_of(lines: list[bytes]) -> list[str]:
    """What is embedded."""
    return [orjson.loads(line)["content"] for line in lines]


def encode(lines: list[bytes]) -> bytes:
    """The request for some lines."""
    return orjson.dumps({"input": texts_of(lines), "encoding_format": "base64"})


def decode(lines: list[bytes], reply: bytes) -> list[bytes]:
    """The lines with the vectors of a reply: these lines are known to end in `"embedding": null}`."""
    rows = [pybase64.b64decode(item["embedding"], validate=True) for item in orjson.loads(reply)["data"]]
    vectors = np.frombuffer(b"".join(rows), dtype="<f4").reshape(len(lines), -1)
    return [
        line[: line.rindex(b"null")] + orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY) + b"}\n"
        for line, vector in zip(lines, vectors, strict=True)
    ]


def batches(path: Path) -> Iterator[list[bytes]]:
    """A file's lines, as many at once as go into a request."""
    with path.open("rb") as file:
        while lines := list(itertools.islice(file, arguments.TEXTS_A_REQUEST)):
            yield lines


def write(path: Path, results: Iterable[list[bytes]]) -> None:
    """Write lines in large blocks."""
    with path.open("wb", buffering=0) as file:
        block: list[bytes] = []
        size = 0
        for lines in results:
            block += lines
            size += sum(map(len, lines))
            if size > _BLOCK_BYTES:
                file.write(b"".join(block))
                block, size = [], 0
        file.write(b"".join(block))


def _next_reply(replies: BinaryIO) -> bytes:
    (size,) = LENGTH.unpack(replies.read(LENGTH.size))
    return replies.read(size)


def _embed(lines: list[bytes], replies: BinaryIO) -> list[bytes]:
    encode(lines)
    return decode(lines, _next_reply(replies))


def main() -> None:
    told = arguments.parse()
    with Path(told.url).open("rb") as replies:
        for path in told.files:
            write(told.output / path.name, map(functools.partial(_embed, replies=replies), batches(path)))


if __name__ == "__main__":
    main()
