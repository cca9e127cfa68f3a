"""Vectors in doubt: what a run wrote before it found that replies which passed as right may have held wrong vectors."""

from __future__ import annotations

import logging
from typing import NamedTuple

import orjson

from transforms.output.folder import JOB, OutputFolder
from transforms.reuse import partial
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/doubt"
_logger = logging.getLogger(__name__)


class Discarded(NamedTuple):
    """How many receipts were discarded, and why."""

    shards: int
    reason: str


def record_doubt(output: OutputFolder, reason: str) -> None:
    """Leave a note that the vectors written since the run began are in doubt.

    A runner may try the failed bundle again and the run succeed in the end, or the launcher may be gone by now.
    """
    try:
        output.write(f"{FOLDER}/{output.run}.json", [orjson.dumps({"reason": reason})])
    except (StorageError, OSError) as error:  # the failure that is about to end the run says the same
        _logger.warning("that vectors are in doubt cannot be noted in %s: %s", output.root, error)


def discard_doubtful(output: OutputFolder, reason: str | None = None) -> Discarded | None:
    """Delete the receipts and the saved vectors that were written since the last run began, if they are in doubt.

    The files that lose their receipt are outputs of unfinished shards from then on.

    Args:
        output: the folder.
        reason: why they are in doubt; None for what `record_doubt` has noted.

    Returns:
        what was deleted; None if nothing is in doubt.
    """
    notes = sorted(name for name in output.list(FOLDER) if name.startswith(f"{FOLDER}/"))
    if reason is None and notes:
        reason = _reason(output.read(notes[0]))
    if reason is None:
        return None
    files = output.list()
    # By the storage's own clock: a run writes the plan before its workers start.
    since = files[output.plan].mtime if output.plan in files else 0.0
    written = [name for name, file in files.items() if file.mtime >= since]
    receipts = [name for name in written if name.startswith(f"{output.receipts}/")]
    output.delete([*receipts, *(name for name in written if name.startswith(f"{partial.FOLDER}/"))])
    output.delete(notes)  # last, so that an interrupted call is repeated
    return Discarded(len(receipts), reason)


def _reason(note: bytes | None) -> str:
    try:
        value = orjson.loads(note or b"")
    except orjson.JSONDecodeError:
        value = None
    reason = value.get("reason") if isinstance(value, dict) else None
    return reason if isinstance(reason, str) else "The endpoint's vectors are in doubt."
