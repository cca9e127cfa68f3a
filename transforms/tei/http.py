"""One HTTP exchange: a request's body goes out, a whole reply or the reason for its absence comes back."""

from __future__ import annotations

import math
import re
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import requests
import requests.adapters
import urllib3

from transforms.tei.errors import EndpointRefused

CONNECT_TIMEOUT = 10.0  # seconds; a host that does not even accept is better asked again than waited for
MOST_BYTES = 1 << 29  # of a reply's body; the largest honest one has a fifth of that
HEADERS = {
    "Accept-Encoding": "identity",  # vectors hardly compress, and unpacking them costs more than reading them
    "Content-Type": "application/json",
    "User-Agent": "tayyar",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. `seconds` is how long it took, `resent` how often a stale connection made it start again.

    `renewed_at` is when its connection was made (`time.monotonic`), where that took an earlier one's place: another
    server may have, too.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0
    resent: int = 0
    renewed_at: float | None = None

    def number(self, header: str) -> float:
        """What a header counts or measures; 0 where it is missing or makes no sense."""
        try:
            value = float(self.headers.get(header, 0))
        except ValueError:
            return 0.0
        return value if math.isfinite(value) and value >= 0 else 0.0


class NoReply(Exception):
    """No whole reply came: refused, reset, cut off or too late. The message says which.

    `resent` is a reply's; `hung_up` tells that the other side ended the connection.
    """

    resent = 0
    hung_up = False


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
class _Dialled:
    """Whether a line has had a connection before; when its present one was made, if that took another's place."""

    before: bool = False
    renewed_at: float | None = None


@dataclass(slots=True)
class _Line:
    """One thread's connection to one URL; `used` once it has carried a reply."""

    adapter: _Adapter  # the pool lives as long as it
    pool: urllib3.HTTPConnectionPool
    target: str
    used: bool = False
    dialled: _Dialled = field(default_factory=_Dialled)


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
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._headers = {**HEADERS, **extra_headers}
        self._secret = _however_written(token) if token else None
        self._most_bytes = most_bytes
        self._seconds = timeout
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout)
        self._clock = clock
        self._lines = threading.local()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._connecting = threading.Lock()
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
        with self._connecting:
            connections = list(self._connections)
        for connection in connections:
            sever(connection)

    def _exchange(self, method: str, url: str, body: bytes | None) -> Reply:
        line = self._line(url)
        started = self._clock()
        resent = 0
        try:
            try:
                response = self._send(line, method, body)
            except NoReply as error:
                if not (line.used and error.hung_up):
                    raise
                # The server may have closed an idle connection just as this went out: that says nothing about now.
                resent = 1
                response = self._send(line, method, body)
            content = self._read(response)
        except NoReply as error:
            line.used, error.resent = False, resent
            raise
        line.used = True
        headers: Mapping[str, str] = response.headers
        if response.status != 200 and self._secret:  # an error may show what was sent
            headers = urllib3.HTTPHeaderDict({name: self._redacted(value) for name, value in headers.items()})
            content = self._redacted(content.decode("utf-8", "replace")).encode()
        return Reply(response.status, headers, content, self._clock() - started, resent, line.dialled.renewed_at)

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
            # `from None`: what came instead of a reply may hold the token.
            raise self._no_reply(error) from None

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
        line = _Line(adapter, pool, target)
        self._watch(line)
        return line

    def _watch(self, line: _Line) -> None:
        """Remembers the line's connections while they live, so that `close` can hang up."""
        make: Any = line.pool.ConnectionCls
        # Neither the line nor a connection: whoever holds what it is held by keeps sockets open.
        dialled, connected = line.dialled, self._connected

        def made(*args: Any, **options: Any) -> Any:
            connection = make(*args, **options)
            own = weakref.ref(connection)

            def connect() -> None:
                here = own()
                make.connect(here)
                connected(dialled, here)

            connection.connect = connect
            return connection

        line.pool.ConnectionCls = made  # type: ignore[assignment]  # urllib3 calls it, and asks no more of it

    def _connected(self, dialled: _Dialled, connection: Any) -> None:
        """Notes whether a connection takes an ended one's place, its own line's or another thread's."""
        origin = (connection.host, connection.port)
        with self._connecting:
            others = [each for each in self._connections if each is not connection]
            self._connections.add(connection)
        renewed = dialled.before or any(_has_ended(each) for each in others if (each.host, each.port) == origin)
        dialled.before = True
        dialled.renewed_at = time.monotonic() if renewed else None

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        announced = response.headers.get("Content-Length", "")
        if announced.isascii() and announced.isdigit() and int(announced) > self._most_bytes:
            response.close()
            raise NoReply(f"the reply has more than {self._most_bytes} bytes")
        try:
            return response.read(decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NoReply(self._redacted(f"the reply broke off: {_root(error)}")) from None

    def _redacted(self, text: str) -> str:
        return self._secret.sub("[token]", text) if self._secret else text

    def _no_reply(self, error: Exception) -> Exception:
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            return NoReply(f"no reply within {self._seconds:g} s")
        root = self._redacted(_root(error))
        if "CERTIFICATE_VERIFY_FAILED" in root:
            return EndpointRefused(
                f"the endpoint's certificate cannot be trusted ({root}): REQUESTS_CA_BUNDLE names yours"
            )
        if isinstance(error, ValueError):  # how urllib3 marks a URL that it cannot use
            return EndpointRefused(f"the request cannot be made: {type(error).__name__}")
        failure = NoReply(root)
        failure.hung_up = _is_disconnect(error)
        return failure


def _however_written(token: str) -> re.Pattern[str]:
    """Finds a token in a text, also where some of its characters are escaped as in JSON, a URL or HTML."""

    def written(character: str) -> str:
        code = ord(character)
        return f"(?:\\\\?{re.escape(character)}|\\\\u{code:04x}|%{code:02x}|&#0*{code};|&#x0*{code:x};)"

    # Hexadecimal digits come in both cases; a token in another case than its own is better hidden too.
    return re.compile("".join(map(written, token)), re.IGNORECASE)


def _has_ended(connection: Any) -> bool:
    """Whether the other side has ended a connection."""
    sock = connection.sock
    if sock is None:
        return True
    try:
        # Reads nothing, so it neither waits nor takes anything from the thread that does.
        poll = select.poll()
        poll.register(sock, getattr(select, "POLLRDHUP", select.POLLHUP))
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True


def sever(connection: Any) -> None:
    """Ends a connection under a thread that reads from it."""
    sock = connection.sock
    if sock is None:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except Exception:  # noqa: BLE001  (it is another thread's: it may have ended already, or be in any state)
        return


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _root(error: BaseException) -> str:
    """The first cause: what `requests` and `urllib3` wrap it in is long and says no more."""
    root = list(_chain(error))[-1]
    return f"{type(root).__name__}: {root}"


def _is_disconnect(error: Exception) -> bool:
    return any(
        isinstance(cause, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)) for cause in _chain(error)
    )
