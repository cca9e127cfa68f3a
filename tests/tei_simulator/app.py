"""The server as a simulator: faults on demand, in front of and behind the model, and counts of what clients did."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.embedded_tei import refusals
from pipeline.embedded_tei.app import TeiApp
from pipeline.embedded_tei.engine import Embedded, Engine
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import Encoded, Encoding
from pipeline.embedded_tei.wire import EmbedRequest
from tests.tei_simulator.connection import BreakableConnection
from tests.tei_simulator.device import SimulatedDevice
from tests.tei_simulator.faults import Fault, Faults
from tests.tei_simulator.hash_model import HashModel
from tests.tei_simulator.statistics import Statistics

CONTROL = "/simulator/"

_DRIP_SECONDS = 0.05  # between two bytes
_GATEWAY = {
    Fault.THROTTLE: (429, "Too Many Requests"),
    Fault.BAD_GATEWAY: (502, "Bad Gateway"),
    Fault.UNAVAILABLE: (503, "Service Temporarily Unavailable"),
    Fault.GATEWAY_TIMEOUT: (504, "Gateway Time-out"),
    Fault.FORBIDDEN: (403, "Forbidden"),
    Fault.NOT_FOUND: (404, "Not Found"),
}
_WITH_RETRY_AFTER = frozenset({Fault.THROTTLE, Fault.UNAVAILABLE})
_OPENAI_PATHS = frozenset({"/v1/models", "/v1/embeddings"})


class GatewayReply(Exception):
    """A response that something in front of TEI gives."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


class _MarkedModel(HashModel):
    """A hash model that cannot tokenize texts with a marker, and may put a prompt before every text."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults.model_seed)
        if faults.same_name:
            self.sha = self.sha_of(0)
        if faults.default_prompt is not None:
            self.prompts = {**self.prompts, "default": faults.default_prompt}
            self.default_prompt = "default"
        self._refuse_marker = faults.refuse_marker

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        if self._refuse_marker is not None and self._refuse_marker in text:
            raise refusals.invalid("`inputs` must not hold the marker of the simulator")
        return super().encode(text, prompt, encoding)


class SimulatedTei(TeiApp):
    """TEI over the hash model, with faults.

    `GET /simulator/faults` returns the faults; `POST` replaces all of them, starts script and chance again, and ends
    the running batch at once; `PATCH` changes some while everything goes on. `GET /simulator/statistics` returns the
    counts, `POST` starts them again. `POST /simulator/crash` crashes now.

    Args:
        limits: the server's limits.
        faults: what goes wrong from the start.
        is_old: whether to reply as TEI 1.8.

    Attributes:
        crash: resets all connections, and refuses new ones for some seconds; the server's hook.
    """

    def __init__(self, limits: ServerLimits, faults: Faults, *, is_old: bool = False) -> None:
        self.device = SimulatedDevice(_MarkedModel(faults), limits, faults, is_old=is_old)
        self._is_old = is_old
        super().__init__(Engine(self.device, limits))
        self.crash: Callable[[float], None] | None = None
        self.set_faults(faults)
        self.routes |= {
            "/v1/models": {"GET": self._models},
            f"{CONTROL}faults": {"GET": self._get_faults, "POST": self._post_faults, "PATCH": self._patch_faults},
            f"{CONTROL}statistics": {"GET": self._get_statistics, "POST": self._post_statistics},
            f"{CONTROL}crash": {"POST": self._post_crash},
        }

    @property
    def statistics(self) -> Statistics:
        """The counts."""
        return self.device.statistics

    def set_faults(self, faults: Faults) -> None:
        """Replace the faults: script and chance begin again, and the batch that is on the device is done at once."""
        self.device.restart(faults)
        self._script = deque(faults.script)
        self._random = random.Random(faults.seed)
        self._awake_at: float | None = None
        self._cache: dict[object, Response] = {}
        self._token, self._token_uses = "", 0
        self._texts_before_swap = 0
        self._follow(faults)

    def change_faults(self, changes: dict[str, object]) -> None:
        """Change some faults; the rest of the running batch takes its time at the new speed."""
        faults = self.faults.changed(changes)
        self.device.change(faults)
        if "script" in changes:
            self._script = deque(faults.script)
        if "swap_at" in changes:
            self._texts_before_swap = 0
        self._follow(faults)

    def _follow(self, faults: Faults) -> None:
        self.faults = faults
        self.device.model = _MarkedModel(faults)
        self._other_model = HashModel(faults.other_seed) if faults.mix or faults.swap_at is not None else None

    async def respond(self, request: Request) -> Response:
        """Respond as TEI does, behind a network and a gateway."""
        if request.scope["path"].startswith(CONTROL):
            return await super().respond(request)
        try:
            await self._travel(request)
            response = await self._respond_as_gateway(request)
            await self._travel(request)
        except GatewayReply as reply:
            return reply.response
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        return response

    async def _travel(self, request: Request) -> None:
        """Spend half of the network's latency.

        Raises:
            ClientDisconnect: if the client closes its connection meanwhile.
        """
        if self.faults.latency_seconds:
            await _wait_for_end(_connection(request), self.faults.latency_seconds / 2)

    async def _respond_as_gateway(self, request: Request) -> Response:
        path, faults = request.scope["path"], self.faults
        await self._wake(request)
        is_hidden = path not in _OPENAI_PATHS if faults.openai_only else path == "/v1/models"
        if is_hidden or (faults.no_info and path == "/info"):
            return Response(status_code=404)
        key = None if faults.cache is None or request.method != "POST" else await self._cache_key(request)
        if key in self._cache:
            self.statistics.cache_hits += 1
            return self._cache[key]
        response = await super().respond(request)
        if self._is_old:
            response = _as_in_1_8(response)
        if faults.openai_only or faults.time_headers == "none":
            for name in [name for name in response.headers if name.startswith("x-")]:
                del response.headers[name]
        elif faults.time_headers == "zero" and "x-queue-time" in response.headers:
            response.headers["x-queue-time"] = response.headers["x-inference-time"] = "0"
        if key is not None and response.status_code == 200:
            self._cache[key] = response
        return response

    async def _cache_key(self, request: Request) -> object:
        body = await request.body()
        if self.faults.cache == "body":
            return request.scope["path"], body
        fields = orjson.loads(body)
        texts = fields.get("inputs", fields.get("input"))
        return request.scope["path"], texts if isinstance(texts, str) else texts[0]

    async def _wake(self, request: Request) -> None:
        """Start an endpoint that is scaled to zero; a request waits for it as long as its header allows."""
        if not self.faults.wake_seconds:
            return
        now = time.perf_counter()
        self._awake_at = self._awake_at or now + self.faults.wake_seconds
        asleep, timeout = self._awake_at - now, float(request.headers.get("x-scale-up-timeout", "0"))
        if asleep > 0:
            await asyncio.sleep(min(asleep, timeout))
        if asleep > timeout:
            raise GatewayReply(self._page(Fault.UNAVAILABLE))

    def authorize(self, request: Request) -> None:
        """Refuse a request as TEI does, or for the lack of a header or a fresh token; the control routes are open."""
        if request.scope["path"].startswith(CONTROL):
            return
        if self.faults.required_header is not None:
            name, _, value = self.faults.required_header.partition(":")
            if request.headers.get(name) != value.strip():
                raise refusals.PlainRefusal(401)
        if self.faults.token_file is not None:
            self._check_token(request, Path(self.faults.token_file).read_text().strip())
        super().authorize(request)

    def _check_token(self, request: Request, token: str) -> None:
        """Refuse all tokens but the one in the file, and that one once it was used too often."""
        if token != self._token:
            self._token, self._token_uses = token, 0
        limit = self.faults.expire_after
        if request.headers.get("authorization") != f"Bearer {token}" or (
            limit is not None and self._token_uses >= limit
        ):
            raise refusals.PlainRefusal(401)
        self._token_uses += 1

    async def answer(self, request: Request, parsed: EmbedRequest) -> Embedded:
        """Embed, unless a fault comes before."""
        is_scripted = bool(self._script)
        fault = self._next_fault() if self.faults.embed else Fault.OK
        self.statistics.begin(parsed)
        try:
            await self._fail_before(fault, request)
            embedded = await super().answer(request, parsed)
            embedded = embedded if is_scripted else self._mixed(embedded, parsed)
            embedded = _damaged(embedded, fault, self._random)
        except refusals.Refusal as refusal:
            self.statistics.rejected += refusal.error_type is refusals.ErrorType.OVERLOADED
            raise
        finally:
            self.statistics.end(parsed)
        self.statistics.answered += 1
        request.scope["fault"], request.scope["texts"] = fault, len(parsed.inputs)
        return embedded

    def _mixed(self, embedded: Embedded, parsed: EmbedRequest) -> Embedded:
        """Return what the other model would reply, if it is its turn."""
        if self._other_model is None:
            return embedded
        is_swapped = self.faults.swap_at is not None and self._texts_before_swap >= self.faults.swap_at
        self._texts_before_swap += len(embedded.texts)
        if not is_swapped and not (self.faults.mix and self._random.random() < self.faults.mix):
            return embedded
        return replace(embedded, vectors=self.engine.finish(self._other_model.embed(embedded.texts), parsed))

    async def _info(self, request: Request) -> Response:
        fault = self._next_fault() if self.faults.info else Fault.OK
        self.statistics.info_requests += 1
        self.statistics.info_faults += fault is not Fault.OK
        await self._fail_before(fault, request)
        request.scope["fault"] = fault
        return await super()._info(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or half of it."""
        request = Request(scope, receive, send)
        response = await self.respond(request)
        fault = scope.get("fault")
        if fault not in (Fault.CUT, Fault.END_EARLY, Fault.DRIP):
            is_delivered = "texts" in scope and not _connection(request).lost.is_set()
            await response(scope, receive, send)
            self.statistics.texts_delivered += scope["texts"] if is_delivered else 0
            return
        if fault is Fault.DRIP:
            await self._drip(request, response, send)
            return
        half = bytes(response.body)[: len(response.body) // 2]
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": half, "more_body": True})
        connection = _connection(request)
        connection.reset() if fault is Fault.CUT else connection.close()
        await connection.lost.wait()

    async def _drip(self, request: Request, response: Response, send: Send) -> None:
        """Send a byte now and then, until the client closes the connection."""
        connection = _connection(request)
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        for byte in bytes(response.body)[:-1]:
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            await _wait_for_end(connection, _DRIP_SECONDS)
        await connection.lost.wait()

    def _next_fault(self) -> Fault:
        if self._script:
            return self._script.popleft()
        if self.faults.paused:
            return Fault.PAUSED
        if self.faults.redirect is not None:
            return Fault.REDIRECT
        for fault, chance in self.faults.chances().items():
            if chance and self._random.random() < chance:
                return fault
        return Fault.OK

    async def _fail_before(self, fault: Fault, request: Request) -> None:
        """Raise what replies in the model's place, if the fault does."""
        if fault is Fault.REJECT:
            raise refusals.overloaded()
        if fault is Fault.BACKEND:
            raise refusals.backend("Inference error: out of memory")
        if fault in (Fault.RESET, Fault.HANG, Fault.CRASH):
            await self._vanish(fault, request)
        response = self._gateway_response(fault, request)
        if response is not None:
            self.statistics.rejected += response.status_code == 429
            raise GatewayReply(response)

    async def _vanish(self, fault: Fault, request: Request) -> None:
        connection = _connection(request)
        if fault is Fault.RESET:
            connection.reset()
        elif fault is Fault.CRASH and self.crash is not None:
            self.crash(self.faults.crash_seconds)
        await connection.lost.wait()
        connection.reset()
        raise ClientDisconnect

    def _gateway_response(self, fault: Fault, request: Request) -> Response | None:
        if fault is Fault.UNAUTHORIZED:
            return Response(status_code=401)
        if fault is Fault.PAUSED:
            return Response(b'{"error":"Bad Request: Invalid state"}', 400, media_type="application/json")
        if fault is Fault.REDIRECT:
            return Response(status_code=307, headers={"location": f"{self.faults.redirect}{request.scope['path']}"})
        return self._page(fault) if fault in _GATEWAY else None

    def _page(self, fault: Fault) -> Response:
        status, title = _GATEWAY[fault]
        seconds = self.faults.retry_after if fault in _WITH_RETRY_AFTER else None
        headers = {} if seconds is None else {"retry-after": f"{seconds:g}"}
        page = f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body><h1>{title}</h1></body>\r\n</html>\r\n"
        return Response(page, status, headers, media_type="text/html")

    def info(self) -> dict[str, object]:
        """Return what `/info` replies, with the fields that the faults replace."""
        info = super().info()
        if self._is_old:
            info["version"] = "1.8.2"
            del info["served_model_name"]
        info |= self.faults.info_fields
        return {name: value for name, value in info.items() if self.faults.info_fields.get(name, "") is not None}

    async def _models(self, _: Request) -> Response:
        model = {"id": self.device.model.model_id, "object": "model", "created": 0, "owned_by": "tayyar"}
        return _json({"object": "list", "data": [model]})

    async def _get_faults(self, _: Request) -> Response:
        return Response(self.faults.to_json(), media_type="application/json")

    async def _post_faults(self, request: Request) -> Response:
        try:
            self.set_faults(Faults.from_json(await request.body()))
        except (ValueError, TypeError) as error:
            raise refusals.PlainRefusal(422, str(error)) from error
        return await self._get_faults(request)

    async def _patch_faults(self, request: Request) -> Response:
        try:
            self.change_faults(orjson.loads(await request.body()))
        except (ValueError, TypeError) as error:
            raise refusals.PlainRefusal(422, str(error)) from error
        return await self._get_faults(request)

    async def _get_statistics(self, _: Request) -> Response:
        return _json(self.statistics.to_dict())

    async def _post_statistics(self, request: Request) -> Response:
        self.device.statistics = self.statistics.restarted()
        return await self._get_statistics(request)

    async def _post_crash(self, request: Request) -> Response:
        await self._vanish(Fault.CRASH, request)
        return Response()


async def _wait_for_end(connection: BreakableConnection, seconds: float) -> None:
    """Wait for some time, but not longer than the connection lasts.

    Raises:
        ClientDisconnect: if it ends.
    """
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(connection.lost.wait(), seconds)
        raise ClientDisconnect


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _as_in_1_8(response: Response) -> Response:
    """Return a response as TEI 1.8 gives it: whatever is wrong with the inputs is a 413 of the type Validation."""
    if response.status_code not in (400, 422) or response.media_type != "application/json":
        return response
    body = orjson.loads(response.body)
    name = "type" if "type" in body else "error_type"
    if body[name] not in (refusals.ErrorType.VALIDATION.value, refusals.ErrorType.EMPTY.value):
        return response
    changes = {name: refusals.ErrorType.VALIDATION.value, **({"code": 413} if "code" in body else {})}
    return Response(orjson.dumps(body | changes), 413, media_type="application/json")


def _damaged(embedded: Embedded, fault: Fault, rng: random.Random) -> Embedded:
    if fault is Fault.SHORT_REPLY:
        return replace(embedded, vectors=embedded.vectors[:-1])
    if fault is Fault.PERMUTED:
        return replace(embedded, vectors=np.roll(embedded.vectors, 1, axis=0))
    if fault is Fault.SHUFFLED:
        rows = rng.sample(range(len(embedded.vectors)), len(embedded.vectors))
        return replace(embedded, vectors=embedded.vectors[rows])
    if fault is Fault.SWAPPED and len(embedded.vectors) > 1:
        rows = list(range(len(embedded.vectors)))
        one, other = rng.sample(rows, 2)
        rows[one], rows[other] = other, one
        return replace(embedded, vectors=embedded.vectors[rows])
    if fault is Fault.WRONG_DIMENSIONS:
        return replace(embedded, vectors=np.ascontiguousarray(embedded.vectors[:, :-1]))
    return embedded


def _connection(request: Request) -> BreakableConnection:
    connection = request.scope["state"]["connection"]
    assert isinstance(connection, BreakableConnection)
    return connection
