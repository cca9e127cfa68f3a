"""One thread's connection to one URL: found and made as `requests` would make it, used without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.adapters
import urllib3

from transforms.tei.addresses import is_loopback


class _Adapter(requests.adapters.HTTPAdapter):
    """Hands out what `requests` would send with: three methods that it has for subclasses."""

    def pool_for(
        self, request: requests.PreparedRequest, found: Mapping[str, Any]
    ) -> tuple[urllib3.HTTPConnectionPool, str]:
        """The connection pool for a request under the environment's settings, and what to ask it for."""
        pool = self.get_connection_with_tls_context(request, found["verify"], found["proxies"], found["cert"])
        assert isinstance(pool, urllib3.HTTPConnectionPool)
        self.cert_verify(  # type: ignore[no-untyped-call]  # requests declares none for it
            pool, request.url, found["verify"], found["cert"]
        )
        return pool, self.request_url(request, found["proxies"])


class Line:
    """One thread's way to one URL. `requests` finds proxies and the CA bundle in the environment, and no credentials.

    Args:
        url: where requests go.
        headers: of each; ASCII.

    Attributes:
        proxy: host and port of the proxy in between; None for none.
        connection: urllib3's; None where there is none.
        used: whether the connection has carried a reply.
        dialled: whether there has been a connection.
        renewed_at: when the present one was made, if that took another's place (`time.monotonic`).

    Raises:
        requests.RequestException, OSError, ValueError: the URL or the environment's settings cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        with requests.Session() as session:
            request = requests.Request("POST", url).prepare()
            found = session.merge_environment_settings(url, {}, stream=True, verify=None, cert=None)
            if is_loopback(url):  # no proxy can reach this machine's own address
                found["proxies"] = {}
            self._pool, target = _Adapter(pool_connections=1, pool_maxsize=1).pool_for(request, found)
        # A proxy is asked for whole URLs of plain http; for others it opens a tunnel, and sees nothing of them.
        self._tunnels = self._pool.proxy is not None and target.startswith("/")
        if self._pool.proxy is not None and not self._tunnels:
            headers = {**headers, **self._pool.proxy_headers}
        self.proxy = None if self._pool.proxy is None else f"{self._pool.proxy.host}:{self._pool.proxy.port}"
        self._head = _head(target, {"Host": urlsplit(str(request.url)).netloc, **headers})
        self.connection: Any = None
        self.used = self.dialled = False
        self.renewed_at: float | None = None

    def __del__(self) -> None:
        """Hangs up: who forgets a line, or ends the thread that has it, leaves no socket open."""
        self.hang_up()

    def request(self, method: str, body: bytes | None) -> bytes:
        """A whole request, to be sent at once: a server should not wake up for its headers alone."""
        if body is None:
            return b"%b %b\r\n" % (method.encode("ascii"), self._head)
        return b"%b %bContent-Length: %d\r\n\r\n%b" % (method.encode("ascii"), self._head, len(body), body)

    def has_ended(self) -> bool:
        """Whether there is no connection that could carry a request.

        One on which something has come unasked cannot: it would be taken for the next request's reply.
        """
        return self.connection is None or not self.connection.is_connected

    def dial(self, timeout: float) -> None:
        """Makes a connection, through the proxy where there is one.

        Args:
            timeout: seconds, for each step of it.

        Raises:
            urllib3.exceptions.HTTPError, OSError, ValueError: there is none.
        """
        # The pool makes connections and keeps none: its `urlopen` takes as long again as the exchange.
        self.hang_up()
        connection: Any = self._pool._new_conn()
        connection.timeout = timeout
        try:
            if self._tunnels:
                self._pool._prepare_proxy(connection)
            else:
                connection.connect()
        except BaseException:
            connection.close()
            raise
        self.connection = connection

    def hang_up(self) -> None:
        """Ends the connection, if there is one."""
        connection, self.connection, self.used = getattr(self, "connection", None), None, False
        if connection is not None:
            connection.close()


def _head(target: str, headers: Mapping[str, str]) -> bytes:
    """What follows a request's method, but for its end."""
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the header {name} holds characters that cannot be sent")
    lines = [f"{target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
