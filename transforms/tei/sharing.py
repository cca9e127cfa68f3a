"""What all threads and transforms of a process share: one client, and one bound on what waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from transforms.tei.client import PendingEmbeddings, TeiClient
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings

_ENOUGH_MEMORY = 64 << 20  # bytes behind the oldest batch
Batch = TypeVar("Batch")

_lock = threading.Lock()
_clients: dict[EndpointSettings, TeiClient] = {}
_users: dict[TeiClient, int] = {}
_settled_by_closed = 0


def acquire(settings: EndpointSettings, make: Callable[[EndpointSettings], TeiClient] = TeiClient) -> TeiClient:
    """Return the process's client for these settings: one limit of texts in flight for all its threads.

    A client that has failed sends nothing any more, so a bundle that is tried again gets a new one, also while others
    still hold the old one.
    """
    with _lock:
        client = _clients.get(settings)
        if client is None or client.failed:
            client = _clients[settings] = make(settings)
        _users[client] = _users.get(client, 0) + 1
        return client


def release(client: TeiClient) -> None:
    """Give back what `acquire` returned; the last user closes the client."""
    global _settled_by_closed  # the count goes on where a client ends
    with _lock:
        _users[client] -= 1
        if _users[client]:
            return
        del _users[client]
        for settings in [settings for settings, kept in _clients.items() if kept is client]:
            del _clients[settings]
        _settled_by_closed += client.settled
    client.close()


def settled_texts() -> int:
    """Return how many texts got their vector or their rejection in this process so far."""
    with _lock:
        return _settled_by_closed + sum(client.settled for client in _users)


class Backlog:
    """What waits for the endpoint, of all threads of a process together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.documents = self.memory = 0

    def add(self, documents: int, memory: int) -> None:
        """Count a batch; with negative numbers, count it no longer."""
        with self._lock:
            self.documents += documents
            self.memory += memory


# Of the process, as its client is: with a limit for each thread, many threads would hold many times as much.
backlog = Backlog()


@dataclass(frozen=True, slots=True)
class _SubmittedBatch(Generic[Batch]):
    batch: Batch
    pending: PendingEmbeddings
    documents: int
    memory: int


class SubmittedBatches(Generic[Batch]):
    """The batches of one thread that wait for their vectors, oldest first; they use the process's client.

    While the endpoint works on them, the thread goes on to submit more, until enough lies behind the oldest one to keep
    the endpoint busy.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._client = acquire(settings)
        self._batches: deque[_SubmittedBatch[Batch]] = deque()

    def submit(self, batch: Batch, texts: Sequence[str], documents: int, memory: int) -> PendingEmbeddings:
        """Hand a batch's texts to the client.

        Args:
            batch: what comes back with the vectors.
            texts: to be embedded.
            documents: in the batch.
            memory: bytes that the batch takes, about.

        Raises:
            EndpointError: the run must stop.
        """
        pending = self._client.submit(texts)
        self._batches.append(_SubmittedBatch(batch, pending, documents, memory))
        backlog.add(documents, memory)
        return pending

    def take_ready(self) -> Iterator[tuple[Batch, Embeddings]]:
        """Yield the oldest batches: those that are done, and those behind which enough is waiting.

        Enough is twice what may be in flight, or what takes as much memory as a few usual shards; other threads'
        batches count.

        Raises:
            EndpointError: the run must stop.
        """
        while self._batches and (self._batches[0].pending.done() or self._enough_behind_the_oldest()):
            yield self._take_oldest()

    def take_all(self) -> Iterator[tuple[Batch, Embeddings]]:
        """Yield all batches, oldest first, and wait for each.

        Raises:
            EndpointError: the run must stop.
        """
        while self._batches:
            yield self._take_oldest()

    def forget(self) -> None:
        """Drop what a bundle that failed has left."""
        for one in self._batches:
            one.pending.cancel()  # or the bundle's next try would wait behind these texts, and pay for them twice
            backlog.add(-one.documents, -one.memory)
        self._batches.clear()

    def close(self) -> None:
        """Drop what is left, and give the client back. To be called once."""
        self.forget()
        release(self._client)

    def _enough_behind_the_oldest(self) -> bool:
        oldest = self._batches[0]
        documents = backlog.documents - oldest.documents
        return backlog.memory - oldest.memory >= _ENOUGH_MEMORY or documents >= 2 * self._client.max_in_flight

    def _take_oldest(self) -> tuple[Batch, Embeddings]:
        oldest = self._batches.popleft()
        backlog.add(-oldest.documents, -oldest.memory)
        return oldest.batch, oldest.pending.result()
