"""What is done about runs whose vectors are in doubt: see `transforms.doubt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.job.ledger import ReceiptCache
from transforms.output.folder import OutputFolder
from transforms.reuse import partial


class Discarded(NamedTuple):
    """How many receipts were discarded, and why."""

    shards: int
    reason: str


def discard_doubtful(output: OutputFolder, doubts: Mapping[str, str], cache: ReceiptCache) -> Discarded:
    """Delete the receipts and the saved vectors of runs whose vectors are in doubt.

    The files that lose their receipt are outputs of unfinished shards from then on.

    Args:
        output: the folder.
        doubts: why they are in doubt, by the run's name.
        cache: of the receipts.
    """
    files = output.list()
    found = [receipt for receipt in cache.read_all(output, files) if receipt.run in doubts]
    output.delete([output.receipt(receipt.shard) for receipt in found])
    output.delete([name for name in files if partial.run_of(name) in doubts])
    return Discarded(len(found), " ".join(dict.fromkeys(doubts[receipt.run] for receipt in found)))
