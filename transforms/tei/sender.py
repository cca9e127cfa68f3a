"""Sends one task and decides what becomes of its texts: vectors, another try, halves, a rejection, or the end."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from transforms.records import Reason
from transforms.tei.advice import refusal
from transforms.tei.contact import KNOWN_SENTENCE, MISSING_ROUTE, Acquaintance, Contact, RouteMissing, Unavailable
from transforms.tei.dispatcher import Assignment, Dispatcher, Ending, Endpoint
from transforms.tei.errors import PairingBroken
from transforms.tei.grammar import Action, Verdict, doubtful_reply, no_reply, verdict_on
from transforms.tei.http import NoReply, Reply, Transport
from transforms.tei.jitter import Jitter
from transforms.tei.patience import Patience
from transforms.tei.settings import EndpointSettings, Overlong
from transforms.tei.vectors import OtherDimensions, Rows, UnreadableReply, WrongCount
from transforms.tei.wire import WireFormat, embed_json
from transforms.tei.work import Rejection, Task

logger = logging.getLogger(__name__)

BODY_LIMIT = 1_500_000  # bytes; servers take 2,000,000 unless told otherwise
LEAST_BODY_LIMIT = 10_000  # whoever refuses this many bytes does not do so because of their number
BATCH_TRIES = 3  # of a batch that may hold a bad text, before it is halved
LONE_TRIES = 7  # of a text alone, before it is blamed
FIRST_DELAY = 0.1  # seconds
LONGEST_DELAY = 5.0  # before a text that may be bad is tried again
LONGEST_WAIT = 1.0  # after a failure of the endpoint, which rests by itself where it must


class Sender:
    """What a pool thread does with an assignment. Shared by all threads."""

    def __init__(
        self,
        transport: Transport,
        settings: EndpointSettings,
        contact: Contact,
        acquaintance: Acquaintance,
        dispatcher: Dispatcher,
        patience: Patience,
        jitter: Jitter,
        rng: random.Random,
    ) -> None:
        self.wire = acquaintance.wire
        self._transport = transport
        self._settings = settings
        self._contact = contact
        self._met = acquaintance
        self._dispatcher = dispatcher
        self._patience = patience
        self._jitter = jitter
        self._rng = rng
        self._body_limit = BODY_LIMIT
        self._answers: dict[Action, Callable[[Assignment, Task, Verdict], None]] = {
            Action.WAIT: self._wait,
            Action.SLOW_DOWN: self._slow_down,
            Action.RETRY: self._retry,
            Action.SPLIT: self._split,
            Action.SPLIT_BYTES: self._split_bytes,
            Action.RELIMIT: self._relimit,
        }

    def carry_out(self, assignment: Assignment) -> None:
        """Sends an assignment's texts and settles it.

        Raises:
            EndpointError: the run must stop.
        """
        try:
            self._make_sure_of(assignment.endpoint)
        except Unavailable as error:
            self._answer(assignment, assignment.task, _not_the_texts(error.verdict))
            return
        body = self._body(assignment)
        if body is not None:
            self._exchange(assignment, *body)

    def _make_sure_of(self, endpoint: Endpoint) -> None:
        """Checks the model once after every failure of the endpoint; the other threads wait for it."""
        if endpoint.verified:
            return
        with endpoint.checking:
            if not endpoint.verified:
                self._verify(endpoint)

    def _verify(self, endpoint: Endpoint) -> None:
        """Checks the model now; raises as `Contact.check`."""
        generation = self._dispatcher.generation(endpoint)
        try:
            info = self._contact.check(endpoint.url, self.wire, self._met)
        except RouteMissing:
            self._fall_back(endpoint.url)
            info = self._contact.check(endpoint.url, self.wire, self._met)
        self._dispatcher.verified(endpoint, info, generation)

    def _fall_back(self, url: str) -> None:
        if self.wire.format is WireFormat.OPENAI_BASE64:
            logger.warning("%s has no %s: going on with /embed", url, self.wire.path)
            self.wire = embed_json(self._settings)

    # --- before sending -----------------------------------------------------------------------------------------------

    def _body(self, assignment: Assignment) -> tuple[bytes, int | None] | None:
        """The request's body and the known sentence's place in it; None where the task cannot go out as it is."""
        task = assignment.task
        texts = self._texts(task)
        place = self._rng.randint(0, len(texts)) if task.canary else None
        if place is not None:
            texts.insert(place, KNOWN_SENTENCE)
        body = self.wire.encode(texts)
        if len(body) <= self._body_limit:
            return body, place
        if not task.alone:
            self._dispatcher.settle(assignment, Ending.UNSENT, task.halves())
            return None
        if self._settings.overlong is Overlong.DEAD_LETTER:
            detail = f"its request would have {len(body)} bytes; the endpoint takes no more than {self._body_limit}"
            self._reject(assignment, task, Verdict(Action.SPLIT, detail, None, Reason.OVERLONG_TEXT), Ending.UNSENT)
            return None
        return self._cut_to_fit(texts[0], len(body)), None

    def _texts(self, task: Task) -> list[str]:
        texts = [task.job.texts[index] for index in task.indices]
        most = self._met.info.max_characters
        if len(texts[0]) > most:
            texts = [text[:most] for text in texts]
        return texts

    def _cut_to_fit(self, text: str, size: int) -> bytes:
        while True:
            text = text[: int(len(text) * self._body_limit / size * 0.95)]
            body = self.wire.encode([text])
            size = len(body)
            if size <= self._body_limit or not text:
                return body

    # --- the exchange -------------------------------------------------------------------------------------------------

    def _exchange(self, assignment: Assignment, body: bytes, place: int | None) -> None:
        task = assignment.task.sent(len(body))
        wire = self.wire
        target = f"{assignment.endpoint.url}{wire.path}"
        try:
            reply = self._transport.post(target, body)
        except NoReply as error:
            task.job.repeated(error.resent)
            self._answer(assignment, task, no_reply(str(error)))
            return
        if reply.status != 200:
            self._refused(assignment, task, target, reply, wire.format)
            return
        try:
            rows = wire.decode(reply.body, task.size, self._met.identity.dimensions)
        except UnreadableReply as error:
            self._answer(assignment, task, no_reply(str(error)))
        except (WrongCount, OtherDimensions) as error:
            self._answer(assignment, task, self._doubt(assignment.endpoint, error))
        else:
            self._answered(assignment, task, reply, rows, place)

    def _refused(self, assignment: Assignment, task: Task, target: str, reply: Reply, used: WireFormat) -> None:
        verdict = verdict_on(reply.status, reply.headers, reply.body)
        if reply.status in MISSING_ROUTE and used is WireFormat.OPENAI_BASE64:
            self._fall_back(assignment.endpoint.url)
            verdict = replace(verdict, action=Action.WAIT)
        if verdict.action is Action.STOP:
            raise refusal(target, verdict, self._settings, reply.headers)
        self._answer(assignment, task, verdict)

    def _doubt(self, endpoint: Endpoint, error: WrongCount | OtherDimensions) -> Verdict:
        if isinstance(error, OtherDimensions):
            try:
                self._verify(endpoint)
            except Unavailable as unavailable:
                return _not_the_texts(unavailable.verdict)
        return doubtful_reply(str(error))

    def _answered(self, assignment: Assignment, task: Task, reply: Reply, rows: Rows, place: int | None) -> None:
        values, good = rows.values, rows.good
        extra_tokens = 0
        if place is not None:
            if good[place]:
                self._check_pairing(assignment.endpoint, values[place])
            values, good = np.delete(values, place, axis=0), np.delete(good, place)
            extra_tokens = self._met.known.tokens
        task.job.exchanged(reply, len(task.indices), extra_tokens, self._met.info.max_input_length)
        if good.all():
            self._patience.succeeded()
            self._dispatcher.settle(assignment, Ending.ANSWERED)
            task.job.store(task.indices, values)
        else:
            self._keep_good(assignment, task, values, good)

    def _check_pairing(self, endpoint: Endpoint, vector: np.ndarray) -> None:
        if self._met.known.matches(vector):
            return
        try:
            self._verify(endpoint)  # another model is the likelier reason, and the better message
        except Unavailable:
            logger.warning("%s does not answer just when its pairing is in doubt", endpoint.url)
        raise PairingBroken(
            f"{endpoint.url} did not give back a known sentence's vector in its place: its vectors cannot be trusted "
            "to belong to their texts. Is there a cache or a batching proxy in front of it?"
        )

    def _keep_good(self, assignment: Assignment, task: Task, values: np.ndarray, good: np.ndarray) -> None:
        bad = [index for index, fine in zip(task.indices, good, strict=True) if not fine]
        if good.any():
            self._patience.succeeded()
            task.job.store([index for index, fine in zip(task.indices, good, strict=True) if fine], values[good])
        elif len(task.indices) == 1:
            task = replace(task, ill_embedded=True)
            self._retry(assignment, task, doubtful_reply("the endpoint gives it a vector with nulls or of zeros alone"))
            return
        task.job.repeated(len(bad))
        again = [task.only([index]) for index in bad]
        self._dispatcher.settle(assignment, Ending.ANSWERED if good.any() else Ending.OBJECTED, again)

    # --- what is done about a failure ---------------------------------------------------------------------------------

    def _answer(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._answers[verdict.action](assignment, task, verdict)

    def _wait(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        task.job.repeated()
        again = replace(task, waits=task.waits + 1)
        self._dispatcher.settle(
            assignment, Ending.FAILED, [again], self._delay(task.waits, LONGEST_WAIT), verdict.retry_after
        )

    def _slow_down(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        seconds = self._dispatcher.settle(assignment, Ending.REFUSED, [task], retry_after=verdict.retry_after)
        task.job.repeated(throttled=seconds)

    def _retry(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        blames = task.blames + 1
        if task.alone and task.ill_embedded:
            verdict = replace(verdict, reason=Reason.INVALID_VECTOR)
        if not task.alone and blames >= BATCH_TRIES:
            # From here on every half has one try: halving on finds the bad text sooner than waiting does.
            again, delay = task.halves(0 if len(task.indices) <= 2 else BATCH_TRIES - 1), 0.0
        elif task.alone and blames >= LONE_TRIES:
            self._blame(assignment, task, verdict)
            return
        else:
            again, delay = [replace(task, blames=blames)], self._delay(task.blames)
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, again, delay)

    def _blame(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        """Rejects a text that has failed alone again and again, if the endpoint can embed anything at all."""
        try:
            self._verify(assignment.endpoint)
        except Unavailable as error:
            self._wait(assignment, task, _not_the_texts(error.verdict))
            return
        self._patience.succeeded()
        self._reject(assignment, task, verdict, Ending.OBJECTED)

    def _split(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        if task.alone:
            self._reject(assignment, task, verdict, Ending.OBJECTED)
            return
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, task.halves())

    def _split_bytes(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        size = task.body_bytes
        self._body_limit = max(LEAST_BODY_LIMIT, min(self._body_limit, size // 2))
        cannot_shrink = size <= LEAST_BODY_LIMIT or self._settings.overlong is Overlong.DEAD_LETTER
        if task.alone and cannot_shrink:
            self._reject(assignment, task, replace(verdict, reason=Reason.OVERLONG_TEXT), Ending.OBJECTED)
            return
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, task.halves() if not task.alone else [task])

    def _relimit(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        endpoint = assignment.endpoint
        try:
            self._verify(endpoint)
        except Unavailable as error:
            self._wait(assignment, task, _not_the_texts(error.verdict))
            return
        # Whatever `/info` says, as many as were refused just now are too many.
        self._dispatcher.limit_batch(endpoint, task.size - 1)
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, [task])

    def _reject(self, assignment: Assignment, task: Task, verdict: Verdict, ending: Ending) -> None:
        rejection = Rejection(verdict.reason, verdict.message, verdict.status, task.attempts)
        self._dispatcher.settle(assignment, ending)
        task.job.reject(task.indices[0], rejection)

    def _out_of_luck(self, assignment: Assignment, verdict: Verdict) -> None:
        status = f"{verdict.status} " if verdict.status else ""
        self._patience.failed(assignment.started, assignment.endpoint.url, f"{status}{verdict.message}")

    def _delay(self, times: int, longest: float = LONGEST_DELAY) -> float:
        return self._jitter.full(FIRST_DELAY, longest, times)


def _not_the_texts(verdict: Verdict) -> Verdict:
    """A failure of the known sentence says nothing about the texts, whatever it is."""
    return verdict if verdict.action is Action.SLOW_DOWN else replace(verdict, action=Action.WAIT)
