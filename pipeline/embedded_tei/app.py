"""TEI's HTTP routes over an `Engine`, as an ASGI application."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.embedded_tei import openapi, refusals, wire
from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.engine import Embedded, Engine
from pipeline.embedded_tei.refusals import ErrorType, PlainRefusal, Refusal

Handler = Callable[[Request], Awaitable[Response]]

_OPEN_PATHS = frozenset({"/", "/health", "/ping", "/metrics", "/api-doc/openapi.json"})
_CORS_HEADERS = [
    (b"vary", b"origin, access-control-request-method, access-control-request-headers"),
    (b"access-control-allow-origin", b"*"),
]
_PREFLIGHT_HEADERS = {"access-control-allow-methods": "GET,POST", "access-control-allow-headers": "content-type"}
_OTHER_MODELS = {
    "/embed_sparse": "Model is not an embedding model with SPLADE pooling",
    "/predict": "Model is not a classifier model",
    "/rerank": "model is not a re-ranker model",
}


class TeiApp:
    """The application.

    Args:
        engine: what embeds.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        key = engine.limits.api_key
        self._authorization = None if key is None else f"Bearer {key}"
        self.routes: dict[str, Mapping[str, Handler]] = {
            "/": {"GET": self._health, "POST": self._embed},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/api-doc/openapi.json": {"GET": self._openapi},
            "/info": {"GET": self._info},
            "/embed": {"POST": self._embed},
            "/invocations": {"POST": self._embed},
            "/v1/embeddings": {"POST": self._openai},
            "/embeddings": {"POST": self._openai},
            "/tokenize": {"POST": self._tokenize},
            "/decode": {"POST": self._decode},
            **{path: {"POST": self._other_model} for path in _OTHER_MODELS},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        request = Request(scope, receive, send)
        response = await self.respond(request)
        response.raw_headers.extend(_CORS_HEADERS)
        await self.send(request, response, send)

    async def send(self, request: Request, response: Response, send: Send) -> None:
        """Sends a response."""
        await response(request.scope, request.receive, send)

    async def respond(self, request: Request) -> Response:
        """Finds the handler and turns refusals into responses."""
        path = request.scope["path"]
        methods = self.routes.get(path)
        method = "GET" if request.method == "HEAD" else request.method
        if method == "OPTIONS":
            return Response(headers=_PREFLIGHT_HEADERS)
        if methods is None:
            return Response(status_code=404)
        try:
            self._authorize(request)
            if method not in methods:
                return Response(status_code=405, headers={"allow": ",".join(methods)})
            return await methods[method](request)
        except Refusal as refusal:
            self.engine.metrics.count("te_request_failure", err=refusal.cause)
            return refusal.response(path, is_old=self.engine.limits.is_old)
        except PlainRefusal as refusal:
            return refusal.response()
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    def needs_key(self, request: Request) -> bool:
        """Whether a request must carry the key, if there is one."""
        path = request.scope["path"]
        return path not in _OPEN_PATHS or (path, request.method) == ("/", "POST")

    def _authorize(self, request: Request) -> None:
        if self._authorization is None or not self.needs_key(request):
            return
        told = request.headers.get("authorization", "")
        if not hmac.compare_digest(told.encode(), self._authorization.encode()):
            raise PlainRefusal(401)

    async def _read(self, request: Request) -> wire.Body:
        """Reads a JSON body: its type is checked first, then its length, then what it says."""
        if not _is_json(request.headers.get("content-type", "")):
            raise PlainRefusal(415, "Expected request with `Content-Type: application/json`")
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= self.engine.limits.payload_limit:
                chunks.append(chunk)
        # The rest was read as well, so that the client gets an answer and not a broken pipe.
        if size > self.engine.limits.payload_limit:
            raise PlainRefusal(413, "Failed to buffer the request body: length limit exceeded")
        return wire.parse_json(b"".join(chunks))

    async def _embed(self, request: Request) -> Response:
        embedded, _ = await self._run(request, wire.parse_embed)
        return _json(wire.render_rows(embedded.vectors), embedded.headers())

    async def _openai(self, request: Request) -> Response:
        embedded, asked = await self._run(request, wire.parse_openai)
        rows = wire.render_base64(embedded.vectors) if asked.base64 else wire.render_each(embedded.vectors)
        body = wire.render_openai(rows, self.engine.model.model_id, embedded.tokens)
        return _json(body, embedded.headers())

    async def _run(
        self, request: Request, parse: Callable[[wire.Body], wire.EmbedRequest]
    ) -> tuple[Embedded, wire.EmbedRequest]:
        asked = parse(await self._read(request))
        self.engine.metrics.count("te_request_count", method="batch" if asked.is_batch else "single")
        return await self.answer(request, asked), asked

    async def answer(self, request: Request, asked: wire.EmbedRequest) -> Embedded:
        """Embeds what is asked."""
        connection: Connection | None = request.scope.get("state", {}).get("connection")
        return await self.engine.embed(asked, connection)

    async def _tokenize(self, request: Request) -> Response:
        asked = wire.parse_tokenize(await self._read(request))
        return _json(wire.render_tokens(await self.engine.tokenize(asked)))

    async def _decode(self, request: Request) -> Response:
        asked = wire.parse_decode(await self._read(request))
        return _json(orjson.dumps(await self.engine.decode(asked)))

    async def _other_model(self, request: Request) -> Response:
        await self._read(request)
        raise refusals.backend(_OTHER_MODELS[request.scope["path"]])

    async def _health(self, _: Request) -> Response:
        if not await self.engine.check_health():
            raise Refusal("unhealthy", ErrorType.UNHEALTHY, "unhealthy")
        return Response()

    async def _metrics(self, _: Request) -> Response:
        return Response(self.engine.metrics.render(), media_type="text/plain")

    async def _info(self, _: Request) -> Response:
        return _json(orjson.dumps(self.info()))

    async def _openapi(self, _: Request) -> Response:
        return _json(orjson.dumps(openapi.describe(self.engine.model, self.engine.limits)))

    def info(self) -> dict[str, object]:
        """What `/info` tells, in TEI's order."""
        model, limits = self.engine.model, self.engine.limits
        info: dict[str, object] = {
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
            "version": limits.version,
            "sha": None,
            "docker_label": None,
        }
        if limits.is_old:
            del info["served_model_name"]
        return info


def _json(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, headers=headers, media_type="application/json")


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
