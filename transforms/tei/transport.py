"""One HTTP exchange: a request's body goes out, a whole reply or the reason for its absence comes back."""

from __future__ import annotations

import http.client
import math
import re
import socket
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import requests
import urllib3

from transforms.tei.errors import EndpointRefused
from transforms.tei.incoming import Incoming, NotAReply
from transforms.tei.line import Line
from transforms.tei.sockets import send, sever, was_ended

CONNECT_TIMEOUT = 10.0  # seconds; a host that does not even accept is better asked again than waited for
MOST_BYTES = 1 << 29  # of a reply's body; the largest honest one has a fifth of that
_UNKNOWN_ISSUER = re.compile("self[- ]signed|issuer certificate")
HEADERS = {
    "Accept-Encoding": "identity",  # vectors hardly compress, and unpacking them costs more than reading them
    "Content-Type": "application/json",
    "User-Agent": "tayyar",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. `seconds` is how long it took, `resent` how often a stale connection made it start again.

    The names of `headers` are in lower case. `renewed_at` is when its connection was made (`time.monotonic`), where
    that took an earlier one's place: another server may have, too.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0
    resent: int = 0
    renewed_at: float | None = None

    def number(self, header: str) -> float:
        """What a header, named in lower case, counts or measures; 0 where it is missing or makes no sense."""
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


class HttpTransport:
    """Exchanges over HTTP, on one connection a thread and URL.

    Redirects are not followed: a token goes to the host that it was meant for, or nowhere.

    Args:
        token: sent with every request; None for none.
        timeout: seconds that a whole exchange may take, from the connection to the reply's last byte.
        extra_headers: sent with every request.
        most_bytes: that a reply's body may have.
    """

    def __init__(
        self, token: str | None, timeout: float, extra_headers: Mapping[str, str], most_bytes: int = MOST_BYTES
    ) -> None:
        self._headers = {**HEADERS, **extra_headers}
        self._secret = _however_written(token) if token else None
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._seconds = timeout
        self._most_bytes = most_bytes
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
        with self._connecting:
            self._closed = True
            connections = list(self._connections)
        for connection in connections:
            sever(connection.sock)

    def _exchange(self, method: str, url: str, body: bytes | None) -> Reply:
        line = self._line(url)
        request = line.request(method, body)
        started = time.monotonic()
        deadline = started + self._seconds
        resent = 0
        try:
            was_used = self._connect(line, deadline)
            try:
                incoming, content = self._try(line, request, deadline)
            except NoReply as error:
                if not (was_used and error.hung_up):
                    raise
                # The server may have closed an idle connection just as this went out: that says nothing about now.
                resent = 1
                self._connect(line, deadline)
                incoming, content = self._try(line, request, deadline)
        except NoReply as error:
            error.resent = resent
            raise
        renewed_at = line.renewed_at
        line.used = True
        if not incoming.reusable:
            line.hang_up()
        headers: Mapping[str, str] = incoming.headers
        if incoming.status != 200 and self._secret:  # an error may show what was sent
            headers = {name: self._redacted(value) for name, value in headers.items()}
            content = self._redacted(content.decode("utf-8", "replace")).encode()
        return Reply(incoming.status, headers, content, time.monotonic() - started, resent, renewed_at)

    def _try(self, line: Line, request: bytes, deadline: float) -> tuple[Incoming, bytes]:
        """Sends a request and reads the reply; where that fails, the connection is of no more use."""
        sock = line.connection.sock
        incoming = Incoming(sock, deadline, self._most_bytes)
        try:
            hung_up = _hangs_up_on(sock, request, deadline)
            content = incoming.read()
            incoming.reusable = incoming.reusable and not hung_up
        except TimeoutError:
            line.hang_up()
            raise NoReply(f"no whole reply within {self._seconds:g} s") from None
        except (OSError, EOFError, NotAReply) as error:
            line.hang_up()
            what = "the reply broke off" if incoming.begun else "no reply"
            # `from None`: what came instead of a reply may hold the token.
            failure = NoReply(self._redacted(f"{what}: {_named(error)}"))
            failure.hung_up = not incoming.begun
            raise failure from None
        return incoming, content

    def _line(self, url: str) -> Line:
        lines: dict[str, Line] = vars(self._lines)
        line = lines.get(url)
        if line is None:
            try:
                line = lines[url] = Line(url, self._headers)
            except (requests.RequestException, OSError, ValueError) as error:
                raise _unusable(url, _root(error)) from None
        return line

    def _connect(self, line: Line, deadline: float) -> bool:
        """Makes a connection if there is none; says whether there was one that has carried a reply."""
        if self._closed:
            raise NoReply("the client was closed")
        if not line.has_ended():
            return line.used
        try:
            line.dial(min(CONNECT_TIMEOUT, max(deadline - time.monotonic(), 0.001)))
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise self._no_connection(error, line.proxy) from None
        self._dialled(line)
        return False

    def _dialled(self, line: Line) -> None:
        """Notes whether a connection takes an ended one's place, its own line's or another thread's."""
        connection = line.connection
        with self._connecting:
            others = list(self._connections)
            self._connections.add(connection)
            closed = self._closed
        if closed:  # it was made too late for `close` to know of it
            line.hang_up()
            raise NoReply("the client was closed")
        origin = (connection.host, connection.port)
        renewed = line.dialled or any(was_ended(each.sock) for each in others if (each.host, each.port) == origin)
        line.dialled = True
        line.renewed_at = time.monotonic() if renewed else None

    def _no_connection(self, error: Exception, proxy: str | None) -> Exception:
        said = self._redacted(_named(_root(error))) + (f", through the proxy {proxy}" if proxy else "")
        if "CERTIFICATE_VERIFY_FAILED" in said:
            remedy = ": REQUESTS_CA_BUNDLE names the file with its issuer's" if _UNKNOWN_ISSUER.search(said) else ""
            return EndpointRefused(f"the endpoint's certificate cannot be trusted ({said}){remedy}")
        if isinstance(error, ValueError):  # how urllib3 marks a URL that it cannot use
            return EndpointRefused(f"the request cannot be made: {type(error).__name__}")
        return NoReply(said)

    def _redacted(self, text: str) -> str:
        return self._secret.sub("[token]", text) if self._secret else text


def _hangs_up_on(sock: socket.socket, request: bytes, deadline: float) -> bool:
    """Sends a request, unless the other side hangs up before: whoever refuses a long body may have said why."""
    try:
        send(sock, request, deadline)
    except TimeoutError:
        raise
    except OSError:
        return True
    return False


def _however_written(token: str) -> re.Pattern[str]:
    """Finds a token in a text, also where some of its characters are escaped as in JSON, a URL or HTML."""

    def written(character: str) -> str:
        code = ord(character)
        return f"(?:\\\\?{re.escape(character)}|\\\\u{code:04x}|%{code:02x}|&#0*{code};|&#x0*{code:x};)"

    # Hexadecimal digits come in both cases; a token in another case than its own is better hidden too.
    return re.compile("".join(map(written, token)), re.IGNORECASE)


def _unusable(url: str, error: BaseException) -> EndpointRefused:
    # What cannot be parsed is a URL, and a proxy's may hold a password.
    bad_url = isinstance(error, (urllib3.exceptions.LocationValueError, requests.exceptions.InvalidURL))
    said = "look at the environment's proxy settings (http_proxy, https_proxy)" if bad_url else _named(error)
    return EndpointRefused(f"{url} cannot be asked: {said}")


def _root(error: BaseException) -> BaseException:
    """The first cause: what `requests` and `urllib3` wrap it in is long and says no more."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
