"""The floor with HTTP: the same bare functions on 16 threads, each with its connection of the standard library."""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import urlsplit

from tests.benchmark.contestants import arguments, floor

_HEADERS = {"Content-Type": "application/json"}


class _Client:
    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._mine = threading.local()

    def embed(self, lines: list[bytes]) -> list[bytes]:
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection(self._address)
        self._mine.connection.request("POST", "/v1/embeddings", floor.encode(lines), _HEADERS)
        return floor.decode(lines, self._mine.connection.getresponse().read())


def _in_order(client: _Client, batches: Iterable[list[bytes]], threads: ThreadPoolExecutor) -> Iterator[list[bytes]]:
    waiting: deque[Future[list[bytes]]] = deque()
    for lines in batches:
        waiting.append(threads.submit(client.embed, lines))
        if len(waiting) > 2 * arguments.REQUESTS_IN_FLIGHT:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def main() -> None:
    told = arguments.parse()
    client = _Client(told.url)
    with ThreadPoolExecutor(arguments.REQUESTS_IN_FLIGHT) as threads:
        for path in told.files:
            floor.write(told.output / path.name, _in_order(client, floor.batches(path), threads))


if __name__ == "__main__":
    main()
