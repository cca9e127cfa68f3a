"""What is done about runs whose vectors are in doubt: see `transforms.doubt`."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.job.ledger import read_receipts
from transforms.doubt import FOLDER, read_doubts
from transforms.output.folder import OutputFolder
from transforms.reuse import partial


class Discarded(NamedTuple):
    """How many receipts were discarded, and why."""

    shards: int
    reason: str


def discard_doubtful(output: OutputFolder, reason: str | None = None) -> Discarded | None:
    """Delete the receipts and the saved vectors of the runs whose vectors are in doubt, and then the notes of it.

    The files that lose their receipt are outputs of unfinished shards from then on.

    Args:
        output: the folder.
        reason: why the vectors of `output.run` are in doubt; None if that is not known otherwise than by its note.

    Returns:
        what was deleted; None if nothing is in doubt.
    """
    notes = output.list(FOLDER)
    doubts = read_doubts(output, notes)
    if reason is not None:
        doubts[output.run] = reason
    if not doubts:
        return None
    receipts = read_receipts(output, output.list(output.receipts))
    doubtful = [output.receipt(receipt.shard) for receipt in receipts if receipt.run in doubts]
    output.delete(doubtful)
    output.delete([name for name in output.list(partial.FOLDER) if partial.run_of(name) in doubts])
    output.delete(notes)  # last, so that an interrupted call is repeated
    return Discarded(len(doubtful), " ".join(dict.fromkeys(doubts.values())))
