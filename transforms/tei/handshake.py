"""Getting to know an endpoint: its `/info`, and a known sentence whose vector tells one model from another."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from transforms.elements import Vectors
from transforms.tei.advice import refusal
from transforms.tei.error_table import Action, Verdict, doubtful_reply, no_reply, verdict_on
from transforms.tei.errors import EndpointError, ModelChanged
from transforms.tei.formats import Wire, WireFormat, embed_json, openai_base64, what_differs
from transforms.tei.info import NotTei, ServerInfo, check_same_length, check_same_model, parse_info
from transforms.tei.settings import EndpointSettings, ModelIdentity
from transforms.tei.transport import NoReply, Reply, Transport
from transforms.tei.vectors import UnreadableReply, WrongCount

KNOWN_SENTENCE = "A current of water finds the sea: التيّار يبلغ البحر."
# Half precision and a batch's other texts move a vector by some thousandths; another text's vector is far off.
LEAST_COSINE = 0.99
MISSING_ROUTE = (404, 405)
# One reply can be damaged on its way; that several in a row are damaged alike is another model.
TRIES_TO_AGREE = 4
OVERLOAD_TRIES = 8  # of one request, where others take the server's permits
ROUTE_TRIES = 3  # of a route that fails while another works


class Unavailable(Exception):
    """The endpoint gives no answer for now; `verdict` says what it gave."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict

    def __str__(self) -> str:
        """What the endpoint said."""
        return self.verdict.message


class RouteMissing(Exception):
    """The server has no route for this format."""


class _RouteBroken(Exception):
    """The server has a route for this format that fails."""


def is_servers_failure(verdict: Verdict) -> bool:
    """Whether a route may be broken that says this."""
    return verdict.status is not None and verdict.status >= 500


@dataclass(frozen=True, slots=True)
class Known:
    """The known sentence's vector, float32[dimensions], and the tokens that the server counts for it."""

    vector: Vectors
    tokens: int

    def matches(self, vector: Vectors) -> bool:
        """Whether a vector can be the known sentence's."""
        if vector.shape != self.vector.shape:
            return False
        mine, other = self.vector.astype(np.float64), vector.astype(np.float64)
        return bool(mine @ other >= LEAST_COSINE * np.linalg.norm(mine) * np.linalg.norm(other))


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """What the first contact with an endpoint tells.

    Attributes:
        url: of the endpoint.
        info: its `/info`.
        identity: the model that everything after is checked against.
        known: the known sentence as it embeds it.
        wire: the format to use.
        why: why that format, for the log.
    """

    url: str
    info: ServerInfo
    identity: ModelIdentity
    known: Known
    wire: Wire
    why: str


class Contact:
    """Asks endpoints who they are. Holds nothing that changes; may be used from any thread."""

    def __init__(
        self, transport: Transport, settings: EndpointSettings, pause: Callable[[int], object] = lambda _: None
    ) -> None:
        self._transport = transport
        self._pause = pause  # waits before another try, told how many there were
        self._settings = settings

    def read_info(self, url: str) -> ServerInfo:
        """Reads `/info`.

        Raises:
            Unavailable: it cannot be read for now.
            EndpointRefused: it never will be.
            ModelChanged: it tells of another model than the settings pin.
        """
        target = f"{url}/info"
        reply = self._answer(target, None)
        info = parse_info(reply.body, url)
        if self._settings.identity is not None:
            check_same_model(info, self._settings.identity, url)
        return info

    def meet(self, url: str) -> Acquaintance:
        """Learns all about an endpoint; raises as `read_info`."""
        info = self.read_info(url)
        json = embed_json(self._settings)
        known = self._agreed(url, json)
        if self._settings.identity is not None:
            _check_dimensions(url, known, self._settings.identity)
        identity = info.identity(len(known.vector))
        wire, why = self._choose(url, info, json, known)
        return Acquaintance(url, info, identity, known, wire, why)

    def check(self, url: str, wire: Wire, expected: Acquaintance) -> ServerInfo:
        """Makes sure that an endpoint serves the model that was met first; raises as `read_info`, or RouteMissing."""
        try:
            info = self.read_info(url)
        except NotTei as error:
            raise Unavailable(no_reply(str(error))) from error
        check_same_model(info, expected.identity, url)
        check_same_length(info, expected.info, url)
        for _ in range(TRIES_TO_AGREE):
            found = self.embed_known(url, wire)
            if expected.known.matches(found.vector):
                return info
        _check_dimensions(url, found, expected.identity)
        raise ModelChanged(
            f"{url} says that it serves {info.model_id}, but gives a known sentence another vector than this job's "
            "model did"
        )

    def embed_known(self, url: str, wire: Wire) -> Known:
        """Embeds the known sentence alone; raises as `read_info`, or RouteMissing."""
        reply = self._answer(f"{url}{wire.path}", wire)
        try:
            rows = wire.decode(reply.body, 1, None)
        except (UnreadableReply, WrongCount) as error:
            raise Unavailable(doubtful_reply(str(error))) from error
        if not rows.good[0]:
            raise Unavailable(doubtful_reply("a vector with nulls for a known sentence"))
        return Known(rows.values[0], int(reply.number("x-compute-tokens")))

    def _agreed(self, url: str, wire: Wire) -> Known:
        """The known sentence's vector, once two replies agree on it."""
        last = self.embed_known(url, wire)
        for _ in range(TRIES_TO_AGREE):
            known = self.embed_known(url, wire)
            if last.matches(known.vector):
                return known
            last = known
        raise Unavailable(doubtful_reply("a known sentence has another vector every time"))

    def _choose(self, url: str, info: ServerInfo, json: Wire, known: Known) -> tuple[Wire, str]:
        if (reason := what_differs(self._settings, info)) is not None:
            return json, reason
        base64 = openai_base64()
        try:
            other = self._agreed_or_broken(url, base64)
        except RouteMissing:
            return json, f"{url} has no {base64.path}"
        except _RouteBroken as error:
            return json, f"{base64.path} cannot be used: {error}"
        except Unavailable:
            raise
        except EndpointError as error:
            return json, f"{base64.path} cannot be used: {error}"
        if not known.matches(other.vector):
            return json, f"{base64.path} gives another vector"
        return base64, "it gives the same vectors in a third of the bytes"

    def _agreed_or_broken(self, url: str, wire: Wire) -> Known:
        """The same of a route that is not needed: a few failures of the server's own are enough."""
        for times in itertools.count(1):
            try:
                return self._agreed(url, wire)
            except Unavailable as error:
                if error.verdict.status == 200 or (is_servers_failure(error.verdict) and times >= ROUTE_TRIES):
                    raise _RouteBroken(str(error)) from error
                if not is_servers_failure(error.verdict):
                    raise
        raise AssertionError("tries never end the loop")

    def _answer(self, target: str, wire: Wire | None) -> Reply:
        """One request's reply; a refusal under load is met by itself, not with all that went before."""
        for times in range(OVERLOAD_TRIES):
            try:
                return self._answer_now(target, wire)
            except Unavailable as error:
                if error.verdict.action is not Action.SLOW_DOWN or error.verdict.retry_after:
                    raise
            self._pause(times)
        return self._answer_now(target, wire)

    def _answer_now(self, target: str, wire: Wire | None) -> Reply:
        try:
            if wire is None:
                reply = self._transport.get(target)
            else:
                reply = self._transport.post(target, wire.encode([KNOWN_SENTENCE]))
        except NoReply as error:
            raise Unavailable(no_reply(str(error))) from error
        if reply.status == 200:
            return reply
        verdict = verdict_on(reply.status, reply.headers, reply.body)
        if reply.status in MISSING_ROUTE and wire is not None and wire.format is WireFormat.OPENAI_BASE64:
            raise RouteMissing(target)
        # What the server finds wrong with a short sentence is wrong with the job's settings.
        refused = reply.status == 413 or (reply.status == 422 and verdict.action is Action.SPLIT and verdict.own)
        if verdict.action is Action.STOP or refused:
            raise refusal(target, verdict, self._settings, reply.headers)
        raise Unavailable(verdict)


def _check_dimensions(url: str, known: Known, expected: ModelIdentity) -> None:
    if len(known.vector) != expected.dimensions:
        raise ModelChanged(
            f"{url} serves another model than this job's vectors were made with: "
            f"dimensions {len(known.vector)} instead of {expected.dimensions}"
        )
