"""Work that the processor does, in one process or several, with a bar where a person watches."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.errors import PipelineFailed
from pipeline.processors import usable_processors

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_PROCESSES = 128 << 20  # bytes: one process reads less while another one starts


def processes_for(chosen: int | None, size: int) -> int:
    """Return how many processes to read so many bytes with; `chosen`, if that is not None."""
    if chosen is not None:
        return chosen
    return usable_processors() if size >= _WORTH_PROCESSES else 1


def run_parallel(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[tuple[int, Result]]:
    """Yield the result of every item with the item's index, in the order in which they are finished.

    Args:
        work: a module's function.
        items: can be pickled; the results as well.
        processes: how many; with one, the work is done in this process.

    Raises:
        PipelineFailed: if a process was killed.
    """
    if processes <= 1 or len(items) <= 1:
        yield from enumerate(map(work, items))
        return
    # Not forked: a bucket's client and its connections would be shared.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(processes, len(items)), context, _start)
    try:
        futures = {pool.submit(work, item): index for index, item in enumerate(items)}
        for future in as_completed(list(futures)):
            yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise PipelineFailed("a process was killed, perhaps for lack of memory. Give --processes 1.") from error
    except BaseException:
        # After an error, or Ctrl-C, nobody waits for the results of the others.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    """Set up a worker process: Ctrl-C reaches its parent alone, and it ends when its parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # libraries that warn when they are imported have done so in the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
