"""Doubt: notes in the output folder of runs whose vectors may be wrong, though their replies passed as right.

Receipts that such a run has written do not count: see `pipeline.job.doubt`. Notes stay, because a worker of the run
that nobody waits for any more may go on writing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import orjson

from transforms.output.folder import JOB, OutputFolder
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/doubt"
_logger = logging.getLogger(__name__)


def record_doubt(output: OutputFolder, reason: str) -> None:
    """Leave a note that what this run has written, and will write, is in doubt.

    A runner may try the failed bundle again and the run succeed in the end, or the launcher may be gone by now.
    """
    try:
        output.write(note_of(output.run), [orjson.dumps({"reason": reason})])
    except (StorageError, OSError) as error:  # the failure that is about to end the run says the same
        _logger.warning("that vectors are in doubt cannot be noted in %s: %s", output.root, error)


def note_of(run: str) -> str:
    """Return the name of the note that a run's vectors are in doubt."""
    return f"{FOLDER}/{run}.json"


def read_doubts(output: OutputFolder, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return why the vectors of a run are in doubt, by the run's name.

    Args:
        output: the folder.
        names: in it; None for what is there now.
    """
    notes = [name for name in (output.list(FOLDER) if names is None else names) if name.startswith(f"{FOLDER}/")]
    return {note.removeprefix(f"{FOLDER}/").removesuffix(".json"): _reason(output, note) for note in notes}


def _reason(output: OutputFolder, note: str) -> str:
    try:
        value = orjson.loads(output.read(note) or b"")
    except (orjson.JSONDecodeError, StorageError, OSError):  # that there is a note is enough
        value = None
    reason = value.get("reason") if isinstance(value, dict) else None
    return reason if isinstance(reason, str) else "The endpoint's vectors are in doubt."
