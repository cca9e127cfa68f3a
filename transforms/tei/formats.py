"""The two formats in which texts go out and vectors come back."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from transforms.tei.info import ServerInfo
from transforms.tei.settings import EndpointSettings, Overlong
from transforms.tei.vectors import Rows, rows_from_base64, rows_from_json

FIRST_WITH_BASE64 = (1, 3, 0)


class WireFormat(enum.Enum):
    """How vectors come back. Both give the same float32 bits."""

    EMBED_JSON = "/embed, JSON"
    OPENAI_BASE64 = "/v1/embeddings, base64"


@dataclass(frozen=True, slots=True)
class Wire:
    """One format with the job's settings in it.

    Attributes:
        format: which of the two.
        path: below the base URL.
        field: the JSON field that holds the texts.
        options: the other JSON fields.
    """

    format: WireFormat
    path: str
    field: str
    options: Mapping[str, object]

    def encode(self, texts: Sequence[str]) -> bytes:
        """The request's body, UTF-8. Lone surrogates, which no server can read, become question marks."""
        try:
            return orjson.dumps({self.field: texts, **self.options})
        except orjson.JSONEncodeError:
            clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
            return orjson.dumps({self.field: clean, **self.options})

    def decode(self, body: bytes, count: int, dimensions: int | None) -> Rows:
        """The reply's rows; raises what `rows_from_json` does."""
        read = rows_from_json if self.format is WireFormat.EMBED_JSON else rows_from_base64
        return read(body, count, dimensions)


def embed_json(settings: EndpointSettings) -> Wire:
    """`/embed`, which takes every setting. All of them are sent: servers differ in their defaults."""
    options: dict[str, object] = {
        "truncate": settings.overlong is Overlong.TRUNCATE,
        "normalize": settings.normalize,
    }
    if settings.prompt_name is not None:
        options["prompt_name"] = settings.prompt_name
    return Wire(WireFormat.EMBED_JSON, "/embed", "inputs", options)


def openai_base64() -> Wire:
    """`/v1/embeddings`, which takes no setting: always normalized, truncated as the server likes, no prompt by name."""
    return Wire(WireFormat.OPENAI_BASE64, "/v1/embeddings", "input", {"encoding_format": "base64"})


def what_differs(settings: EndpointSettings, info: ServerInfo) -> str | None:
    """Why `/v1/embeddings` of this server would not do what `/embed` does under these settings; None where it would."""
    if not settings.normalize:
        return "--no_normalize needs it"
    if settings.prompt_name is not None:
        return "--prompt_name needs it"
    if info.auto_truncate is not (settings.overlong is Overlong.TRUNCATE):
        # `/embed` is told what to do with each request, so endpoints may differ in this.
        return f"the server's auto_truncate is {info.auto_truncate} and --overlong is {settings.overlong.value}"
    if info.pooling == "splade":
        return "the model's pooling is splade"
    if _version(info.version) < FIRST_WITH_BASE64:
        return f"the server's version {info.version} has no base64"
    return None


def _version(text: str) -> tuple[int, ...]:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(number) for number in numbers.groups()) if numbers else (0,)
