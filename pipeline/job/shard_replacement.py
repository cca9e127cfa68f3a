"""Replaces a finished shard's files so that an interruption at any moment can be repaired.

A shard is done if its receipt's sizes are those of its files, so its files and its receipt must change as one. The new
output is staged first, then an *intent* is written: the new receipt, the new dead letters and keys. From then on
everything that is left to do follows from these two files, and doing it twice does no harm:

    existing files                                           the shard counts as     after an interruption
    the staged output                                        done, as before         it is deleted
    the intent too                                           done, as before         the intent is carried out
    the new output in its place; the new dead letters        not done                the intent is carried out
    the new receipt                                          done, as new            the intent is deleted
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import orjson

from transforms.doubt import read_doubts
from transforms.ndjson.lines import chunks_from
from transforms.output.folder import JOB, OutputFolder
from transforms.output.receipts import Receipt, decode_receipt, encode_receipt
from transforms.storage import api as storage
from transforms.storage.api import WrittenFile
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/redrive"
_MAX_INTENT_BYTES = 1 << 30  # it holds a shard's dead letters
_logger = logging.getLogger(__name__)


class _Intent(NamedTuple):
    receipt: Receipt
    letters: bytes
    keys: bytes


def replace_shard(
    output: OutputFolder, new: Receipt, blocks: Iterable[bytes], letters: bytes, keys: Callable[[], bytes]
) -> None:
    """Replace a shard's output, its dead letters, its keys and its receipt.

    Args:
        output: the folder.
        new: the receipt that the shard gets, with its output's name, but for its files' sizes and checksums.
        blocks: the new output; an exception in it leaves everything as it was.
        letters: the new dead-letter file; empty for none.
        keys: returns the new key file, once the blocks have been read.
    """
    if new.output is None:
        raise ValueError(f"the new receipt of {new.shard} names no output")
    staged = output.write(_staged(new.shard), blocks)
    receipt = replace(
        new,
        output=WrittenFile(new.output.path, staged.bytes, staged.crc32c),
        dead_letter_output=WrittenFile.of(output.dead_letters(new.shard), [letters]) if letters else None,
    )
    intent = {
        "receipt": encode_receipt(receipt).decode(),
        "dead_letters": letters.decode(),
        "keys": base64.b64encode(key_file := keys()).decode(),
    }
    output.write(_intent(new.shard), [orjson.dumps(intent)])
    _carry_out(output, _Intent(receipt, letters, key_file))


def finish_replacements(output: OutputFolder, is_shard: Callable[[str], bool]) -> int:
    """Carry out the intents that an interrupted `replace_shard` has left, and delete the rest.

    One of a redrive whose vectors are in doubt is deleted. One that cannot be read, or that does not fit the folder, is
    reported and deleted. Its shard either is whole as before, or its receipt no longer fits, and the next run does it
    again.

    Args:
        output: the folder.
        is_shard: whether a name is that of a shard of the folder's plan.

    Returns:
        how many shards were finished.
    """
    finished, doubts = 0, read_doubts(output)
    files = output.list(FOLDER)
    for name in files:
        if not name.endswith(".json"):
            continue
        try:
            intent = _decode_intent(output, name, is_shard)
        except (ValueError, StorageError) as error:
            _logger.warning(
                "%s cannot be carried out (%s) and is deleted; if its shard is not whole, the next run redoes it",
                f"{output.root}/{name}",
                error,
            )
            continue
        if intent.receipt.run in doubts:
            continue
        if _staged(intent.receipt.shard) in files and _is_progress(output, intent.receipt):
            _carry_out(output, intent)
            finished += 1
    output.delete(output.list(FOLDER))
    return finished


def _decode_intent(output: OutputFolder, name: str, is_shard: Callable[[str], bool]) -> _Intent:
    """Return an intent whose every part fits the others and the folder.

    Raises:
        ValueError: if one does not.
    """
    try:
        values = orjson.loads(output.read(name, _MAX_INTENT_BYTES) or b"")
        receipt = decode_receipt(values["receipt"].encode())
        letters, keys = values["dead_letters"].encode(), base64.b64decode(values["keys"], validate=True)
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise ValueError(f"a part is missing: {error}") from error
    shard = receipt.shard
    if name != _intent(shard) or not is_shard(shard):
        raise ValueError(f"{shard!a} is not a shard of this folder's plan, or has another intent")
    if receipt.dead_letter_output != (WrittenFile.of(output.dead_letters(shard), [letters]) if letters else None):
        raise ValueError("its dead letters are not those of its receipt")
    if output.stat(_staged(shard)) is not None:
        content = _content(output.path(_staged(shard)))
        if receipt.output is None or WrittenFile.of(receipt.output.path, content) != receipt.output:
            raise ValueError("its staged output is not that of its receipt")
    return _Intent(receipt, letters, keys)


def _is_progress(output: OutputFolder, intended: Receipt) -> bool:
    """Return whether a shard does not have what was intended: a run may have embedded it again since."""
    try:
        found = decode_receipt(output.read(output.receipt(intended.shard)) or b"")
    except ValueError:
        return True
    if (found.job, found.source_size, found.source_version) != (
        intended.job,
        intended.source_size,
        intended.source_version,
    ):
        return False
    files = [file for file in (found.output, found.dead_letter_output) if file is not None]
    existing = {file.path: stat for file in files if (stat := output.stat(file.path)) is not None}
    return not found.files_are_there(existing) or found.embedded < intended.embedded


def _carry_out(output: OutputFolder, intent: _Intent) -> None:
    shard = intent.receipt.shard
    if intent.receipt.output is not None:
        output.write(intent.receipt.output.path, _content(output.path(_staged(shard))))
    if intent.letters:
        output.write(output.dead_letters(shard), [intent.letters])
    else:
        _delete(output, output.dead_letters(shard))
    output.write(output.keys(shard), [intent.keys])
    output.write(output.receipt(shard), [encode_receipt(intent.receipt)])
    output.delete([_intent(shard)])
    output.delete([_staged(shard)])
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


def _staged(shard: str) -> str:
    return f"{_stem(shard)}.output"


def _intent(shard: str) -> str:
    return f"{_stem(shard)}.json"


def _stem(shard: str) -> str:
    """Return a name in one folder, which can be removed when it is empty."""
    return f"{FOLDER}/{hashlib.sha256(shard.encode()).hexdigest()[:16]}"
