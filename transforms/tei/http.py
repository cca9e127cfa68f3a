"""One HTTP exchange: a request's body goes out, a whole reply or the reason for its absence comes back."""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import requests
import requests.adapters
import urllib3

from transforms.tei.errors import EndpointRefused

CONNECT_TIMEOUT = 10.0  # seconds; a host that does not even accept is better asked again than waited for
HEADERS = {
    "Accept-Encoding": "identity",  # vectors hardly compress, and unpacking them costs more than reading them
    "Content-Type": "application/json",
    "User-Agent": "tayyar",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. `seconds` is how long it took, `resent` how often a stale connection made it start again."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0
    resent: int = 0


class NoReply(Exception):
    """No whole reply came: refused, reset, cut off or too late. The message says which; `resent` is a reply's."""

    resent = 0


class Transport(Protocol):
    """What carries requests. Every method may be called from several threads at once."""

    def get(self, url: str) -> Reply:
        """Fetches."""

    def post(self, url: str, body: bytes) -> Reply:
        """Sends a JSON body."""

    def close(self) -> None:
        """Ends what is under way."""


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


@dataclass(slots=True)
class _Line:
    """One thread's connection to one URL; `used` once it has carried a reply."""

    adapter: _Adapter  # the pool lives as long as it
    pool: urllib3.HTTPConnectionPool
    target: str
    used: bool = False


class HttpTransport:
    """Exchanges over HTTP, on one connection a thread and URL.

    `requests` finds proxies and the CA bundle in the environment; credentials never come from there (a netrc file is
    not read). The exchange itself is left to its urllib3, which costs half as much. Redirects are not followed: a token
    goes to the host that it was meant for, or nowhere.
    """

    def __init__(
        self,
        token: str | None,
        timeout: float,
        extra_headers: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._headers = {**HEADERS, **extra_headers}
        self._secret = token.encode() if token else None
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout)
        self._clock = clock
        self._lines = threading.local()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        """Names the class alone: the headers hold the token."""
        return "HttpTransport()"

    def __reduce__(self) -> str:
        """Refuses: a pickle would hold the token."""
        raise TypeError("a transport belongs to its process")

    def get(self, url: str) -> Reply:
        """Fetches.

        Raises:
            NoReply: no whole reply came.
            EndpointRefused: none can come.
        """
        return self._exchange("GET", url, None)

    def post(self, url: str, body: bytes) -> Reply:
        """Sends a JSON body; raises as `get` does."""
        return self._exchange("POST", url, body)

    def close(self) -> None:
        """Hangs up, also where a reply is still waited for."""
        self._closed = True
        for connection in list(self._connections):
            sever(connection)

    def _exchange(self, method: str, url: str, body: bytes | None) -> Reply:
        line = self._line(url)
        started = self._clock()
        resent = 0
        try:
            try:
                response = self._send(line, method, body)
            except NoReply as error:
                if not (line.used and _is_disconnect(error)):
                    raise
                # The server may have closed an idle connection just as this went out: that says nothing about now.
                resent = 1
                response = self._send(line, method, body)
            content = self._read(response)
        except NoReply as error:
            line.used, error.resent = False, resent
            raise
        line.used = True
        return Reply(response.status, response.headers, content, self._clock() - started, resent)

    def _send(self, line: _Line, method: str, body: bytes | None) -> urllib3.BaseHTTPResponse:
        if self._closed:
            raise NoReply("the client was closed")
        try:
            return line.pool.urlopen(
                method,
                line.target,
                body,
                self._headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._no_reply(error) from error

    def _line(self, url: str) -> _Line:
        lines: dict[str, _Line] = vars(self._lines)
        line = lines.get(url)
        if line is None:
            line = lines[url] = self._open(url)
        return line

    def _open(self, url: str) -> _Line:
        with requests.Session() as session:
            try:
                request = requests.Request("POST", url).prepare()
                found = session.merge_environment_settings(url, {}, stream=True, verify=None, cert=None)
                adapter = _Adapter(pool_connections=1, pool_maxsize=1)
                pool, target = adapter.pool_for(request, found)
            except (requests.RequestException, OSError, ValueError) as error:
                raise EndpointRefused(f"{url} cannot be asked: {_root(error)}") from error
        self._watch(pool)
        return _Line(adapter, pool, target)

    def _watch(self, pool: urllib3.HTTPConnectionPool) -> None:
        """Remembers the pool's connections while they live, so that `close` can hang up."""
        make = pool.ConnectionCls

        def connect(*args: Any, **options: Any) -> Any:
            connection = make(*args, **options)
            self._connections.add(connection)
            return connection

        pool.ConnectionCls = connect  # type: ignore[assignment]  # urllib3 calls it, and asks no more of it

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        try:
            content = response.read(decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NoReply(f"the reply broke off: {_root(error)}") from error
        if response.status >= 300 and self._secret:
            content = content.replace(self._secret, b"[token]")  # an error page may show what was sent
        return content

    def _no_reply(self, error: Exception) -> Exception:
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            return NoReply(f"no reply within {self._timeout.read_timeout:g} s")
        root = _root(error)
        if "CERTIFICATE_VERIFY_FAILED" in root:
            return EndpointRefused(
                f"the endpoint's certificate cannot be trusted ({root}): REQUESTS_CA_BUNDLE names yours"
            )
        if isinstance(error, ValueError):  # how urllib3 marks a URL that it cannot use
            return EndpointRefused(f"the request cannot be made: {type(error).__name__}")
        return NoReply(root)


def sever(connection: Any) -> None:
    """Ends a connection under a thread that reads from it."""
    sock = connection.sock
    if sock is None:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended already


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _root(error: BaseException) -> str:
    """The first cause: what `requests` and `urllib3` wrap it in is long and says no more."""
    root = list(_chain(error))[-1]
    return f"{type(root).__name__}: {root}"


def _is_disconnect(error: NoReply) -> bool:
    return any(
        isinstance(cause, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)) for cause in _chain(error)
    )
