"""Replaces a finished shard's files so that an interruption at any moment can be made good.

A shard is done if its receipt's sizes are those of its files, so its files and its receipt must change as one. The new
output is written aside first, then a *promise*: the new receipt and the new dead letters. From then on everything
that is left to do follows from what lies there, and doing it twice does no harm:

    what lies there                                          the shard counts as     after an interruption
    the new output, aside                                    done, as it was         it is forgotten
    the promise too                                          done, as it was         the promise is kept
    the new output in its place; the new dead letters        not done                the promise is kept
    the new receipt                                          done, as it is now      the promise is forgotten
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import orjson

from transforms.ndjson.lines import chunks_from
from transforms.output.folder import JOB, OutputFolder
from transforms.output.receipts import Receipt, decode_receipt, encode_receipt
from transforms.storage import api as storage
from transforms.storage.api import Crc32c, WrittenFile

FOLDER = f"{JOB}/redrive"


def replace_shard(output: OutputFolder, new: Receipt, blocks: Iterable[bytes], letters: bytes) -> None:
    """Replace a shard's output, its dead letters and its receipt.

    Args:
        output: the folder.
        new: the receipt that the shard gets, but for its files' sizes and checksums.
        blocks: the new output; an exception in it leaves everything as it was.
        letters: the new dead-letter file; empty for none.
    """
    aside = output.write(_aside(new.shard), blocks)
    crc = Crc32c()
    crc.update(letters)
    receipt = dataclasses.replace(
        new,
        output=WrittenFile(output.embedded(new.shard), aside.bytes, aside.crc32c),
        dead_letter_output=WrittenFile(output.dead_letters(new.shard), len(letters), crc.base64()) if letters else None,
    )
    promise = {"receipt": encode_receipt(receipt).decode(), "dead_letters": letters.decode()}
    output.write(_promise(new.shard), [orjson.dumps(promise)])
    _keep(output, receipt, letters)


def keep_promises(output: OutputFolder) -> int:
    """Finish what an interrupted `replace_shard` had promised, and forget the rest.

    Returns:
        how many shards were finished.
    """
    kept = 0
    files = output.list(FOLDER)
    for name in files:
        if name.endswith(".json"):
            promise = orjson.loads(output.read(name) or b"")
            receipt = decode_receipt(promise["receipt"].encode())
            if _aside(receipt.shard) in files and _is_progress(output, receipt):
                _keep(output, receipt, promise["dead_letters"].encode())
                kept += 1
    output.delete(output.list(FOLDER))
    return kept


def _is_progress(output: OutputFolder, promised: Receipt) -> bool:
    """Whether a shard does not have what it was promised: a run may have embedded it again since."""
    try:
        found = decode_receipt(output.read(output.receipt(promised.shard)) or b"")
    except ValueError:
        return True
    if (found.job, found.source_size, found.source_version) != (
        promised.job,
        promised.source_size,
        promised.source_version,
    ):
        return False
    files = [file for file in (found.output, found.dead_letter_output) if file is not None]
    there = {file.path: stat for file in files if (stat := output.stat(file.path)) is not None}
    return not found.files_are_there(there) or found.embedded < promised.embedded


def _keep(output: OutputFolder, receipt: Receipt, letters: bytes) -> None:
    output.write(output.embedded(receipt.shard), _content(output.path(_aside(receipt.shard))))
    if letters:
        output.write(output.dead_letters(receipt.shard), [letters])
    else:
        _delete(output, output.dead_letters(receipt.shard))
    output.write(output.receipt(receipt.shard), [encode_receipt(receipt)])
    output.delete([_promise(receipt.shard)])
    output.delete([_aside(receipt.shard)])
    storage.delete_empty_folder(output.path(FOLDER))


def _delete(output: OutputFolder, name: str) -> None:
    """Delete a file, and the folders that are empty without it."""
    output.delete([name])
    while "/" in name:
        name = name.rpartition("/")[0]
        storage.delete_empty_folder(output.path(name))


def _content(path: str) -> Iterator[bytes]:
    with storage.open_for_reading(path) as file:
        yield from chunks_from(file)


def _aside(shard: str) -> str:
    return f"{_stem(shard)}.ndjson"


def _promise(shard: str) -> str:
    return f"{_stem(shard)}.json"


def _stem(shard: str) -> str:
    """Return a name in one folder, which can be removed when it is empty."""
    return f"{FOLDER}/{hashlib.sha256(shard.encode()).hexdigest()[:16]}"
