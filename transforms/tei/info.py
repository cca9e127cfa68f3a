"""What `GET /info` says: the model's identity and the server's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from transforms.tei.errors import EndpointRefused, ModelChanged
from transforms.tei.settings import ModelIdentity

CHARACTERS_PER_TOKEN = 250  # the server refuses or pre-cuts texts of more characters than this for each token it reads


class NotTei(EndpointRefused):
    """Something else than TEI answers at the URL; on first contact a mistake, later perhaps a gateway's page."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The part of `/info` that decides something. Limits are counted in texts unless they say otherwise.

    Attributes:
        model_id: the model's name or path.
        model_sha: the server's `--revision` verbatim.
        model_dtype: what the model computes in.
        pooling: how token vectors become one; None for a model that does not embed.
        model_type: `embedding`, `classifier` or `reranker`.
        max_concurrent_requests: permits; one a text, not one a request.
        max_input_length: tokens that the model reads, special tokens and prompt included.
        max_batch_tokens: tokens of one device batch; None where the server does not say.
        max_client_batch_size: texts in one request.
        auto_truncate: whether overlong texts are cut where a request does not say; None where `/info` does not.
        version: the server's.
    """

    model_id: str
    model_sha: str | None
    model_dtype: str
    pooling: str | None
    model_type: str
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int | None
    max_client_batch_size: int
    auto_truncate: bool | None
    version: str

    @property
    def batch_limit(self) -> int:
        """Texts that one request may hold: a request of more than all permits could never succeed."""
        return max(1, min(self.max_client_batch_size, self.max_concurrent_requests))

    @property
    def max_characters(self) -> int:
        """Characters of the longest text that is worth sending."""
        return self.max_input_length * CHARACTERS_PER_TOKEN

    def identity(self, dimensions: int) -> ModelIdentity:
        """Names the model, with the dimensions that only a probe can tell."""
        return ModelIdentity(
            self.model_id, self.model_sha, self.model_dtype, self.pooling, dimensions, server_version=self.version
        )


def parse_info(body: bytes, url: str) -> ServerInfo:
    """Reads the body of a `/info` reply.

    Raises:
        NotTei: it is not what TEI says.
        EndpointRefused: the model is none that embeds.
    """
    try:
        info = _read(orjson.loads(body))
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotTei(
            f"{url}/info does not answer as Text Embeddings Inference does: is this the base URL of a TEI server?"
        ) from error
    if info.model_type != "embedding":
        raise EndpointRefused(f"{url} serves {info.model_id}, a {info.model_type} model: it cannot embed")
    return info


def check_same_model(info: ServerInfo, expected: ModelIdentity, url: str) -> None:
    """Raises ModelChanged, naming what differs, unless `/info` tells of the expected model."""
    found = info.identity(expected.dimensions)
    differences = [
        f"{name} {getattr(found, name)!r} instead of {getattr(expected, name)!r}"
        for name in ("model_id", "sha", "dtype", "pooling")
        if getattr(found, name) != getattr(expected, name)
    ]
    if differences:
        raise ModelChanged(
            f"{url} serves another model than this job's vectors were made with: {', '.join(differences)}"
        )


def check_same_length(info: ServerInfo, expected: ServerInfo, url: str) -> None:
    """Raises ModelChanged where texts are cut at another length: that is another vector for a long text."""
    if info.max_input_length != expected.max_input_length:
        raise ModelChanged(
            f"{url} reads texts up to {info.max_input_length} tokens, not up to {expected.max_input_length} as this "
            "job's endpoint did at first: long texts would get other vectors"
        )


def _read(info: Mapping[str, Any]) -> ServerInfo:
    model_type, details = _model_type(info.get("model_type"))
    return ServerInfo(
        model_id=str(info["model_id"]),
        model_sha=_text_or_none(info.get("model_sha")),
        model_dtype=str(info.get("model_dtype")),
        pooling=_text_or_none(details.get("pooling")),
        model_type=model_type,
        max_concurrent_requests=_positive(info["max_concurrent_requests"]),
        max_input_length=_positive(info["max_input_length"]),
        max_batch_tokens=tokens if isinstance(tokens := info.get("max_batch_tokens"), int) else None,
        max_client_batch_size=_positive(info["max_client_batch_size"]),
        auto_truncate=info.get("auto_truncate"),
        version=str(info.get("version")),
    )


def _model_type(value: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if not value:
            raise ValueError("no kind of model is told")
        name, details = next(iter(value.items()))
        return str(name).lower(), details if isinstance(details, Mapping) else {}
    return str(value).lower(), {}


def _text_or_none(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{value!r} is no name")


def _positive(value: object) -> int:
    number = int(str(value))
    if number < 1:
        raise ValueError(f"{number} is not a limit")
    return number
