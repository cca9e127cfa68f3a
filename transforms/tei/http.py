"""One HTTP exchange: a request's body goes out, a whole reply or the reason for its absence comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import requests
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
    """No whole reply came: refused, reset, cut off or too late. The message says which."""


class Transport(Protocol):
    """What carries requests. Every method may be called from several threads at once."""

    def get(self, url: str) -> Reply:
        """Fetches."""

    def post(self, url: str, body: bytes) -> Reply:
        """Sends a JSON body."""

    def close(self) -> None:
        """Ends what is under way."""


@dataclass(slots=True)
class _Line:
    """One thread's session to one URL: `requests` does not promise that a session can be shared."""

    session: requests.Session
    prepared: requests.PreparedRequest
    options: Mapping[str, Any]
    used: bool = False


class HttpTransport:
    """Exchanges over `requests`, one session a thread and URL.

    Proxies and the CA bundle come from the environment; credentials never do (a netrc file is not read). Redirects are
    not followed: a token goes to the host that it was meant for, or nowhere.
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
        self._timeout = (min(CONNECT_TIMEOUT, timeout), timeout)
        self._clock = clock
        self._lines = threading.local()

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
        """Lets go of the calling thread's connections."""
        for line in vars(self._lines).values():
            line.session.close()

    def _exchange(self, method: str, url: str, body: bytes | None) -> Reply:
        line = self._line(method, url)
        if body is not None:
            line.prepared.body = body
            line.prepared.headers["Content-Length"] = str(len(body))
        started = self._clock()
        resent = 0
        try:
            response = self._send(line)
        except requests.RequestException as error:
            if not (line.used and _is_disconnect(error)):
                raise self._no_reply(error) from error
            # The server may have closed an idle connection just as this request went out: that says nothing about now.
            line.session.close()
            line.used, resent = False, 1
            response = self._send_fresh(line)
        content = self._read(response)
        line.used = True
        return Reply(response.status_code, response.headers, content, self._clock() - started, resent)

    def _line(self, method: str, url: str) -> _Line:
        lines: dict[str, _Line] = vars(self._lines)
        line = lines.get(method + url)
        if line is None:
            line = lines[method + url] = self._open(method, url)
        return line

    def _open(self, method: str, url: str) -> _Line:
        session = requests.Session()
        try:
            prepared = requests.Request(method, url, headers=self._headers).prepare()
            options = session.merge_environment_settings(url, {}, stream=True, verify=None, cert=None)
        except (requests.RequestException, ValueError) as error:
            raise EndpointRefused(f"{url} cannot be asked: {type(error).__name__}") from error
        session.trust_env = False
        return _Line(session, prepared, options)

    def _send(self, line: _Line) -> requests.Response:
        return line.session.send(line.prepared, timeout=self._timeout, allow_redirects=False, **line.options)

    def _send_fresh(self, line: _Line) -> requests.Response:
        try:
            return self._send(line)
        except requests.RequestException as error:
            raise self._no_reply(error) from error

    def _read(self, response: requests.Response) -> bytes:
        try:
            # One read: `.content` gathers the body from pieces of 10 kB, at twice the cost.
            content: bytes = response.raw.read(decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NoReply(f"the reply broke off: {_root(error)}") from error
        if response.status_code >= 300 and self._secret:
            content = content.replace(self._secret, b"[token]")  # an error page may show what was sent
        return content

    def _no_reply(self, error: requests.RequestException) -> Exception:
        if isinstance(error, requests.Timeout):
            return NoReply(f"no reply within {self._timeout[1]:g} s")
        root = _root(error)
        if "CERTIFICATE_VERIFY_FAILED" in root:
            return EndpointRefused(
                f"the endpoint's certificate cannot be trusted ({root}); REQUESTS_CA_BUNDLE names one's own"
            )
        if isinstance(error, ValueError):  # how `requests` marks a URL or header that it cannot use
            return EndpointRefused(f"the request cannot be made: {type(error).__name__}")
        return NoReply(root)


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _root(error: BaseException) -> str:
    """The first cause: what `requests` and `urllib3` wrap it in is long and says no more."""
    root = list(_chain(error))[-1]
    return f"{type(root).__name__}: {root}"


def _is_disconnect(error: requests.RequestException) -> bool:
    return any(
        isinstance(cause, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)) for cause in _chain(error)
    )
