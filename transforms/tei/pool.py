"""The threads that send."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from transforms.tei.exchange import Sender
from transforms.tei.scheduler import Dispatcher
from transforms.tei.verifier import Verifier

MOST_THREADS = 64  # more than these only wait for each other


class Pool:
    """As many threads as there can be requests in flight; each takes a task, sends it, and takes the next.

    Args:
        dispatcher: where tasks come from.
        verifier: what is known of the endpoints' model and format.
        sender: what is done with one.
        fail: told of what a sender raises: nothing goes on after that.

    Attributes:
        most_texts: that can be in flight.
    """

    def __init__(
        self, dispatcher: Dispatcher, verifier: Verifier, sender: Sender, fail: Callable[[BaseException], None]
    ) -> None:
        self.dispatcher = dispatcher
        self.verifier = verifier
        self._sender = sender
        self._fail = fail
        requests = sum(math.ceil(each.budget.ceiling / each.most_at_best) for each in dispatcher.endpoints)
        self._threads = [
            # Daemons, so that a request that hangs holds up no interpreter that wants to end.
            threading.Thread(target=self._work, name=f"tei-{number}", daemon=True)
            for number in range(min(requests, MOST_THREADS))
        ]
        most = sum(each.budget.ceiling for each in dispatcher.endpoints)
        self.most_texts = min(most, len(self._threads) * max(each.most_at_best for each in dispatcher.endpoints))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets the threads end after the request that each is at."""
        self.dispatcher.stop()

    def join(self, seconds: float) -> bool:
        """Waits for the threads, together no longer than this; says whether all have ended."""
        deadline = time.monotonic() + seconds
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in others)

    def _work(self) -> None:
        while (assignment := self.dispatcher.take()) is not None:
            try:
                self._sender.carry_out(assignment)
            except BaseException as failure:  # noqa: BLE001  (whoever waits must hear of it, whatever it is)
                self._fail(failure)
