"""Sends one task and takes in the vectors that come back; what fails is left to the remedies."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transforms.elements import Reason, Vectors
from transforms.tei.advice import refusal
from transforms.tei.error_table import Action, Verdict, doubtful_reply, no_reply, verdict_on
from transforms.tei.errors import PairingBroken
from transforms.tei.formats import Wire, WireFormat
from transforms.tei.handshake import KNOWN_SENTENCE, MISSING_ROUTE, Unavailable
from transforms.tei.patience import Patience
from transforms.tei.remedies import Remedies, not_the_texts
from transforms.tei.scheduler import Assignment, Dispatcher, Ending, Endpoint
from transforms.tei.settings import EndpointSettings, Overlong
from transforms.tei.tasks import Task
from transforms.tei.transport import NoReply, Reply, Transport
from transforms.tei.vectors import OtherDimensions, Rows, UnreadableReply, WrongCount
from transforms.tei.verifier import Verifier

logger = logging.getLogger(__name__)

SHARE_KEPT = 0.75  # of a lone text's body that was too big


@dataclass(frozen=True, slots=True)
class _Request:
    """What goes out: its format stays what it was encoded for, whatever the others fall back to meanwhile.

    `place` is the known sentence's among the texts; None where it does not go with them.
    """

    wire: Wire
    body: bytes
    place: int | None = None


class Sender:
    """What a pool thread does with an assignment. Shared by all threads."""

    def __init__(
        self,
        transport: Transport,
        settings: EndpointSettings,
        dispatcher: Dispatcher,
        verifier: Verifier,
        remedies: Remedies,
        patience: Patience,
        rng: random.Random,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._dispatcher = dispatcher
        self._verifier = verifier
        self._remedies = remedies
        self._patience = patience
        self._rng = rng

    def carry_out(self, assignment: Assignment) -> None:
        """Sends an assignment's texts and settles it.

        Raises:
            EndpointError: the run must stop.
        """
        try:
            self._verifier.make_sure_of(assignment.endpoint)
        except Unavailable as error:
            self._remedies.answer(assignment, assignment.task, not_the_texts(error.verdict))
            return
        request = self._request(assignment)
        if request is not None:
            self._exchange(assignment, request)

    def _request(self, assignment: Assignment) -> _Request | None:
        """The request for a task; None where it cannot go out as it is, and has been settled."""
        task, wire = assignment.task, self._verifier.wire
        texts = self._texts(task)
        place = self._rng.randint(0, len(texts)) if task.canary else None
        if place is not None:
            texts.insert(place, KNOWN_SENTENCE)
        body = wire.encode(texts)
        if not task.alone:
            if len(body) <= self._remedies.body_limit:
                return _Request(wire, body, place)
            self._dispatcher.settle(assignment, Ending.UNSENT, task.halves())
            return None
        refused = self._remedies.lone_refused
        if len(body) < refused:
            return _Request(wire, body)
        if self._settings.overlong is Overlong.DEAD_LETTER:
            detail = f"its request would have {len(body)} bytes; the endpoint has refused one of {refused}"
            self._remedies.reject(
                assignment, task, Verdict(Action.SPLIT, detail, None, Reason.OVERLONG_TEXT), Ending.UNSENT
            )
            return None
        return _Request(wire, _cut_to_fit(wire, texts[0], len(body), int(refused * SHARE_KEPT)))

    def _texts(self, task: Task) -> list[str]:
        texts = [task.job.texts[index] for index in task.indices]
        most = self._verifier.met.info.max_characters
        if len(texts[0]) > most:
            texts = [text[:most] for text in texts]
        return texts

    def _exchange(self, assignment: Assignment, request: _Request) -> None:
        task = assignment.task.sent(len(request.body))
        wire = request.wire
        target = f"{assignment.endpoint.url}{wire.path}"
        try:
            reply = self._transport.post(target, request.body)
        except NoReply as error:
            task.job.repeated(error.resent)
            self._remedies.answer(assignment, task, no_reply(str(error)))
            return
        if not self._is_known(assignment, task, reply):
            return
        if reply.status != 200:
            self._refused(assignment, task, target, reply, wire.format)
            return
        try:
            rows = wire.decode(reply.body, task.size, self._verifier.met.identity.dimensions)
        except UnreadableReply as error:
            self._remedies.answer(assignment, task, no_reply(str(error)))
        except (WrongCount, OtherDimensions) as error:
            self._remedies.answer(assignment, task, self._doubt(assignment.endpoint, error))
        else:
            self._answered(assignment, task, reply, rows, request.place)

    def _is_known(self, assignment: Assignment, task: Task, reply: Reply) -> bool:
        """Whether the server that answers is the one that was met; where it cannot be told, the task waits."""
        if reply.renewed_at is None or reply.status == 429 or reply.status >= 500:
            return True  # those say nothing about a text
        try:
            self._verifier.confirm(assignment.endpoint, reply.renewed_at)
        except Unavailable as error:
            self._remedies.answer(assignment, task, not_the_texts(error.verdict))
            return False
        return True

    def _refused(self, assignment: Assignment, task: Task, target: str, reply: Reply, used: WireFormat) -> None:
        verdict = verdict_on(reply.status, reply.headers, reply.body)
        if reply.status in MISSING_ROUTE and used is WireFormat.OPENAI_BASE64:
            self._verifier.fall_back(assignment.endpoint.url)
            verdict = replace(verdict, action=Action.WAIT)
        if verdict.action is Action.STOP and verdict.own:
            raise refusal(target, verdict, self._settings, reply.headers)
        if verdict.action is Action.STOP:
            try:
                self._verifier.verify(assignment.endpoint)  # which stops the run if it is not about the texts
            except Unavailable as error:
                verdict = not_the_texts(error.verdict)
            else:
                verdict = replace(verdict, action=Action.SPLIT)  # a filter in front of the server may object to one
        self._remedies.answer(assignment, task, verdict)

    def _doubt(self, endpoint: Endpoint, error: WrongCount | OtherDimensions) -> Verdict:
        if isinstance(error, OtherDimensions):
            try:
                self._verifier.verify(endpoint)
            except Unavailable as unavailable:
                return not_the_texts(unavailable.verdict)
        return doubtful_reply(str(error))

    def _answered(self, assignment: Assignment, task: Task, reply: Reply, rows: Rows, place: int | None) -> None:
        values, good = rows.values, rows.good
        extra_tokens = 0
        if place is not None:
            if good[place]:
                self._check_pairing(assignment.endpoint, values[place])
            values, good = np.delete(values, place, axis=0), np.delete(good, place)
            extra_tokens = self._verifier.met.known.tokens
        task.job.exchanged(reply, len(task.indices), extra_tokens, self._verifier.met.info.max_input_length)
        if good.all():
            self._patience.succeeded()
            self._dispatcher.settle(assignment, Ending.ANSWERED)
            task.job.store(task.indices, values)
        else:
            self._keep_good(assignment, task, values, good)

    def _check_pairing(self, endpoint: Endpoint, vector: Vectors) -> None:
        if self._verifier.met.known.matches(vector):
            return
        try:
            self._verifier.verify(endpoint)  # another model is the likelier reason, and the better message
        except Unavailable:
            logger.warning("%s does not answer just when its pairing is in doubt", endpoint.url)
        raise PairingBroken(
            f"{endpoint.url} did not give back a known sentence's vector in its place: its vectors cannot be trusted "
            "to belong to their texts. Is there a cache or a batching proxy in front of it?"
        )

    def _keep_good(self, assignment: Assignment, task: Task, values: Vectors, good: npt.NDArray[np.bool_]) -> None:
        bad = [index for index, fine in zip(task.indices, good, strict=True) if not fine]
        if good.any():
            self._patience.succeeded()
            task.job.store([index for index, fine in zip(task.indices, good, strict=True) if fine], values[good])
        elif len(task.indices) == 1:
            task = replace(task, ill_embedded=True)
            self._remedies.answer(
                assignment, task, doubtful_reply("the endpoint gives it a vector with nulls or of zeros alone")
            )
            return
        task.job.repeated(len(bad))
        again = [task.only([index]) for index in bad]
        self._dispatcher.settle(assignment, Ending.ANSWERED if good.any() else Ending.OBJECTED, again)


def _cut_to_fit(wire: Wire, text: str, size: int, most: int) -> bytes:
    while True:
        text = text[: int(len(text) * most / size * 0.95)]
        body = wire.encode([text])
        size = len(body)
        if size <= most or not text:
            return body
