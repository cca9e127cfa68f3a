"""One client a process, however many threads and transforms of a runner use it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from transforms.tei.client import TeiClient
from transforms.tei.settings import EndpointSettings

_lock = threading.Lock()
_clients: dict[EndpointSettings, TeiClient] = {}
_users: dict[EndpointSettings, int] = {}


def acquire(settings: EndpointSettings, connect: Callable[[EndpointSettings], TeiClient] = TeiClient) -> TeiClient:
    """Return the process's client for these settings: one pool and one in-flight budget for all its threads."""
    with _lock:
        if settings not in _clients:
            _clients[settings] = connect(settings)
        _users[settings] = _users.get(settings, 0) + 1
        return _clients[settings]


def release(settings: EndpointSettings) -> None:
    """Give back what `acquire` returned; the last one to do so closes the client."""
    with _lock:
        _users[settings] -= 1
        if _users[settings]:
            return
        del _users[settings]
        client = _clients.pop(settings)
    client.close()
