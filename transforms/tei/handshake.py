"""The handshake: what an endpoint reports by `/info`, and which vector space its probe vectors show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from transforms.elements import Vectors
from transforms.tei.error_table import Action, Failure, classify, doubtful_reply, no_reply
from transforms.tei.errors import EndpointRefused, ModelChanged, NotTei, PairingBroken
from transforms.tei.formats import (
    FIRST_WITH_DIMENSIONS,
    UnreadableReply,
    Wire,
    WrongCount,
    embed_json,
    openai_base64,
    parse_version,
    why_not_base64,
)
from transforms.tei.settings import EndpointSettings, ModelIdentity
from transforms.tei.transport import NoReply, Reply, Transport
from transforms.tei.vector_space import MIN_COSINE, MIN_TOLERANCE, PROBE_TEXTS, VectorSpace, cosine

CANARY_TEXT = PROBE_TEXTS[0]
CHARACTERS_PER_TOKEN = 250  # the server refuses or pre-cuts texts of more characters than this for each token it reads
MISSING_ROUTE = (404, 405)
OVERLOAD_TRIES = 8  # of one request, where others take the server's permits
AGREEMENT_TRIES = 3  # one reply can be damaged on its way; that several in a row differ is no accident
ROUTE_TRIES = 3  # of a route that fails while another works
SAME = 0.9999  # cosine of a text's vectors alone and in a batch, from servers that compute in floating point
DEVIATION_FACTOR = 10.0  # tolerated later, times what the handshake saw: batches differ more than the two that it tries
MAX_LIMIT = 10_000_000  # of what `/info` reports; beyond that it is no limit but a mistake


class Unavailable(Exception):
    """The endpoint gives no answer for now; `failure` is the one it gave instead."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        """Return the endpoint's message."""
        return self.failure.message


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
        max_client_batch_size: texts in one request.
        auto_truncate: whether overlong texts are truncated where a request does not say; None where unknown.
        version: the server's.
    """

    model_id: str
    model_sha: str | None
    model_dtype: str
    pooling: str | None
    model_type: str
    max_concurrent_requests: int
    max_input_length: int
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
        """Return the model's names, with the dimensions that only a vector shows."""
        return ModelIdentity(
            model_id=self.model_id,
            sha=self.model_sha,
            dtype=self.model_dtype,
            pooling=self.pooling,
            dimensions=dimensions,
            server_version=self.version,
        )


@dataclass(frozen=True, slots=True)
class EndpointProfile:
    """What the handshake with an endpoint found.

    Attributes:
        url: of the endpoint.
        info: its `/info`.
        space: of its probe vectors.
        canary_tokens: that the server counts for the canary.
        seconds_per_text: of the slowest probe, sent alone.
        wire: the format to use.
        wire_reason: why that one, for the log.
    """

    url: str
    info: ServerInfo
    space: VectorSpace
    canary_tokens: int
    seconds_per_text: float
    wire: Wire
    wire_reason: str

    @property
    def identity(self) -> ModelIdentity:
        """The model's names."""
        return self.info.identity(self.space.dimensions)


class Handshake:
    """Finds out what endpoints serve. Holds nothing that changes; may be used from any thread.

    Args:
        transport: carries the requests.
        settings: the job's.
        pause: waits before another try of a request, given how many there were.
    """

    def __init__(
        self, transport: Transport, settings: EndpointSettings, pause: Callable[[int], object] = lambda _: None
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._pause = pause

    def read_info(self, url: str) -> ServerInfo:
        """Return an endpoint's `/info`.

        Raises:
            Unavailable: it cannot be read for now.
            EndpointRefused: it never will be.
        """
        target = f"{url}/info"
        try:
            reply = self._transport.get(target)
        except NoReply as error:
            raise Unavailable(no_reply(str(error), timed_out=error.timed_out)) from error
        if reply.status in MISSING_ROUTE:
            raise NotTei(self._why_no_info(url, reply.status))
        if reply.status != 200:
            self._raise_failure(target, reply)
        return parse_info(reply.body, url)

    def read_profile(self, url: str, expected: VectorSpace | None = None) -> EndpointProfile:
        """Return an endpoint's profile.

        Args:
            url: of the endpoint.
            expected: the space in which its vectors must be; None for any.

        Raises:
            Unavailable: it does not answer for now.
            EndpointRefused: it cannot do this job.
            ModelChanged: its vectors are of another space.
        """
        info = self.read_info(url)
        if self._settings.dimensions is not None and parse_version(info.version) < FIRST_WITH_DIMENSIONS:
            raise EndpointRefused(
                f"{url} has TEI {info.version}, which ignores --dimensions; TEI 1.8 and later keep so many numbers. "
                "Use a newer server, or leave the option out."
            )
        texts = [text[: info.max_characters] for text in PROBE_TEXTS]
        batch_limit = min(info.batch_limit, self._settings.max_in_flight or info.batch_limit)
        # Truncated also where the job's own overlong texts are dead letters: the last probe shows where a text ends.
        wire = embed_json(self._settings, truncate=True)
        for attempt in itertools.count(1):
            alone = [self._embed(url, wire, [text]) for text in texts]
            try:
                vectors = _stacked([vectors for vectors, _ in alone])
                together = vectors if batch_limit < 2 else self._embed_all(url, wire, texts, batch_limit)
                _require_one_size([vectors, together])
                worst = min(cosine(one, other) for one, other in zip(vectors, together, strict=True))
                found = f"cosine {worst:.3f}"
            except Unavailable as error:
                if not isinstance(error.__cause__, WrongCount):
                    raise
                worst, found = -1.0, str(error)  # a cache's reply to another request, or another model's, perhaps
            if worst >= MIN_TOLERANCE:
                break
            if attempt == AGREEMENT_TRIES:
                raise PairingBroken(
                    f"{url} gives a probe sentence one vector alone and another one in a batch ({found}). "
                    "Either two models answer there (look at its replicas, a rolling update, a balancer in front of "
                    "two versions), or what stands in front of it mixes up its replies (a cache, a batching proxy)."
                )
            self._pause(attempt)
        tolerance = (
            MIN_COSINE if worst >= SAME else max(MIN_TOLERANCE, min(MIN_COSINE, 1 - DEVIATION_FACTOR * (1 - worst)))
        )
        space = VectorSpace.of(vectors, normalized=self._settings.normalize, min_cosine=tolerance)
        if expected is not None and not expected.is_same(space):
            raise ModelChanged(self._other_space(url, info, expected, space))
        replies = [reply for _, reply in alone]
        job_wire, reason = self._choose_wire(url, info, texts, space, batch_limit)
        return EndpointProfile(
            url=url,
            info=info,
            space=expected or space,
            canary_tokens=int(replies[0].number("x-compute-tokens")),
            seconds_per_text=max(reply.seconds for reply in replies),
            wire=job_wire,
            wire_reason=reason,
        )

    def embed_canary(self, url: str, wire: Wire, timeout: float | None = None) -> Vectors:
        """Return the canary's vector, float32[dimensions], sent alone; raise as `read_profile`.

        Args:
            url: of the endpoint.
            wire: the format.
            timeout: seconds; None for the settings' own.
        """
        vectors, _ = self._embed(url, wire, [CANARY_TEXT], timeout)
        vector: Vectors = vectors[0]
        return vector

    def _embed_all(self, url: str, wire: Wire, texts: Sequence[str], batch_limit: int) -> Vectors:
        """Return vectors of texts sent together, as far as the server takes them in one request."""
        parts = [texts[start : start + batch_limit] for start in range(0, len(texts), batch_limit)]
        try:
            return _stacked([self._embed(url, wire, part)[0] for part in parts])
        except Unavailable as error:
            if error.failure.action is not Action.SHRINK or batch_limit == 1:
                raise
            return self._embed_all(url, wire, texts, (min(batch_limit, len(texts)) + 1) // 2)

    def _embed(self, url: str, wire: Wire, texts: Sequence[str], timeout: float | None = None) -> tuple[Vectors, Reply]:
        reply = self._answer(f"{url}{wire.path}", wire.encode(texts), timeout)
        try:
            rows = wire.decode(reply.body, len(texts), None)
        except (UnreadableReply, WrongCount) as error:
            raise Unavailable(doubtful_reply(str(error))) from error
        if not rows.good.all():
            raise Unavailable(doubtful_reply("a vector with nulls or of zeros for a probe sentence"))
        return rows.values, reply

    def _choose_wire(
        self, url: str, info: ServerInfo, texts: Sequence[str], space: VectorSpace, batch_limit: int
    ) -> tuple[Wire, str]:
        """Return the format that costs least of those that give the space's vectors, and the reason."""
        json = embed_json(self._settings)
        reason = why_not_base64(
            self._settings, auto_truncate=info.auto_truncate, pooling=info.pooling, version=info.version
        )
        if reason is not None:
            return json, reason
        base64 = openai_base64(self._settings)
        # Where overlong texts are dead letters, this route refuses the probe that is too long.
        count = len(texts) if info.auto_truncate else len(texts) - 1
        for attempt in itertools.count(1):
            try:
                vectors = self._embed_all(url, base64, texts[:count], batch_limit)
            except EndpointRefused as error:
                return json, f"{base64.path} cannot be used: {error}"
            except Unavailable as error:
                # While /embed works, an answer of this route's own is the route's failure.
                if error.failure.status is None or error.failure.action is Action.SLOW_DOWN:
                    raise
                if attempt == ROUTE_TRIES:
                    return json, f"{base64.path} cannot be used: {error}"
                self._pause(attempt)
                continue
            if vectors.shape[1] != space.dimensions or not all(
                cosine(one, other) >= space.min_cosine for one, other in zip(vectors, space.vectors, strict=False)
            ):
                return json, f"{base64.path} gives other vectors"
            return base64, "it gives the same vectors in a third of the bytes"
        raise AssertionError("the attempts never end the loop")

    def _answer(self, target: str, body: bytes, timeout: float | None) -> Reply:
        """Return one request's reply; a refusal under load is tried again by itself, not with all that went before."""
        for attempt in itertools.count():
            try:
                reply = self._transport.post(target, body, timeout)
            except NoReply as error:
                raise Unavailable(no_reply(str(error), timed_out=error.timed_out)) from error
            if reply.status == 200:
                return reply
            if reply.status != 429 or attempt == OVERLOAD_TRIES or "retry-after" in reply.headers:
                self._raise_failure(target, reply)
            self._pause(attempt)
        raise AssertionError("the attempts never end the loop")

    def _raise_failure(self, target: str, reply: Reply) -> None:
        failure = classify(reply.status, reply.headers, reply.body)
        # What the server finds wrong with a short sentence is wrong with the job's settings.
        refused = reply.status in (*MISSING_ROUTE, 413) or (
            reply.status == 422 and failure.action is Action.SPLIT and failure.from_server
        )
        if failure.action is Action.STOP or refused:
            raise refusal(target, failure, self._settings, reply.headers)
        raise Unavailable(failure)

    def _why_no_info(self, url: str, status: int) -> str:
        """Return the likely cause of a missing `/info`."""
        try:
            models = self._transport.get(f"{url}/v1/models")
            openai = models.status == 200 and isinstance(orjson.loads(models.body).get("data"), list)
        except (NoReply, orjson.JSONDecodeError, AttributeError):
            openai = False
        if openai:
            return (
                f"{url} is an OpenAI-compatible server (it has /v1/models) and not Text Embeddings Inference: "
                "such servers are not supported yet. Name a TEI server with --endpoint."
            )
        return (
            f"{url}/info answers {status}: nothing there speaks TEI's protocol. Is a path prefix of a gateway missing "
            "from --endpoint, or is this the address of another server?"
        )

    def _other_space(self, url: str, info: ServerInfo, expected: VectorSpace, found: VectorSpace) -> str:
        prompt = self._settings.prompt_name or "the server's default"
        names = f"{info.model_id}, revision {info.model_sha or 'unknown'}, TEI {info.version}, prompt {prompt}"
        if found.dimensions != expected.dimensions:
            return (
                f"{url} ({names}) gives vectors of {found.dimensions} dimensions; those of this job have "
                f"{expected.dimensions}. It serves another model, whatever its name."
            )
        return (
            f"{url} ({names}) gives the probe sentences other vectors than this job's: the worst cosine is "
            f"{expected.worst_cosine(found):.4f}, and at least {min(expected.min_cosine, found.min_cosine):.4f} is "
            "needed. Another model, revision, prompt or truncation is served there, whatever its name."
        )


def refusal(
    url: str, failure: Failure, settings: EndpointSettings, headers: Mapping[str, str] | None = None
) -> EndpointRefused:
    """Return the error that stops the run: the URL, the status, and the remedy."""
    message = f": {failure.message}" if failure.message else ""
    return EndpointRefused(f"{url} answered {failure.status}{message}. {_remedy(failure, settings, headers or {})}")


def _remedy(failure: Failure, settings: EndpointSettings, headers: Mapping[str, str]) -> str:
    status = failure.status or 0
    if status == 401 and settings.token is None and not settings.headers:
        return "It wants a token: name one with --token (env:NAME, file:PATH or gsm:RESOURCE)"
    if status == 401:
        named = [f"--token {settings.token}"] if settings.token else []
        named += [f"--header {name}" for name, _ in settings.headers]
        return f"It does not accept what is named by {' and '.join(named)}"
    if status == 403:
        return "The token, or the lack of one, gives no right to this endpoint"
    if status in MISSING_ROUTE:
        return "--endpoint wants the server's base URL, without a path such as /embed or /v1"
    if 300 <= status < 400:
        target = _without_query(headers.get("location"))
        return f"It redirects to {target}: redirects are not followed; name the right URL with --endpoint"
    if status == 400:
        return "A paused or failed Inference Endpoint answers so: resume it at https://endpoints.huggingface.co"
    if status == 424:
        return "It does not serve a model that gives one vector a text"
    if status in (413, 422) and "`dimensions`" in failure.message:
        return f"The model cannot give --dimensions {settings.dimensions}; choose fewer, or leave the option out"
    if status in (413, 422) and "prompt" in failure.message:
        return f"The model does not know the prompt of --prompt_name {settings.prompt_name}"
    if status in (413, 422):
        return "It refuses even a short probe sentence under this job's settings"
    return "Trying again cannot help"


def _without_query(location: str | None) -> str:
    if not location:
        return "nowhere"
    try:
        parts = urlsplit(location)
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else parts.path


def parse_info(body: bytes, url: str) -> ServerInfo:
    """Return the content of an `/info` reply.

    Raises:
        NotTei: it is not TEI's.
        EndpointRefused: the model does not embed.
    """
    try:
        info = _server_info(orjson.loads(body))
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotTei(
            f"{url}/info does not answer as Text Embeddings Inference does: is this the base URL of a TEI server?"
        ) from error
    if info.model_type != "embedding":
        raise EndpointRefused(f"{url} serves {info.model_id}, a {info.model_type} model: it cannot embed")
    return info


def _server_info(info: Mapping[str, Any]) -> ServerInfo:
    model_type, details = _model_type(info.get("model_type"))
    return ServerInfo(
        model_id=_name(info["model_id"]),
        model_sha=_name_or_none(info.get("model_sha")),
        model_dtype=_name(info.get("model_dtype")),
        pooling=_name_or_none(details.get("pooling")),
        model_type=model_type,
        max_concurrent_requests=_limit(info["max_concurrent_requests"]),
        max_input_length=_limit(info["max_input_length"]),
        max_client_batch_size=_limit(info["max_client_batch_size"]),
        auto_truncate=info.get("auto_truncate"),
        version=_name(info.get("version")),
    )


def _stacked(parts: Sequence[Vectors]) -> Vectors:
    _require_one_size(parts)
    vectors: Vectors = np.concatenate(parts)
    return vectors


def _require_one_size(parts: Sequence[Vectors]) -> None:
    sizes = sorted({part.shape[1] for part in parts})
    if len(sizes) > 1:
        problem = f"vectors of {sizes[0]} and of {sizes[-1]} dimensions for probe sentences"
        raise Unavailable(doubtful_reply(problem)) from WrongCount(problem)


def _model_type(value: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if not value:
            raise ValueError("the kind of model is missing")
        name, details = next(iter(value.items()))
        return _name(name).lower(), details if isinstance(details, Mapping) else {}
    return _name(value).lower(), {}


def _name_or_none(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else _name(value)
    raise TypeError(f"{value!r} is not a name")


def _name(value: object) -> str:
    """Return a name of one line: it is printed beside lines of ours, and one with a newline could look like them."""
    name = str(value)
    if not name.isprintable():
        raise ValueError(f"{name!a} is not a name")
    return name


def _limit(value: object) -> int:
    # Python refuses to convert thousands of digits; the first twenty alone are more than MAX_LIMIT.
    number = int(str(value)[:20])
    if number < 1:
        raise ValueError(f"{number} is not a limit")
    return min(number, MAX_LIMIT)
