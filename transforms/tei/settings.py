"""The client's settings: where the endpoint is, what it must serve, and how to treat it."""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from transforms.tei.credentials import LITERAL, check_reference

if TYPE_CHECKING:  # the command line reads its options before anything imports numpy
    from transforms.tei.vector_space import VectorSpace


class Overlong(enum.Enum):
    """What happens to a text of more tokens than the model reads."""

    TRUNCATE = "truncate"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The names that an endpoint gives its model. They are recorded; what decides is the vector space.

    `sha` is the server's `--revision` verbatim: often None, sometimes a branch name. `dimensions` comes from the probe
    vectors, because `/info` does not report it.
    """

    model_id: str
    sha: str | None
    dtype: str
    pooling: str | None
    dimensions: int
    server_version: str


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """How to reach the endpoint and what to ask of it. Picklable; holds no secret, and refuses to.

    Attributes:
        urls: base URLs, all of the same model; none while the server is yet to be started.
        token: a reference to the bearer token (`env:NAME`, `file:PATH`, `gsm:projects/…`), resolved where it is used;
            None for none.
        headers: further headers as pairs of a name and a reference, resolved likewise (or `literal:VALUE`).
        prompt_name: the model's prompt to put before each text; None for the server's default.
        normalize: whether vectors have unit norm.
        overlong: what happens to a text of more tokens than the model reads.
        dimensions: numbers of a vector to keep (Matryoshka); None for all that the model gives.
        max_in_flight: texts in flight from one process at most; None for what the server permits.
        processes: how many share the server's permits, at most: each starts with that share of them.
        request_timeout: seconds for one request, from its first byte to its reply's last.
        give_up_after: seconds without a single success after which the client gives up.
        space: the vector space in which every vector must be; None for that of the first endpoint that answers.

    Raises:
        ValueError: a URL or a reference cannot be used. The message never repeats what may be a secret.
    """

    urls: tuple[str, ...]
    token: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    prompt_name: str | None = None
    normalize: bool = True
    overlong: Overlong = Overlong.TRUNCATE
    dimensions: int | None = None
    max_in_flight: int | None = None
    processes: int = 1
    request_timeout: float = 60.0
    give_up_after: float = 600.0
    space: VectorSpace | None = None

    def __post_init__(self) -> None:
        """Refuse what no request could be made with."""
        object.__setattr__(self, "urls", tuple(self.urls))  # also of lists: settings are hashed
        object.__setattr__(self, "headers", tuple((name, reference) for name, reference in self.headers))
        for url in self.urls:
            _check_url(url)
        if self.request_timeout <= 0:
            raise ValueError(f"request_timeout is {self.request_timeout}; it must be more than 0 seconds")
        if self.token is not None:
            check_reference(self.token)
        for _, reference in self.headers:
            if not reference.startswith(LITERAL):
                check_reference(reference)
        if self.dimensions is not None and self.dimensions < 1:
            raise ValueError(f"dimensions is {self.dimensions}; at least 1 number must be kept")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(f"max_in_flight is {self.max_in_flight}; at least 1 text must be allowed in flight")
        if self.processes < 1:
            raise ValueError(f"processes is {self.processes}; at least 1 must do the work")


def _check_url(url: str) -> None:
    # What stands before an @ or behind a ? may be a secret, in a URL that is wrong otherwise too.
    shown = re.split(r"[?#]", url)[0]
    if "@" in shown:
        raise ValueError("an endpoint URL holds a user name or password: name a token instead")
    try:
        parts = urlsplit(shown)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"endpoint {shown!r} is not a URL of the form http://HOST:PORT or https://HOST")
    if shown != url:
        raise ValueError(f"the endpoint URL {shown} must end before its {url[len(shown)]!r}")


def is_loopback(url: str) -> bool:
    """Return whether a URL leads to this machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def travels_in_the_clear(url: str) -> bool:
    """Return whether a secret sent to this URL could be read on its way: plain http to another host."""
    return urlsplit(url).scheme == "http" and not is_loopback(url)
