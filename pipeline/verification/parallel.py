"""Work that the processor does, spread over processes, with a bar where a person watches."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.errors import PipelineFailed
from pipeline.processors import usable_processors

Item = TypeVar("Item")
Result = TypeVar("Result")
Done = Callable[[int], None]

_LOOK_SECONDS = 0.5
_WORTH_PROCESSES = 128 << 20  # bytes: less is read while a process starts
_STOP = -1

_count: Any = None  # in a process of its own: how much all of them have done, or _STOP


def processes_for(chosen: int | None, size: int) -> int:
    """Return how many processes it takes to read so many bytes; `chosen`, if that is not None."""
    if chosen is not None:
        return chosen
    return usable_processors() if size >= _WORTH_PROCESSES else 1


class _Stopped(Exception):
    """Nobody waits for the result any more."""


def spread(
    work: Callable[[Item, Done], Result], items: Sequence[Item], processes: int, at_once: int, total: int, unit: str
) -> list[Result]:
    """Return what came of every item, in the items' order.

    Args:
        work: a module's function of an item, and of a function to be told how much is done, several times a second:
            then the bar moves, and Ctrl-C ends the work.
        items: can be pickled; the results as well.
        processes: how many; with one, the work is done in this process.
        at_once: items that a process works on at once: more than one where it mostly waits.
        total: of what `work` tells.
        unit: of that.

    Raises:
        PipelineFailed: if a process was killed.
    """
    groups = list(_groups(items, at_once))
    with tqdm(total=total, unit=unit, unit_scale=True, disable=None) as bar:
        if processes > 1 and len(groups) > 1:
            return _in_processes(work, groups, min(processes, len(groups)), bar)
        lock = threading.Lock()

        def done(count: int) -> None:
            with lock:
                bar.update(count)

        return [result for group in groups for result in _work_on(work, group, done)]


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while group := list(itertools.islice(rest, size)):
        yield group


def _work_on(work: Callable[[Item, Done], Result], group: Sequence[Item], done: Done) -> list[Result]:
    if len(group) == 1:
        return [work(group[0], done)]
    stopped = threading.Event()

    def tell(count: int) -> None:
        if stopped.is_set():
            raise _Stopped
        done(count)

    with ThreadPoolExecutor(len(group)) as threads:
        try:
            futures = [threads.submit(work, item, tell) for item in group]
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()  # after an error, or Ctrl-C, the others need not come to their ends
    for future in finished:
        future.result()
    return [future.result() for future in futures]


def _in_processes(
    work: Callable[[Item, Done], Result], groups: Sequence[Sequence[Item]], processes: int, bar: Any
) -> list[Result]:
    # Not forked: a bucket's client and its connections would be shared.
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0)
    with ProcessPoolExecutor(processes, context, _start, (count,)) as pool:
        try:
            futures = [pool.submit(_work_in_process, work, group) for group in groups]
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, _LOOK_SECONDS, FIRST_EXCEPTION)
                bar.update(count.value - bar.n)
                for future in finished:
                    future.result()
            return [result for future in futures for result in future.result()]
        except BrokenProcessPool as error:
            raise PipelineFailed("a process was killed, perhaps for want of memory. Give --processes 1.") from error
        finally:
            count.value = _STOP
            pool.shutdown(wait=False, cancel_futures=True)


def _start(count: Any) -> None:
    """Set up a process: what ends it is its parent, by a word or by its own end."""
    global _count  # what a process is given when it starts has no other place
    _count = count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # what libraries say of themselves when they are imported
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_in_process(work: Callable[[Item, Done], Result], group: Sequence[Item]) -> list[Result]:
    with contextlib.suppress(_Stopped):
        return _work_on(work, group, _tell)
    return []


def _tell(done: int) -> None:
    with _count.get_lock():
        if _count.value == _STOP:
            raise _Stopped
        _count.value += done
