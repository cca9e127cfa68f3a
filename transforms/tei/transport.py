"""One HTTP exchange by libcurl: a body goes out, a whole reply or the reason for its absence comes back."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import certifi
import pycurl
from requests.utils import get_environ_proxies, select_proxy

from transforms.tei.credentials import Credentials
from transforms.tei.errors import EndpointRefused
from transforms.tei.settings import is_loopback

CONNECT_TIMEOUT = 10.0  # seconds; a host that does not even accept a connection is better asked again than waited for
MAX_REPLY_BYTES = 1 << 24  # of a reply whose size nobody knows beforehand: /info, errors, a first vector
RECEIVE_BYTES = 1 << 18  # that libcurl reads at a time: a reply of 32 vectors fits, so one callback takes all of it
CURLE_PROXY = 97  # libcurl's code for a proxy that refuses; pycurl has no name for it
HEADERS = (
    "Content-Type: application/json",
    "User-Agent: tayyar",
    "Expect:",  # libcurl would wait for a 100 Continue before it sends a large body
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply; `seconds` is how long it took. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0

    def number(self, header: str, maximum: float = 1e9) -> float:
        """Return what a header, named in lower case, counts or measures; 0 where it is missing or absurd."""
        try:
            value = float(self.headers.get(header, 0))
        except ValueError:
            return 0.0
        return value if math.isfinite(value) and 0 <= value <= maximum else 0.0


class NoReply(Exception):
    """No whole reply came: refused, reset, cut off, too large or too late. The message gives the reason.

    `timed_out` is true where the time was over, which may mean no more than that the endpoint is slow.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Transport(Protocol):
    """What carries requests. Every method may be called from several threads at once."""

    def get(self, url: str) -> Reply:
        """Fetch."""

    def post(
        self, url: str, body: bytes, timeout: float | None = None, max_reply_bytes: int = MAX_REPLY_BYTES
    ) -> Reply:
        """Send a JSON body."""

    def close(self) -> None:
        """End what is under way."""


class HttpTransport:
    """Exchanges over HTTP/1.1, with one libcurl handle a thread, which keeps its connections.

    libcurl keeps to one deadline for the whole exchange, sends again on a fresh connection where the server closed an
    idle one, follows no redirect and speaks nothing but http and https. Replies are not decompressed: vectors hardly
    compress, and what is not unpacked cannot grow.

    Args:
        credentials: the headers that authenticate.
        timeout: seconds that an exchange may take, from the connection to the reply's last byte, unless it has its own.
        headers: sent with every request, as `Name: value`.
    """

    def __init__(self, credentials: Credentials, timeout: float, headers: Sequence[str] = ()) -> None:
        self._credentials = credentials
        self._timeout = timeout
        self._headers = (*HEADERS, *headers)
        self._local = threading.local()
        self._sockets: set[int] = set()
        self._sockets_lock = threading.Lock()
        self._helper: ThreadPoolExecutor | None = None
        self._closed = False

    def __repr__(self) -> str:
        """Name the class alone: the headers hold secrets."""
        return "HttpTransport()"

    def __reduce__(self) -> str:
        """Refuse: a pickle would hold secrets."""
        raise TypeError("a transport belongs to its process")

    def get(self, url: str) -> Reply:
        """Fetch.

        Raises:
            NoReply: no whole reply came.
            EndpointRefused: none can come.
        """
        return self._exchange(url, None, self._timeout, MAX_REPLY_BYTES)

    def post(
        self, url: str, body: bytes, timeout: float | None = None, max_reply_bytes: int = MAX_REPLY_BYTES
    ) -> Reply:
        """Send a JSON body; raise as `get` does.

        Args:
            url: the whole address.
            body: JSON in UTF-8.
            timeout: seconds for this exchange; None for the transport's own.
            max_reply_bytes: a longer reply is none.
        """
        return self._exchange(url, body, timeout or self._timeout, max_reply_bytes)

    def close(self) -> None:
        """End every exchange at once, also where a reply is still waited for.

        The sockets are shut down from here. libcurl's progress callback would do, too, but it takes the GIL some ten
        times an exchange: twice the CPU of the whole exchange.
        """
        with self._sockets_lock:
            self._closed = True
            if self._helper is not None:
                self._helper.shutdown(wait=False)
            for descriptor in self._sockets:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as shared:
                    shared.shutdown(socket.SHUT_RDWR)

    def _exchange(self, url: str, body: bytes | None, timeout: float, max_reply_bytes: int) -> Reply:
        if threading.current_thread() is threading.main_thread():
            # libcurl does not return for a signal. So the main thread waits for another one: that Ctrl-C interrupts.
            with self._sockets_lock:
                if self._closed:
                    raise NoReply("the client was closed")
                if self._helper is None:
                    self._helper = ThreadPoolExecutor(1, "tei-main")
            return self._helper.submit(self._exchange, url, body, timeout, max_reply_bytes).result()
        version = self._credentials.version
        reply = self._perform(url, body, timeout, max_reply_bytes)
        if reply.status == 401 and self._credentials.reload(version):
            reply = self._perform(url, body, timeout, max_reply_bytes)
        return reply

    def _perform(self, url: str, body: bytes | None, timeout: float, max_reply_bytes: int) -> Reply:
        handle, lines, chunks = self._handle()
        lines.clear()
        chunks.clear()
        try:
            headers = self._credentials.headers
            if self._local.set_for != (url, headers):  # a worker's next request mostly goes where its last one went
                handle.setopt(pycurl.URL, url)
                handle.setopt(pycurl.PROXY, _proxy_of(url))
                handle.setopt(pycurl.HTTPHEADER, [*self._headers, *headers])
                self._local.set_for = url, headers
            handle.setopt(pycurl.TIMEOUT_MS, max(1, round(timeout * 1000)))
            handle.setopt(pycurl.MAXFILESIZE_LARGE, max_reply_bytes)
            if body is None:
                handle.setopt(pycurl.HTTPGET, 1)
            else:
                handle.setopt(pycurl.POSTFIELDS, body)
            if self._closed:
                raise NoReply("the client was closed")
            handle.perform()
        except pycurl.error as error:
            # `from None`: libcurl's message may repeat what was sent.
            raise self._failure(url, *error.args) from None
        received = _headers_of(lines)
        content = b"".join(chunks)
        status = handle.getinfo(pycurl.RESPONSE_CODE)
        if status != 200:  # an error may show what was sent
            received = {name: self._credentials.redact(value) for name, value in received.items()}
            content = self._credentials.redact(content.decode("utf-8", "replace")).encode()
        elif received.get("content-encoding", "identity").lower() != "identity":
            raise NoReply(f"a reply in the encoding {received['content-encoding']!r}, which was not asked for")
        return Reply(status, received, content, handle.getinfo(pycurl.TOTAL_TIME))

    def _handle(self) -> tuple[Any, list[bytes], list[bytes]]:
        """Return this thread's handle, and the lists into which it puts header lines and pieces of the body."""
        kept: tuple[Any, list[bytes], list[bytes]] | None = getattr(self._local, "handle", None)
        if kept is not None:
            return kept
        handle = pycurl.Curl()
        lines: list[bytes] = []
        chunks: list[bytes] = []
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.FOLLOWLOCATION, 0)
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, round(CONNECT_TIMEOUT * 1000))
        handle.setopt(pycurl.BUFFERSIZE, RECEIVE_BYTES)
        handle.setopt(pycurl.MAXAGE_CONN, 24 * 3600)
        certificates = _certificates()
        handle.setopt(pycurl.CAINFO, certificates)
        handle.setopt(pycurl.PROXY_CAINFO, certificates)
        handle.setopt(pycurl.HEADERFUNCTION, lines.append)
        handle.setopt(pycurl.WRITEFUNCTION, chunks.append)
        handle.setopt(pycurl.SOCKOPTFUNCTION, self._opened)
        handle.setopt(pycurl.CLOSESOCKETFUNCTION, self._close_socket)
        self._local.set_for = None
        self._local.handle = handle, lines, chunks
        return self._local.handle  # type: ignore[no-any-return] # what a thread keeps has no declared type

    def _opened(self, descriptor: int, _purpose: int) -> int:
        with self._sockets_lock:
            if self._closed:
                return pycurl.SOCKOPT_ERROR
            self._sockets.add(descriptor)
        return pycurl.SOCKOPT_OK

    def _close_socket(self, descriptor: int) -> int:
        with self._sockets_lock:  # so that `close` never shuts down another file of the same number
            self._sockets.discard(descriptor)
            os.close(descriptor)
        return 0

    def _failure(self, url: str, code: int, message: str) -> Exception:
        message = self._credentials.redact(message)
        if self._closed:
            return NoReply("the client was closed")
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return NoReply(message, timed_out=not message.startswith("Connection timed out"))
        if code == pycurl.E_FILESIZE_EXCEEDED:
            return NoReply("a reply larger than vectors of its texts can be")
        if code in (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE):
            remedy = "SSL_CERT_FILE or REQUESTS_CA_BUNDLE names a file with its issuer's certificate"
            return EndpointRefused(f"the certificate of {url} cannot be trusted ({message}): {remedy}")
        if code == pycurl.E_SSL_CONNECT_ERROR and "wrong version number" in message.lower():
            return EndpointRefused(
                f"{url} does not speak TLS: does its address begin with http:// instead of https://?"
            )
        if code == pycurl.E_URL_MALFORMAT:
            return EndpointRefused(
                f"{url} is not an address that a request can be sent to. Write it as http://HOST:PORT or https://HOST."
            )
        if code in (pycurl.E_COULDNT_RESOLVE_PROXY, CURLE_PROXY):
            return EndpointRefused(
                f"{url} cannot be reached through the proxy that http_proxy or https_proxy names. "
                "Correct the variable, or add the host to no_proxy."
            )
        return NoReply(message)


def _headers_of(lines: Sequence[bytes]) -> dict[str, str]:
    """Return the last response's headers; earlier ones announced it (100 Continue, a proxy's CONNECT)."""
    headers: dict[str, str] = {}
    for line in b"".join(lines).decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
        elif line.startswith("HTTP/"):
            headers.clear()
    return headers


def _certificates() -> str:
    """Return the file of trusted certificates, chosen as `requests` does, and by OpenSSL's own variable."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if path := os.environ.get(name):
            if not os.path.isfile(path):
                raise EndpointRefused(f"{name} names {path}, and there is no such file of trusted certificates")
            return path
    return certifi.where()


def _proxy_of(url: str) -> str:
    """Return the environment's proxy for a URL; empty for none, which keeps libcurl from choosing by itself."""
    if is_loopback(url):  # a proxy elsewhere does not reach this machine's own addresses
        return ""
    return select_proxy(url, get_environ_proxies(url)) or ""
