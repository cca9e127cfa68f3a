"""TEI's HTTP routes over an `Engine`, as an ASGI application."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.embedded_tei import wire
from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.engine import Embedded, Engine
from pipeline.embedded_tei.refusals import ErrorType, PlainRefusal, Refusal

Handler = Callable[[Request], Awaitable[Response]]

_VERSION = "1.9.3"  # of the TEI whose replies these are
_PORT = re.compile(r":\d*$")
_OPEN_PATHS = frozenset({"/", "/health", "/ping"})


class TeiApp:
    """The application.

    Args:
        engine: what embeds.

    Attributes:
        hosts: the names that requests may have in their Host header, without a port; None for any. A web page whose
            own name resolves to 127.0.0.1 could otherwise read what this server replies.
        routes: handlers by path and method.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.hosts: frozenset[str] | None = None
        key = engine.limits.api_key
        self._authorization = None if key is None else f"Bearer {key}"
        self.routes: dict[str, Mapping[str, Handler]] = {
            "/": {"GET": self._health, "POST": self._embed},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health},
            "/info": {"GET": self._info},
            "/embed": {"POST": self._embed},
            "/v1/embeddings": {"POST": self._openai},
            "/embeddings": {"POST": self._openai},
            "/tokenize": {"POST": self._tokenize},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = await self.respond(Request(scope, receive, send))
        await response(scope, receive, send)

    async def respond(self, request: Request) -> Response:
        """Find the handler and turn refusals into responses."""
        path = request.scope["path"]
        methods = self.routes.get(path)
        method = "GET" if request.method == "HEAD" else request.method
        try:
            self._check_host(request)
            if methods is None:
                return Response(status_code=404)
            self.authorize(request)
            if method not in methods:
                return Response(status_code=405, headers={"allow": ",".join(methods)})
            return await methods[method](request)
        except Refusal as refusal:
            return refusal.response(path)
        except PlainRefusal as refusal:
            return refusal.response()
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    def _check_host(self, request: Request) -> None:
        # The port is left out: probes send none, and a page cannot choose it apart from the name.
        host = _PORT.sub("", request.headers.get("host", "").lower())
        if self.hosts is not None and host not in self.hosts:
            raise PlainRefusal(421, f"This server is at {' or '.join(sorted(self.hosts))}, not {host!r}")

    def authorize(self, request: Request) -> None:
        """Refuse a request that needs the API key and does not carry it."""
        path = request.scope["path"]
        is_open = path in _OPEN_PATHS and (path, request.method) != ("/", "POST")
        if self._authorization is None or is_open:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), self._authorization.encode()):
            raise PlainRefusal(401)

    async def _read(self, request: Request) -> wire.Body:
        """Read a JSON body; TEI checks its content type first, then its length, then what it holds."""
        if not _is_json(request.headers.get("content-type", "")):
            raise PlainRefusal(415, "Expected request with `Content-Type: application/json`")
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= self.engine.limits.payload_limit:
                chunks.append(chunk)
        # The rest is read as well, so that the client gets a response and not a broken pipe.
        if size > self.engine.limits.payload_limit:
            raise PlainRefusal(413, "Failed to buffer the request body: length limit exceeded")
        return wire.parse_json(b"".join(chunks))

    async def _embed(self, request: Request) -> Response:
        embedded = await self.answer(request, wire.parse_embed(await self._read(request)))
        return _json(wire.render_rows(embedded.vectors), embedded.headers())

    async def _openai(self, request: Request) -> Response:
        parsed = wire.parse_openai(await self._read(request))
        embedded = await self.answer(request, parsed)
        rows = wire.render_base64(embedded.vectors) if parsed.base64 else wire.render_each(embedded.vectors)
        body = wire.render_openai(rows, self.engine.device.model.model_id, embedded.tokens)
        return _json(body, embedded.headers())

    async def answer(self, request: Request, parsed: wire.EmbedRequest) -> Embedded:
        """Embed the texts of a request."""
        connection: Connection | None = request.scope.get("state", {}).get("connection")
        return await self.engine.embed(parsed, connection)

    async def _tokenize(self, request: Request) -> Response:
        parsed = wire.parse_tokenize(await self._read(request))
        return _json(orjson.dumps(await self.engine.tokenize(parsed)))

    async def _health(self, _: Request) -> Response:
        if not await self.engine.check_health():
            raise Refusal("unhealthy", ErrorType.UNHEALTHY)
        return Response()

    async def _info(self, _: Request) -> Response:
        return _json(orjson.dumps(self.info()))

    def info(self) -> dict[str, object]:
        """Return what `/info` replies, in TEI's order."""
        model, limits = self.engine.device.model, self.engine.limits
        return {
            "model_id": model.model_id,
            "model_sha": model.sha,
            "model_dtype": model.dtype,
            "served_model_name": model.model_id,
            "model_type": {"embedding": {"pooling": model.pooling}},
            "max_concurrent_requests": limits.max_concurrent_requests,
            "max_input_length": self.engine.max_input_length,
            "max_batch_tokens": limits.max_batch_tokens,
            "max_batch_requests": limits.max_batch_requests,
            "max_client_batch_size": limits.max_client_batch_size,
            "auto_truncate": limits.auto_truncate,
            "tokenization_workers": limits.tokenization_workers,
            "version": _VERSION,
            "sha": None,
            "docker_label": None,
        }


def _json(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, headers=headers, media_type="application/json")


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
