"""One client a process, however many threads and transforms of a runner use it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from transforms.tei.client import TeiClient
from transforms.tei.settings import EndpointSettings

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
