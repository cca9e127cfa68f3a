"""The server as a simulator: a device of known speed, faults on demand, and counts of what the client did."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Send

from pipeline.embedded_tei import refusals
from pipeline.embedded_tei.app import TeiApp
from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.engine import Embedded, Engine
from pipeline.embedded_tei.faults import Fault, Faults
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.hash_model import HashModel
from pipeline.embedded_tei.models.registry import Encoded, Encoding, Vectors
from pipeline.embedded_tei.statistics import Statistics
from pipeline.embedded_tei.wire import EmbedRequest

CONTROL = "/_simulator/"

_SECONDS_A_DROP = 0.05
_GATEWAY = {
    Fault.THROTTLE: (429, "Too Many Requests"),
    Fault.BAD_GATEWAY: (502, "Bad Gateway"),
    Fault.UNAVAILABLE: (503, "Service Temporarily Unavailable"),
    Fault.GATEWAY_TIMEOUT: (504, "Gateway Time-out"),
    Fault.FORBIDDEN: (403, "Forbidden"),
    Fault.NOT_FOUND: (404, "Not Found"),
}
_TOLD_WHEN = frozenset({Fault.THROTTLE, Fault.UNAVAILABLE})


class GatewayAnswer(Exception):
    """A response that something in front of TEI gives."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


class _MarkedModel(HashModel):
    """A hash model that cannot tokenize texts with a marker."""

    refuse_marker: str | None = None

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        if self.refuse_marker is not None and self.refuse_marker in text:
            raise refusals.invalid("`inputs` must not hold the marker of the simulator")
        return super().encode(text, prompt, encoding)


class SimulatedTei(TeiApp):
    """TEI over the hash model, with faults.

    `GET /_simulator/faults` tells the faults, `POST` replaces them; `GET /_simulator/stats` tells the counts, `POST`
    starts them again; `POST /_simulator/crash` crashes now.

    Args:
        limits: the server's limits.
        faults: what goes wrong from the start.

    Attributes:
        crash: resets all connections, and refuses new ones for some seconds; the server's hook.
    """

    def __init__(self, limits: ServerLimits, faults: Faults) -> None:
        super().__init__(Engine(_MarkedModel(faults.model_seed), limits, self._compute))
        self.crash: Callable[[float], None] | None = None
        self.statistics = Statistics()
        self._changed = asyncio.Event()
        self.set_faults(faults)
        self.routes |= {
            f"{CONTROL}faults": {"GET": self._get_faults, "POST": self._post_faults},
            f"{CONTROL}stats": {"GET": self._get_stats, "POST": self._post_stats},
            f"{CONTROL}crash": {"POST": self._post_crash},
        }

    def set_faults(self, faults: Faults) -> None:
        """Replaces the faults: script and chance begin again, and the batch that is on the device is done at once."""
        self.faults = faults
        self._free_at = 0.0
        self._changed.set()
        self._changed = asyncio.Event()
        self._script = deque(faults.script)
        self._random = random.Random(faults.seed)
        self._awake_at: float | None = None
        model = self.engine.model
        if model.sha != _MarkedModel.sha_of(faults.model_seed):
            model = self.engine.model = _MarkedModel(faults.model_seed)
        assert isinstance(model, _MarkedModel)
        model.refuse_marker = faults.refuse_marker

    async def respond(self, request: Request) -> Response:
        """As TEI does, behind a gateway."""
        try:
            if not request.scope["path"].startswith(CONTROL):
                await self._wake(request)
            return await super().respond(request)
        except GatewayAnswer as answer:
            return answer.response

    async def _wake(self, request: Request) -> None:
        """Starts an endpoint that is scaled to zero; a request waits for it as long as it says that it will."""
        if not self.faults.wake_seconds:
            return
        now = time.perf_counter()
        self._awake_at = self._awake_at or now + self.faults.wake_seconds
        asleep, patience = self._awake_at - now, float(request.headers.get("x-scale-up-timeout", "0"))
        if asleep > 0:
            await asyncio.sleep(min(asleep, patience))
        if asleep > patience:
            raise GatewayAnswer(self._page(Fault.UNAVAILABLE))

    def needs_key(self, request: Request) -> bool:
        """As TEI, but the control routes are open."""
        return not request.scope["path"].startswith(CONTROL) and super().needs_key(request)

    async def answer(self, request: Request, asked: EmbedRequest) -> Embedded:
        """Embeds, unless a fault comes before."""
        fault = self._next_fault() if self.faults.embed else Fault.OK
        self.statistics.begin(asked)
        try:
            await self._fail_before(fault, request)
            embedded = _damaged(await super().answer(request, asked), fault)
        except refusals.Refusal as refusal:
            self.statistics.rejected += refusal.error_type is refusals.ErrorType.OVERLOADED
            raise
        finally:
            self.statistics.end(asked)
        self.statistics.answered += 1
        request.scope["fault"] = fault
        return embedded

    async def _info(self, request: Request) -> Response:
        fault = self._next_fault() if self.faults.info else Fault.OK
        self.statistics.info_requests += 1
        self.statistics.info_faults += fault is not Fault.OK
        await self._fail_before(fault, request)
        request.scope["fault"] = fault
        return await super()._info(request)

    async def send(self, request: Request, response: Response, send: Send) -> None:
        """Sends a response, or half of it."""
        fault = request.scope.get("fault")
        if fault not in (Fault.CUT, Fault.END_EARLY, Fault.DRIP):
            await super().send(request, response, send)
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
        """Sends a byte now and then, until the client goes."""
        connection = _connection(request)
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        for byte in bytes(response.body)[:-1]:
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.lost.wait(), _SECONDS_A_DROP)
                return
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
        """Raises what answers the request in the model's place, if the fault does."""
        if fault is Fault.REJECT:
            raise refusals.overloaded()
        if fault is Fault.BACKEND:
            raise refusals.backend("Inference error: out of memory")
        if fault in (Fault.RESET, Fault.HANG, Fault.CRASH):
            await self._vanish(fault, request)
        answer = self._gateway_answer(fault, request)
        if answer is not None:
            self.statistics.rejected += answer.status_code == 429
            raise GatewayAnswer(answer)

    async def _vanish(self, fault: Fault, request: Request) -> None:
        connection = _connection(request)
        if fault is Fault.RESET:
            connection.reset()
        elif fault is Fault.CRASH and self.crash is not None:
            self.crash(self.faults.crash_seconds)
        await connection.lost.wait()
        connection.reset()
        raise ClientDisconnect

    def _gateway_answer(self, fault: Fault, request: Request) -> Response | None:
        if fault is Fault.UNAUTHORIZED:
            return Response(status_code=401)
        if fault is Fault.PAUSED:
            return Response(b'{"error":"Bad Request: Invalid state"}', 400, media_type="application/json")
        if fault is Fault.REDIRECT:
            return Response(status_code=307, headers={"location": f"{self.faults.redirect}{request.scope['path']}"})
        return self._page(fault) if fault in _GATEWAY else None

    def _page(self, fault: Fault) -> Response:
        status, title = _GATEWAY[fault]
        told = self.faults.retry_after if fault in _TOLD_WHEN else None
        headers = {} if told is None else {"retry-after": f"{told:g}"}
        page = f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body><h1>{title}</h1></body>\r\n</html>\r\n"
        return Response(page, status, headers, media_type="text/html")

    async def _compute(self, texts: Sequence[Encoded], waiting_since: float) -> Vectors:
        """The device: takes its time, then fails or embeds."""
        faults, tokens = self.faults, sum([text.tokens for text in texts])
        seconds = faults.batch_seconds + (tokens / faults.tokens_per_second if faults.tokens_per_second else 0.0)
        self.statistics.batches += 1
        self.statistics.tokens += tokens
        if seconds:
            await self._take(seconds, waiting_since)
        poison = faults.poison_marker
        if poison is not None and any(poison in text.text for text in texts):
            raise RuntimeError("Inference error: poisoned batch")
        if faults.backend and self._random.random() < faults.backend:
            raise RuntimeError("Inference error: out of memory")
        return self._with_nulls(self.engine.model.embed(texts), texts)

    async def _take(self, seconds: float, waiting_since: float) -> None:
        """Waits as long as the device is to be busy, or until the faults change.

        A device begins a batch that waits for it as soon as it is free, however late this process is to know.
        """
        began = max(self._free_at, waiting_since)
        self._free_at = ended = began + seconds
        try:
            await asyncio.wait_for(self._changed.wait(), ended - time.perf_counter())
        except asyncio.TimeoutError:
            self.statistics.compute(began, ended)
        else:
            self.statistics.compute(began, time.perf_counter())

    def _with_nulls(self, vectors: Vectors, texts: Sequence[Encoded]) -> Vectors:
        chance, marker = self.faults.null_rows, self.faults.null_marker
        for row, text in enumerate(texts):
            if marker is not None and marker in text.text:
                vectors[row] = np.nan
            elif chance and self._random.random() < chance:
                vectors[row, self._random.randrange(vectors.shape[1])] = np.nan
        return vectors

    async def _get_faults(self, _: Request) -> Response:
        return Response(self.faults.to_json(), media_type="application/json")

    async def _post_faults(self, request: Request) -> Response:
        try:
            self.set_faults(Faults.from_json(await request.body()))
        except (ValueError, TypeError) as error:
            raise refusals.PlainRefusal(422, str(error)) from error
        return await self._get_faults(request)

    async def _get_stats(self, _: Request) -> Response:
        return Response(orjson.dumps(self.statistics.told()), media_type="application/json")

    async def _post_stats(self, request: Request) -> Response:
        self.statistics = self.statistics.anew()
        return await self._get_stats(request)

    async def _post_crash(self, request: Request) -> Response:
        await self._vanish(Fault.CRASH, request)
        return Response()


def _damaged(embedded: Embedded, fault: Fault) -> Embedded:
    if fault is Fault.SHORT_REPLY:
        return replace(embedded, vectors=embedded.vectors[:-1])
    if fault is Fault.PERMUTED:
        return replace(embedded, vectors=np.roll(embedded.vectors, 1, axis=0))
    if fault is Fault.WRONG_DIMENSIONS:
        return replace(embedded, vectors=np.ascontiguousarray(embedded.vectors[:, :-1]))
    return embedded


def _connection(request: Request) -> Connection:
    connection = request.scope["state"]["connection"]
    assert isinstance(connection, Connection)
    return connection
