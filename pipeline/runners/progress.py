"""The progress bar: fed by the receipts that appear in the output folder, so that it is the same on every runner."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import TracebackType

from tqdm import tqdm

from pipeline.job.ledger import Part, ReceiptCache, extrapolate
from pipeline.reporting.numbers import count, duration, percent, rate
from pipeline.reporting.timeline import active_seconds
from transforms.elements import Reason, Shard, Source
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt
from transforms.storage.base import StorageError

_INTERVAL_SECONDS = 1.0  # between two looks at the folder, or more: see _PAUSE_A_LOOK
_REDRAW_SECONDS = 0.5  # a person sees that it goes on
_PAUSE_A_LOOK = 20.0  # listing a bucket of many receipts takes seconds, and costs a little each time
# Dead letters of these reasons were in the endpoint's hands; those of other reasons were not sent.
_SENT = {Reason.OVERLONG_TEXT.value, Reason.REJECTED_BY_ENDPOINT.value, Reason.INVALID_VECTOR.value}


class Progress:
    """Shows documents, documents/s and the time left while a run goes on.

    The rate is that of the run's last line: documents that have their vector, by the time since the first text could be
    sent.

    Args:
        output: the folder to watch.
        seen: names of the receipts that were there before.
        work: the items that are left to do, from whose bytes the number of documents to come is estimated.
        visible: whether to show it; None for only where a person watches.
        cache: gets the receipts, for the next reader.
        settled: returns how many texts got their vector or their rejection in this process so far, where the run is in
            this process: they count before their shard has its receipt. None where workers are elsewhere.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        output: OutputFolder,
        seen: set[str],
        work: Sequence[Shard],
        visible: bool | None = None,
        cache: ReceiptCache | None = None,
        settled: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._output = output
        self._cache = cache or ReceiptCache()
        self._seen = set(seen)
        self._bytes_left: dict[Source, int] = defaultdict(int)
        for item in work:
            self._bytes_left[item.source] += item.stored_bytes
        self._settled = settled
        self._settled_before = settled() if settled else 0
        self._clock = clock
        self._looked_at = clock()
        self._started_at: float | None = None  # when the first text could be sent, as far as it is known
        self._receipts: list[Receipt] = []
        self._bar = tqdm(disable=None if visible is None else not visible, bar_format="{desc}")
        self._bar.set_description_str(count(0, "document"))
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
            self._settled = None  # every document has its receipt now
            self.look()
            documents = sum(receipt.records for receipt in self._receipts)
            self._show(documents, documents, active_seconds(self._receipts))
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
        # Before the receipts, so that a text that is counted in one meanwhile is not counted twice.
        settled = self._settled() - self._settled_before if self._settled else 0
        files = self._output.list(self._output.receipts)
        new = {name: file for name, file in files.items() if name not in self._seen}
        receipts = self._cache.read(self._output, new)
        self._seen |= new.keys()
        self._receipts += receipts
        finished = sum(receipt.records for receipt in self._receipts)
        # Texts of shards that have no receipt yet. Those of a shard that had to begin again count twice until the end.
        under_way = max(0, settled - sum(_texts_sent(receipt) for receipt in self._receipts))
        expected = self._expected()
        documents = finished + under_way
        if expected is not None:
            documents = max(finished, min(documents, expected))
        self._show(documents, expected, self._seconds(documents))

    def _expected(self) -> int | None:
        """Return how many records the work has; None as long as that is unknown."""
        by_source: dict[str, list[Receipt]] = defaultdict(list)
        for receipt in self._receipts:
            by_source[receipt.source].append(receipt)
        return extrapolate(
            Part.of(source, size, receipts := by_source[source.path], ended=any(one.last for one in receipts))
            for source, size in self._bytes_left.items()
        )

    def _seconds(self, documents: int) -> float:
        """Return the seconds since the first text could be sent, as far as the looks and the receipts show."""
        now = self._clock()
        if self._started_at is None and documents:
            self._started_at = self._looked_at
        self._looked_at = now
        if self._receipts and self._started_at is not None:
            self._started_at = min(self._started_at, min(receipt.started_at for receipt in self._receipts))
        return 0.0 if self._started_at is None else now - self._started_at

    def _show(self, documents: int, expected: int | None, seconds: float) -> None:
        """Draw the bar, or a line without one as long as nobody knows how many documents there will be."""
        dead_letters = sum(receipt.dead_letters for receipt in self._receipts)
        words = [count(documents, "document")]
        if expected is not None:
            about = "" if documents == expected else "about "
            words = [f"{documents:,} of {about}{count(expected, 'document')}"]
        if documents and seconds > 0:
            words.append(rate((documents - dead_letters) / seconds))
            if expected is not None and documents < expected:
                words.append(f"{duration(seconds * (expected - documents) / documents)} left")
        self._bar.bar_format = "{desc}" if expected is None else _bar_format(documents, expected)
        self._bar.n, self._bar.total = documents, expected
        self._bar.set_description_str(", ".join(words))


class Waiting:
    """A line that shows what a command is doing and for how long; a thread redraws it, so that a wait is seen to go on.

    Args:
        step: the first thing that it does.
        visible: whether to show it; None for only where a person watches.
    """

    def __init__(self, step: str = "", visible: bool | None = None) -> None:
        self._step = step
        self._started = time.monotonic()
        self._bar = tqdm(disable=None if visible is None else not visible, bar_format="{desc}", leave=False)
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._redraw, name="waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()
        self._bar.close()

    def show(self, step: str) -> None:
        """Show another step with the next redraw."""
        self._step = step

    def _redraw(self) -> None:
        while not self._finished.wait(_REDRAW_SECONDS):
            if self._step:
                line = f"{self._step}; {duration(round(time.monotonic() - self._started))}"
                # A line that is wider than the terminal could not be drawn over.
                self._bar.set_description_str(line[: shutil.get_terminal_size().columns - 1])


class CountBar:
    """A bar of things that are counted one after another, with numbers in the same form as a run's.

    Args:
        total: how many there are.
        noun: what they are, in the singular.
        visible: whether to show it; None for only where a person watches.
    """

    def __init__(self, total: int, noun: str, visible: bool | None = None) -> None:
        self._total = total
        self._noun = noun
        self._started = time.monotonic()
        self._bar = tqdm(
            total=total, disable=None if visible is None else not visible, bar_format=_bar_format(0, total)
        )
        self.add(0)

    def __enter__(self) -> CountBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.refresh()
        self._bar.close()

    def add(self, number: int) -> None:
        """Count some more."""
        done, seconds = int(self._bar.n) + number, time.monotonic() - self._started
        words = [f"{done:,} of {count(self._total, self._noun)}"]
        if done and seconds > 0:
            words.append(rate(done / seconds, f"{self._noun}s"))
            if done < self._total:
                words.append(f"{duration(seconds * (self._total - done) / done)} left")
        self._bar.bar_format = _bar_format(done, self._total)
        self._bar.set_description_str(", ".join(words), refresh=not number)
        self._bar.update(number)


def _bar_format(done: int, total: int) -> str:
    """Return tqdm's format of a bar with the share as `percent` gives it, where tqdm itself would round it up."""
    return f"{percent(done / total if total else 1.0):>4}|{{bar}}| {{desc}}"


def _texts_sent(receipt: Receipt) -> int:
    return receipt.sent + sum(number for reason, number in receipt.reasons.items() if reason in _SENT)
