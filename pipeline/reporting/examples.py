"""A few dead letters of each reason, for people to look at."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from pipeline.reporting.schema import Example
from transforms.elements import DeadLetter, Document
from transforms.ndjson.lines import Line, chunks_from, split_lines
from transforms.ndjson.parse import TextField, parse_line
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt
from transforms.storage import api as storage
from transforms.write_dead_letters import decode_dead_letter

EACH = 3  # examples of a reason: whether they are alike shows
_SHOWN_CHARACTERS = 300  # of a text or a line
_MAX_LETTER_BYTES = 1 << 27  # of a dead letter: its line, escaped, and the reasons beside it


def examples_of(receipts: Iterable[Receipt], output: OutputFolder, text_field: TextField) -> dict[str, list[Example]]:
    """Return the first dead letters of each reason; of the dead-letter files only those are read that have one of them.

    Args:
        receipts: of the shards to look into.
        output: the folder.
        text_field: which field of a line is its text.
    """
    found: dict[str, list[Example]] = defaultdict(list)
    for receipt in receipts:
        wanted = {reason for reason in receipt.reasons if len(found[reason]) < EACH}
        if wanted:
            for letter in _readable(receipt, output):
                reason = letter.reason.value
                if reason in wanted and len(found[reason]) < EACH:
                    found[reason].append(_for_people(letter, text_field))
    return dict(found)


def _readable(receipt: Receipt, output: OutputFolder) -> Iterator[DeadLetter]:
    """Yield a shard's dead letters up to a damaged one, which is for `verify` to report."""
    with contextlib.suppress(ValueError):
        yield from read_dead_letters(receipt, output)


def read_dead_letters(receipt: Receipt, output: OutputFolder) -> Iterator[DeadLetter]:
    """Yield a shard's dead letters, one in memory at a time.

    Raises:
        ValueError: if its file holds something else.
    """
    if receipt.dead_letter_output is None:
        return
    with storage.open_for_reading(output.path(receipt.dead_letter_output.path)) as file:
        for line in split_lines(chunks_from(file), 0, _MAX_LETTER_BYTES):
            yield decode_dead_letter(line.content)


def _for_people(letter: DeadLetter, text_field: TextField) -> Example:
    line = Line(letter.offset, letter.line, len(letter.line))
    record = parse_line(line, letter.source, text_field, "embedding", _MAX_LETTER_BYTES)
    return Example(
        source=letter.source,
        offset=letter.offset,
        stage=letter.stage.value,
        detail=letter.detail,
        http_status=letter.http_status,
        attempts=letter.attempts,
        text=_beginning(record.text) if isinstance(record, Document) else None,
        line=_beginning(letter.line.decode("utf-8", "replace")),
    )


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
