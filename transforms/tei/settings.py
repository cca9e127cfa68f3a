"""What the client is told: where the endpoint is, what it must serve, and how to treat it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Overlong(enum.Enum):
    """What happens to a text of more tokens than the model reads."""

    TRUNCATE = "truncate"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What the vectors are: everything the endpoint tells that shapes them.

    `sha` is the server's `--revision` verbatim: often None, sometimes a branch name. `dimensions` is learnt from a probe, because
    `/info` does not tell it. `server_version` is recorded but shapes nothing.
    """

    model_id: str
    sha: str | None
    dtype: str
    pooling: str | None
    dimensions: int
    server_version: str


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """How to reach the endpoint and what to ask of it. Picklable; holds no secret.

    Attributes:
        urls: base URLs, all of the same model.
        token: a reference to the bearer token (`env:NAME`, `file:PATH`, `gsm:projects/…`), resolved where it is used; or None.
        prompt_name: the model's prompt to put before each text; None for the server's default.
        normalize: whether vectors have unit norm.
        overlong: what happens to a text of more tokens than the model reads.
        max_in_flight: texts in flight from one process; None for what the server permits.
        request_timeout: seconds for one request, its time in the server's queue included.
        give_up_after: seconds without a single success after which the client gives up.
        identity: the model that the endpoint must serve; None before it is known.
    """

    urls: tuple[str, ...]
    token: str | None = None
    prompt_name: str | None = None
    normalize: bool = True
    overlong: Overlong = Overlong.TRUNCATE
    max_in_flight: int | None = None
    request_timeout: float = 60.0
    give_up_after: float = 600.0
    identity: ModelIdentity | None = None
