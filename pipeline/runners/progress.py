"""The progress bar: fed by the receipts that appear in the output folder, so that it is the same on every runner."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterable
from types import TracebackType

from tqdm import tqdm

from pipeline.job.ledger import ReceiptCache
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt
from transforms.storage.base import StorageError

_INTERVAL_SECONDS = 1.0
_PAUSE_A_LOOK = 20.0  # listing a bucket of many receipts takes seconds, and costs a little each time


class Progress:
    """Shows documents, documents/s and the time left while a run goes on.

    Args:
        output: the folder to watch.
        seen: names of the receipts that were there before.
        bytes_left: stored bytes of the shards to come, from which the number of documents to come is estimated.
        visible: whether to show it; None for only where a person watches.
        cache: gets the receipts, for whoever reads them next.
        compressed: paths of the compressed sources.
    """

    def __init__(
        self,
        output: OutputFolder,
        seen: set[str],
        bytes_left: int,
        visible: bool | None = None,
        cache: ReceiptCache | None = None,
        compressed: Collection[str] = (),
    ) -> None:
        self._output = output
        self._cache = cache or ReceiptCache()
        self._seen = set(seen)
        self._bytes_left = bytes_left
        self._compressed = compressed
        self._receipts: list[Receipt] = []
        self._bar = tqdm(unit=" documents", disable=None if visible is None else not visible, smoothing=0.1)
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()
        if kind is None:
            self.look()
            self._bar.total = self._bar.n
        self._bar.close()

    def _watch(self) -> None:
        pause = _INTERVAL_SECONDS
        while not self._finished.wait(pause):
            started = time.monotonic()
            self.look()
            pause = max(_INTERVAL_SECONDS, _PAUSE_A_LOOK * (time.monotonic() - started))

    def look(self) -> None:
        """Count what is new; where the storage fails, the next look does."""
        with contextlib.suppress(StorageError, OSError):
            self._count()

    def _count(self) -> None:
        files = self._output.list(self._output.receipts)
        new = {name: file for name, file in files.items() if name not in self._seen}
        receipts = self._cache.read(self._output, new)
        self._seen |= new.keys()
        self._receipts += receipts
        documents = sum(receipt.records for receipt in self._receipts)
        expected = records_expected(self._receipts, self._bytes_left, self._compressed)
        if expected is not None:
            self._bar.total = max(expected, documents)
        self._bar.update(documents - self._bar.n)


def records_expected(receipts: Iterable[Receipt], size: int, compressed: Collection[str]) -> int | None:
    """Return how many records so many stored bytes hold, by the shards that are finished; None where none tells.

    A shard of a compressed source is a range of decompressed bytes, and how many stored bytes that takes is known only
    when the source has been read to its end. So its records count from then on, with all its bytes.
    """
    receipts = list(receipts)
    ended = {receipt.source for receipt in receipts if receipt.last}
    counted = [receipt for receipt in receipts if receipt.source not in compressed or receipt.source in ended]
    done = sum(_stored_bytes(receipt, receipt.source in compressed) for receipt in counted)
    return round(sum(receipt.records for receipt in counted) * max(1.0, size / done)) if done else None


def _stored_bytes(receipt: Receipt, compressed: bool) -> int:
    """Return how many stored bytes a shard stands for; of a compressed source, the last shard for all."""
    if compressed or receipt.end is None:
        return receipt.source_size if receipt.last else 0
    return min(receipt.end, receipt.source_size) - receipt.start
