"""One task's way to the endpoint and back: the request, the proof in its reply, and what is done about a failure."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from transforms.elements import Reason, Vectors
from transforms.tei.endpoint import Backoff, Endpoint, GiveUpTimer
from transforms.tei.error_table import Action, Failure, classify, doubtful_reply, no_reply
from transforms.tei.errors import ModelChanged, NotTei, PairingBroken, VectorsDoubtful
from transforms.tei.formats import (
    OtherDimensions,
    Rows,
    UnreadableReply,
    Wire,
    WireFormat,
    WrongCount,
    embed_json,
    max_reply_bytes,
)
from transforms.tei.handshake import (
    CANARY_TEXT,
    MISSING_ROUTE,
    EndpointProfile,
    Handshake,
    Unavailable,
    refusal,
)
from transforms.tei.scheduler import Assignment, Outcome, Scheduler
from transforms.tei.settings import EndpointSettings, Overlong
from transforms.tei.tasks import Rejection, Task
from transforms.tei.transport import NoReply, Reply, Transport
from transforms.tei.vector_space import VectorSpace, cosine

BODY_LIMIT = 1_500_000  # bytes; servers take 2,000,000 unless configured otherwise
MIN_BODY_LIMIT = 10_000  # a server that refuses so few bytes does not do so because of their number
DEFAULT_PAYLOAD_LIMIT = 2_000_000  # bytes of a body
KEPT_SHARE = 0.75  # of a single text's body that was too large
BATCH_TRIES = 3  # of a batch that may hold a bad text, before it is halved
LONE_TRIES = 7  # of a single text, before it is blamed
PAGE_TRIES = 3  # of a single text that a page refuses, perhaps a gateway's, while the canary passes
HUNG_AFTER = 1  # timeouts in a row with one request; after the next one the canary alone shows whose they are
LONE_TIMEOUTS = 5  # of a single text while the canary passes, before it is blamed
STUCK_AFTER = 5  # failures of the endpoint in a row with one request, before the canary alone shows whose they are
FIRST_DELAY = 0.1  # seconds
MAX_DELAY = 5.0  # before a text that may be bad is tried again
MAX_WAIT = 1.0  # after a failure of the endpoint, whose circuit breaker waits by itself where it must
CANARY_DELAYS = (0.2, 0.5, 1.0)  # seconds before the canary is asked for again after a wrong one
WORTH_LOGGING = 5.0  # seconds of silence that an endpoint asks for
GROUP_TEXTS = 31  # documents between two canaries, where a request holds one text
BATCH_MAXIMUM = re.compile(r"batch size \d+ > maximum allowed batch size (\d{1,9})\b", re.IGNORECASE | re.ASCII)

logger = logging.getLogger(__name__)


class Exchange:
    """What a worker does with an assignment. Shared by all workers.

    Each request carries the canary at a random place. Its reply counts only if the canary's row is the known vector:
    then the reply is of the job's model, and its rows are in order. Where a request holds one text alone, the canary
    goes before and after each group of texts, and the group counts only if both are right.

    Args:
        transport: carries the requests.
        settings: the job's.
        space: that all vectors must be of.
        scheduler: takes back what was assigned.
        handshake: for endpoints without one yet, or that were away.
        timer: ends the run when nothing succeeds.
        backoff: draws delays.
        rng: chooses the canary's place.
        wait: waits so many seconds, less if the client is closed.
    """

    def __init__(
        self,
        transport: Transport,
        settings: EndpointSettings,
        space: VectorSpace,
        scheduler: Scheduler,
        handshake: Handshake,
        timer: GiveUpTimer,
        backoff: Backoff,
        rng: random.Random,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._space = space
        self._canary = space.vectors[0].astype(np.float64)
        self._canary_norm = float(np.linalg.norm(self._canary))
        self._scheduler = scheduler
        self._handshake = handshake
        self._timer = timer
        self._backoff = backoff
        self._rng = rng
        self._wait = wait
        self._body_limit = BODY_LIMIT
        self._refused_lone_bytes: float = float("inf")
        self._canary_lock = threading.Lock()
        self._wrong_canary_at: dict[str, float] = {}  # by URL, when a wrong one was last asked for again
        self._handlers: dict[Action, Callable[[Assignment, Task, Failure], None]] = {
            Action.WAIT: self._wait_and_repeat,
            Action.SLOW_DOWN: self._slow_down,
            Action.RETRY: self._retry,
            Action.SPLIT: self._split,
            Action.SPLIT_BYTES: self._split_bytes,
            Action.SHRINK: self._shrink,
        }

    def carry_out(self, assignment: Assignment) -> None:
        """Send an assignment's texts and settle it.

        Raises:
            EndpointError: the run must stop.
        """
        task, endpoint, profile = assignment.task, assignment.endpoint, assignment.profile
        if profile is None:
            self._shake_hands(assignment)
        elif endpoint.one_by_one:
            self._send_one_by_one(assignment, profile)
        else:
            texts = self._texts(task, profile)
            # Never the first: a cache that looks at the first text alone would return other texts' rows behind it.
            place = self._rng.randint(1, len(texts))
            body = self._body(assignment, profile.wire, texts, place)
            if body is not None:
                self._send(assignment, profile, body, place)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _shake_hands(self, assignment: Assignment) -> None:
        """Do the handshake that an endpoint needs first; the task goes back to where it was."""
        endpoint = assignment.endpoint
        try:
            profile = self._handshake.read_profile(endpoint.url, self._space)
        except Unavailable as error:
            self._fail(assignment, assignment.task, _not_the_texts(error.failure))
            return
        except NotTei as error:
            self._fail(assignment, assignment.task, no_reply(str(error)))
            return
        self._timer.record_success()
        self._scheduler.adopt(endpoint, profile)
        self._scheduler.settle(assignment, Outcome.UNSENT, [assignment.task])

    def _texts(self, task: Task, profile: EndpointProfile) -> list[str]:
        texts = [task.submission.texts[index] for index in task.indices]
        max_characters = profile.info.max_characters
        if len(texts[0]) > max_characters:  # the longest is the first
            texts = [text[:max_characters] for text in texts]
        return texts

    def _body(self, assignment: Assignment, wire: Wire, texts: list[str], place: int) -> bytes | None:
        """Return the request's body; None where it is too large to be sent, and the assignment has been settled."""
        task = assignment.task
        if not task.alone:
            body = wire.encode(_with_canary(texts, place))
            if len(body) <= self._body_limit:
                return body
            self._scheduler.settle(assignment, Outcome.UNSENT, task.halves())
            return None
        fitted = self._fitted(task, texts[0], lambda text: wire.encode(_with_canary([text], place)))
        if isinstance(fitted, Failure):
            self._reject(assignment, task, fitted, Outcome.UNSENT)
            return None
        return fitted

    def _fitted(self, task: Task, text: str, encode: Callable[[str], bytes]) -> bytes | Failure:
        """Return the body of a request with one text.

        If the endpoint has refused as many bytes, enough of the text is cut, or that it is too long is the answer.
        """
        body = encode(text)
        if len(body) < self._refused_lone_bytes:
            return body
        if self._settings.overlong is Overlong.DEAD_LETTER:
            refused = f"{self._refused_lone_bytes:.0f}"
            message = f"its request would have {len(body)} bytes; the endpoint has refused one of {refused}"
            return Failure(Action.SPLIT, message, reason=Reason.OVERLONG_TEXT, from_server=True)
        task.submission.truncate(task.indices)
        allowed = int(self._refused_lone_bytes * KEPT_SHARE)
        while text and len(body) > allowed:
            # A little less than in proportion: the characters of a text differ in their bytes.
            text = text[: int(len(text) * allowed / len(body) * 0.95)]
            body = encode(text)
        return body

    def _send(self, assignment: Assignment, profile: EndpointProfile, body: bytes, place: int) -> None:
        """Send one request of several texts, and take in the vectors of a reply that proves itself."""
        task = replace(assignment.task, attempts=assignment.task.attempts + 1, body_bytes=len(body))
        wire = profile.wire
        count = len(task.indices) + 1
        try:
            reply = self._transport.post(
                f"{assignment.endpoint.url}{wire.path}",
                body,
                assignment.timeout,
                max_reply_bytes(count, self._space.dimensions),
            )
        except NoReply as error:
            self._fail(assignment, task, no_reply(str(error), timed_out=error.timed_out))
            return
        if reply.status != 200:
            self._refused(assignment, task, profile, reply)
            return
        try:
            rows = wire.decode(reply.body, count, self._space.dimensions)
        except UnreadableReply as error:
            self._fail(assignment, task, no_reply(str(error)))
        except OtherDimensions as error:
            self._wrong_canary(assignment, task, profile, f"its vectors have {error.dimensions} dimensions")
        except WrongCount as error:
            self._fail(assignment, task, doubtful_reply(str(error)))
        else:
            if not rows.good[place]:
                self._fail(assignment, task, doubtful_reply("the canary has a vector with nulls or of zeros"))
            elif not self._is_canary(rows.values[place]):
                if any(map(self._is_canary, rows.values)):
                    raise VectorsDoubtful(
                        f"{assignment.endpoint.url} mixes up rows: the canary's vector came back in the place of "
                        "another text's. Look at what stands in front of the model (a batching proxy, a cache). Rows "
                        "that changed places without the canary do not show, so its earlier replies are in doubt, too."
                    )
                found = cosine(self._space.vectors[0], rows.values[place])
                self._wrong_canary(assignment, task, profile, f"its cosine is {found:.4f}")
            else:
                self._take_in(assignment, task, profile, reply, rows, place)

    def _take_in(
        self, assignment: Assignment, task: Task, profile: EndpointProfile, reply: Reply, rows: Rows, place: int
    ) -> None:
        self._count(assignment, task, profile, reply, task.indices, canary_tokens=profile.canary_tokens)
        self._timer.record_success()
        if rows.good.all():
            self._scheduler.settle(assignment, Outcome.ANSWERED, reply=reply)
            task.submission.store(task.indices, rows.values, canary=place)
        else:
            values, good = np.delete(rows.values, place, axis=0), np.delete(rows.good, place)
            self._keep_good(assignment, task, reply, values, good)

    def _count(
        self,
        assignment: Assignment,
        task: Task,
        profile: EndpointProfile,
        reply: Reply,
        indices: Sequence[int],
        *,
        canary_tokens: int,
    ) -> None:
        task.submission.count_exchange(
            reply,
            indices,
            canary_tokens=canary_tokens,
            max_tokens=profile.info.max_input_length,
            truncates=self._settings.overlong is Overlong.TRUNCATE,
            requests_in_flight=assignment.requests,
        )

    def _keep_good(
        self, assignment: Assignment, task: Task, reply: Reply, values: Vectors, good: npt.NDArray[np.bool_]
    ) -> None:
        """Store the vectors that can be used, and ask again for the others, each alone."""
        bad = [index for index, fine in zip(task.indices, good, strict=True) if not fine]
        if task.alone:
            task = replace(task, invalid_vector=True)
            self._fail(
                assignment, task, doubtful_reply("the endpoint gives it a vector with nulls or of zeros, also alone")
            )
            return
        if good.any():
            task.submission.store([index for index, fine in zip(task.indices, good, strict=True) if fine], values[good])
        task.submission.count_retries(len(bad))
        self._scheduler.settle(assignment, Outcome.ANSWERED, [task.only([index]) for index in bad], reply=reply)

    def _send_one_by_one(self, assignment: Assignment, profile: EndpointProfile) -> None:
        """Send a group of texts in requests of one text each, the canary before and after them."""
        group, wire = assignment.task, profile.wire
        if len(group.indices) > GROUP_TEXTS:
            self._scheduler.put([group.only(group.indices[GROUP_TEXTS:], group.blames)])
            group = group.only(group.indices[:GROUP_TEXTS], group.blames)
        if not self._passes_alone(assignment, group, profile):
            return
        url, max_bytes = f"{assignment.endpoint.url}{wire.path}", max_reply_bytes(1, self._space.dimensions)
        vectors: list[Vectors] = []
        replies: list[Reply] = []
        failed: Failure | Reply | None = None
        task = group
        for index in group.indices:
            task = replace(group, indices=[index])
            text = group.submission.texts[index][: profile.info.max_characters]
            body = self._fitted(task, text, lambda text: wire.encode([text]))
            if isinstance(body, Failure):
                failed = body
                break
            task = replace(task, attempts=group.attempts + 1, body_bytes=len(body))
            try:
                reply = self._transport.post(url, body, assignment.timeout, max_bytes)
                if reply.status != 200:
                    failed = reply
                    break
                self._timer.record_success()
                rows = wire.decode(reply.body, 1, self._space.dimensions)
            except NoReply as error:
                failed = no_reply(str(error), timed_out=error.timed_out)
                break
            except (UnreadableReply, OtherDimensions, WrongCount) as error:
                failed = doubtful_reply(str(error))
                break
            if not rows.good[0]:
                task = replace(task, invalid_vector=True)
                failed = doubtful_reply("a vector with nulls or of zeros")
                break
            vectors.append(rows.values[0])
            replies.append(reply)
        done = len(vectors)
        if done:
            # Only now are the vectors known to be of the right model.
            if not self._passes_alone(assignment, group, profile):
                return
            for index, reply in zip(group.indices, replies, strict=False):
                self._count(assignment, group, profile, reply, [index], canary_tokens=0)
            group.submission.store(group.indices[:done], np.stack(vectors))
        if failed is None:
            self._scheduler.settle(assignment, Outcome.ANSWERED, reply=replies[-1])
            return
        if others := group.indices[done + 1 :]:
            self._scheduler.put([group.only(others, group.blames)])
        if isinstance(failed, Reply):
            self._refused(assignment, task, profile, failed)
        else:
            self._fail(assignment, task, failed)

    def _passes_alone(self, assignment: Assignment, task: Task, profile: EndpointProfile) -> bool:
        """Return whether the canary, sent alone, is right; where it is not, the assignment has been settled."""
        try:
            vector = self._embed_canary(assignment, profile)
        except Unavailable as error:
            self._fail(assignment, task, _not_the_texts(error.failure))
            return False
        if self._is_canary(vector):
            self._timer.record_success()
            return True
        self._wrong_canary(assignment, task, profile, f"its cosine is {cosine(self._space.vectors[0], vector):.4f}")
        return False

    # --- the canary ---------------------------------------------------------------------------------------------------

    def _is_canary(self, vector: Vectors) -> bool:
        if vector.shape != self._canary.shape:
            return False
        found = vector.astype(np.float64)
        norm = self._canary_norm * float(np.sqrt(found @ found))
        return bool(self._canary @ found >= self._space.min_cosine * norm)

    def _wrong_canary(self, assignment: Assignment, task: Task, profile: EndpointProfile, found: str) -> None:
        """Ask for the canary again, alone and spaced out; end the run unless all of that is right.

        The second wrong one of an endpoint ends the run, too, however many right ones come between them: then two
        models answer there. Wrong replies to requests that were under way together count as one. Where texts go one
        by one, the first wrong one ends it: a reply to a single text between right canaries may be the other model's.

        Raises:
            ModelChanged, PairingBroken, VectorsDoubtful: what the endpoint returns cannot be trusted.
        """
        try:
            with self._canary_lock:
                self._ask_for_the_canary_again(assignment, profile, found)
        except Unavailable as error:
            # Outside of the lock: what is done about a failure may come back here.
            self._fail(assignment, task, _not_the_texts(error.failure))
            return
        task.submission.count_retries()
        self._scheduler.settle(assignment, Outcome.OBJECTED, [task])

    def _ask_for_the_canary_again(self, assignment: Assignment, profile: EndpointProfile, found: str) -> None:
        """Do what `_wrong_canary` says; one thread at a time.

        Raises:
            ModelChanged, PairingBroken, VectorsDoubtful: what the endpoint returns cannot be trusted.
            Unavailable: it does not answer for now.
        """
        endpoint = assignment.endpoint
        seen_at = self._wrong_canary_at.get(endpoint.url)
        if seen_at is not None:
            if assignment.started >= seen_at:
                raise PairingBroken(self._two_models(endpoint, found))
            return
        right = []
        for delay in CANARY_DELAYS:
            self._wait(delay)
            right.append(self._is_canary(self._embed_canary(assignment, profile)))
        if not any(right):
            error: PairingBroken | ModelChanged = ModelChanged(
                f"{endpoint.url} serves another model than this job's vectors were made with, whatever its name: the "
                f"canary came back with another vector again and again ({found}). Vectors of its replies were not "
                "used. Look at what was deployed or restarted there."
            )
        else:
            error = PairingBroken(self._two_models(endpoint, found))
        if endpoint.one_by_one:
            raise VectorsDoubtful(
                f"{error} It takes one text a request: before this canary, replies to single texts may have been the "
                "other model's."
            )
        if not all(right):
            raise error
        self._wrong_canary_at[endpoint.url] = self._scheduler.clock()
        logger.warning("%s returned a wrong canary once (%s); that reply was not used", endpoint.url, found)

    def _embed_canary(self, assignment: Assignment, profile: EndpointProfile) -> Vectors:
        # A slow endpoint has a queue, ours, that the canary waits in as well.
        return self._handshake.embed_canary(assignment.endpoint.url, profile.wire, assignment.timeout)

    def _two_models(self, endpoint: Endpoint, found: str) -> str:
        return (
            f"{endpoint.url} returns the canary's vector in some replies and another one in others ({found}): either "
            "two models answer there (look at its replicas, a rolling update, a balancer in front of two versions), or "
            "what stands in front of it mixes up replies (a cache, a batching proxy). Replies with a wrong canary were "
            "not used."
        )

    # --- failures -----------------------------------------------------------------------------------------------------

    def _refused(self, assignment: Assignment, task: Task, profile: EndpointProfile, reply: Reply) -> None:
        """Deal with a reply that has an error status."""
        endpoint = assignment.endpoint
        failure = classify(reply.status, reply.headers, reply.body)
        if reply.status in MISSING_ROUTE and profile.wire.format is WireFormat.OPENAI_BASE64:
            logger.warning("%s has no %s any more: going on with /embed", endpoint.url, profile.wire.path)
            self._scheduler.adopt(endpoint, replace(profile, wire=embed_json(self._settings)))
            failure = replace(failure, action=Action.WAIT)
        if failure.action is Action.STOP:
            if failure.from_server:
                raise refusal(f"{endpoint.url}{profile.wire.path}", failure, self._settings, reply.headers)
            # A filter in front of the server may object to one text; if not, the canary alone ends the run.
            if not self._canary_passes(assignment, task, profile):
                return
            failure = replace(failure, action=Action.SPLIT)
        self._fail(assignment, task, failure)

    def _fail(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        """Settle an assignment whose request failed, with what is to be done next.

        Raises:
            EndpointUnreachable: nothing has succeeded for too long.
        """
        self._handlers[failure.action](assignment, task, failure)

    def _wait_and_repeat(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        self._record_failure(assignment, failure)
        was_sent = task.attempts > assignment.task.attempts
        profile = assignment.profile
        if was_sent and profile is not None and task.waits >= (HUNG_AFTER if failure.timed_out else STUCK_AFTER):
            # A filter in front of the endpoint, a crash, or a server that hangs may be one text's doing.
            try:
                vector = self._embed_canary(assignment, profile)
            except Unavailable:
                pass  # the endpoint's, then
            else:
                if self._is_canary(vector):
                    self._timer.record_success()
                    if failure.timed_out:
                        self._isolate_hung(assignment, task, failure)
                    elif failure.status is None and task.alone and task.body_bytes > DEFAULT_PAYLOAD_LIMIT:
                        # Some servers close the connection on a body that is too large before they have said so.
                        self._split_bytes(assignment, task, failure)
                    else:
                        self._retry(assignment, task, failure)
                    return
        again = replace(task, waits=task.waits + 1)
        task.submission.count_retries()
        self._scheduler.settle(
            assignment,
            Outcome.TIMED_OUT if failure.timed_out else Outcome.FAILED,
            [again],
            delay=self._backoff.full(FIRST_DELAY, MAX_WAIT, task.waits),
            retry_after=self._silence(assignment, failure),
        )

    def _isolate_hung(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        """Halve a request that timed out again while the canary is answered; blame a text alone in the end.

        Each of these tries costs a whole timeout, so there are fewer of them than of other failures. Halving helps a
        server that is slow, too.
        """
        if task.alone and task.blames + 1 >= LONE_TIMEOUTS:
            self._reject(assignment, task, failure, Outcome.OBJECTED)
            return
        task.submission.count_retries()
        if not task.alone:
            again = [replace(half, waits=HUNG_AFTER) for half in task.halves()]
            self._scheduler.settle(assignment, Outcome.TIMED_OUT, again)
        else:
            # No timeout as far as the limit goes, which would double the time for the next try, and again.
            self._scheduler.settle(assignment, Outcome.OBJECTED, [replace(task, blames=task.blames + 1)])

    def _slow_down(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        self._record_failure(assignment, failure)
        task.submission.count_retries()
        silence = self._silence(assignment, failure)
        self._scheduler.settle(assignment, Outcome.REFUSED, [task], retry_after=silence)

    def _retry(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        self._record_failure(assignment, failure)
        blames = task.blames + 1
        delay = 0.0
        if task.alone and task.invalid_vector:
            failure = replace(failure, reason=Reason.INVALID_VECTOR)
        if not task.alone and blames >= BATCH_TRIES:
            # From here on every half has one try: halving on finds the bad text sooner than waiting does.
            again = task.halves(0 if len(task.indices) <= 2 else BATCH_TRIES - 1)
        elif task.alone and blames >= LONE_TRIES:
            if self._canary_passes(assignment, task, assignment.profile):
                self._reject(assignment, task, failure, Outcome.OBJECTED)
            return
        else:
            again, delay = [replace(task, blames=blames)], self._backoff.full(FIRST_DELAY, MAX_DELAY, task.blames)
        task.submission.count_retries()
        self._scheduler.settle(assignment, Outcome.OBJECTED, again, delay=delay)

    def _split(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        if failure.from_server:
            self._timer.record_success()
        if not task.alone:
            task.submission.count_retries()
            self._scheduler.settle(assignment, Outcome.OBJECTED, task.halves())
        elif failure.from_server:
            self._reject(assignment, task, failure, Outcome.OBJECTED)
        elif self._canary_passes(assignment, task, assignment.profile):
            # A text is blamed for a page only after the canary has passed each time.
            if task.blames + 1 >= PAGE_TRIES:
                self._reject(assignment, task, failure, Outcome.OBJECTED)
                return
            task.submission.count_retries()
            again = replace(task, blames=task.blames + 1)
            delay = self._backoff.full(FIRST_DELAY, MAX_DELAY, task.blames)
            self._scheduler.settle(assignment, Outcome.OBJECTED, [again], delay=delay)

    def _split_bytes(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        if not task.alone:
            self._body_limit = max(MIN_BODY_LIMIT, min(self._body_limit, task.body_bytes // 2))
            task.submission.count_retries()
            self._scheduler.settle(assignment, Outcome.OBJECTED, task.halves())
            return
        if task.body_bytes <= MIN_BODY_LIMIT:  # the text is not too long
            self._reject(assignment, task, failure, Outcome.OBJECTED)
            return
        self._refused_lone_bytes = min(self._refused_lone_bytes, task.body_bytes)
        if self._settings.overlong is Overlong.DEAD_LETTER:
            self._reject(assignment, task, replace(failure, reason=Reason.OVERLONG_TEXT), Outcome.OBJECTED)
            return
        task.submission.count_retries()
        self._scheduler.settle(assignment, Outcome.OBJECTED, [task])

    def _shrink(self, assignment: Assignment, task: Task, failure: Failure) -> None:
        """Send smaller requests from now on: of as many texts as the message allows, and fewer than were refused."""
        self._record_failure(assignment, failure)
        found = BATCH_MAXIMUM.search(failure.message)
        texts = assignment.texts
        allowed = min(texts - 1, int(found[1]) if found else texts - 1)
        if allowed < 1:  # no number of texts is less
            self._retry(assignment, task, failure)
            return
        self._scheduler.limit_batch(assignment.endpoint, allowed)
        task.submission.count_retries()
        self._scheduler.settle(assignment, Outcome.OBJECTED, [task])

    def _canary_passes(self, assignment: Assignment, task: Task, profile: EndpointProfile | None) -> bool:
        """Return whether the endpoint embeds the canary alone; where it does not, the assignment has been settled."""
        return profile is not None and self._passes_alone(assignment, task, profile)

    def _reject(self, assignment: Assignment, task: Task, failure: Failure, outcome: Outcome) -> None:
        """Settle an assignment of a single text that can never be embedded."""
        rejection = Rejection(failure.reason, failure.message, failure.status, task.attempts)
        self._scheduler.settle(assignment, outcome)
        task.submission.reject(task.indices[0], rejection)

    def _record_failure(self, assignment: Assignment, failure: Failure) -> None:
        status = f"{failure.status} " if failure.status else ""
        cause = "no answer from"
        if failure.action is Action.SLOW_DOWN:
            cause = "too many requests are in flight at"
        elif failure.timed_out:
            cause = "no answer in time, which may be too short for so slow an endpoint, from"
        self._timer.record_failure(assignment.started, assignment.endpoint.url, f"{status}{failure.message}", cause)

    def _silence(self, assignment: Assignment, failure: Failure) -> float | None:
        """Return the seconds for which the endpoint asks, as far as the run may wait."""
        if failure.retry_after is None:
            return None
        seconds = min(failure.retry_after, self._timer.left)
        if seconds >= WORTH_LOGGING:
            logger.warning("%s asks for %.0f s of silence", assignment.endpoint.url, seconds)
        return seconds


def _with_canary(texts: Sequence[str], place: int) -> list[str]:
    return [*texts[:place], CANARY_TEXT, *texts[place:]]


def _not_the_texts(failure: Failure) -> Failure:
    """Return a failure of a request without texts of the job, which says nothing about them, whatever it is."""
    return failure if failure.action is Action.SLOW_DOWN else replace(failure, action=Action.WAIT)
