"""What the client is told: where the endpoint is, what it must serve, and how to treat it."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from transforms.tei.credentials import check_reference


class Overlong(enum.Enum):
    """What happens to a text of more tokens than the model reads."""

    TRUNCATE = "truncate"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What the vectors are: everything the endpoint tells that shapes them.

    `sha` is the server's `--revision` verbatim: often None, sometimes a branch name. `dimensions` is learnt from a
    probe, because `/info` does not tell it. `server_version` is recorded but shapes nothing.
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
        prompt_name: the model's prompt to put before each text; None for the server's default.
        normalize: whether vectors have unit norm.
        overlong: what happens to a text of more tokens than the model reads.
        max_in_flight: texts in flight from one process; None for what the server permits.
        processes: how many share the server's permits, at most: each starts with that share of them.
        request_timeout: seconds for one request, from its first byte to its reply's last.
        give_up_after: seconds without a single success after which the client gives up.
        identity: the model that the endpoint must serve; None before it is known.

    Raises:
        ValueError: a URL or the token's reference cannot be used. The message never repeats what may be a secret.
    """

    urls: tuple[str, ...]
    token: str | None = None
    prompt_name: str | None = None
    normalize: bool = True
    overlong: Overlong = Overlong.TRUNCATE
    max_in_flight: int | None = None
    processes: int = 1
    request_timeout: float = 60.0
    give_up_after: float = 600.0
    identity: ModelIdentity | None = None

    def __post_init__(self) -> None:
        """Refuses what no request could be made with."""
        for url in self.urls:
            _check_url(url)
        if self.token is not None:
            check_reference(self.token)
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
