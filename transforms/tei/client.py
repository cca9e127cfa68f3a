"""The endpoint's client: texts in, vectors or rejections out, in order."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from transforms.elements import Reason, Vectors
from transforms.tei.credentials import Credentials
from transforms.tei.endpoint import Backoff, Endpoint, GiveUpTimer
from transforms.tei.error_table import Action
from transforms.tei.errors import EndpointError, ModelChanged
from transforms.tei.exchange import BODY_LIMIT, GROUP_TEXTS, Exchange
from transforms.tei.handshake import EndpointProfile, Handshake, ServerInfo, Unavailable
from transforms.tei.scheduler import Assignment, Scheduler
from transforms.tei.settings import EndpointSettings, Overlong, travels_in_the_clear
from transforms.tei.tasks import Embeddings, Rejection, Submission, Task, copy_of, cut
from transforms.tei.transport import HttpTransport, Transport

CLOSE_SECONDS = 1.0  # for the threads to end; a person who pressed Ctrl-C waits for it
CLOSE_TRIES = 10  # in that time: what is connecting now can be ended when it has
FIRST_HANDSHAKE_WAIT = 0.25  # seconds between attempts at the first handshake
MAX_HANDSHAKE_WAIT = 10.0  # a server that loads its model takes minutes
FIRST_HANDSHAKE_PAUSE = 0.1  # between attempts at one request of a handshake
MAX_HANDSHAKE_PAUSE = 1.0

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class PendingEmbeddings:
    """The vectors of a shard that is under way."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission

    def done(self) -> bool:
        """Return whether `result` would return, or raise, at once."""
        return self._submission.done

    def so_far(self) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Return the vectors, float32[len(texts), dimensions], and which of these rows are there, bool[len(texts)]."""
        return self._submission.vectors, self._submission.stored.copy()

    def cancel(self) -> None:
        """Send no more of it; `result` raises from now on, unless all of it is done."""
        self._submission.fail(EndpointError("the texts were given up by the bundle that submitted them"))

    def result(self) -> Embeddings:
        """Wait for the shard and return its embeddings.

        Raises:
            EndpointError: the run must stop.
        """
        return self._submission.result()


class TeiClient:
    """Embeds texts through one or several Text Embeddings Inference servers of one model.

    Nothing is read or sent before the first call that needs the endpoint. That call waits for the endpoint's first
    answer; `submit` waits for nothing else.

    Args:
        settings: where the endpoint is and what to ask of it.
        profile: of one of its URLs, from a handshake under the same settings, which need not be repeated then.
        transport: makes what carries the requests, once.
        clock: seconds.
        rng: chooses delays, endpoints, and the canary's place.
        pace: what all delays are multiplied by.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        profile: EndpointProfile | None = None,
        transport: Callable[[EndpointSettings], Transport] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        pace: float = 1.0,
    ) -> None:
        if not settings.urls:
            raise ValueError("a client needs at least one endpoint URL")
        self._settings = settings
        self._urls = tuple(url.rstrip("/") for url in settings.urls)
        self._make_transport = transport or connect
        self._clock = clock
        self._rng = rng or random.Random()
        self._pace = pace
        self._backoff = Backoff(self._rng, pace)
        self._numbers = itertools.count()
        self._timer = GiveUpTimer(settings.give_up_after, clock)
        self._closing = threading.Event()
        self._starting = threading.RLock()
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._profile = profile
        self._scheduler: Scheduler | None = None
        self._exchange: Exchange | None = None
        self._submissions: list[Submission] = []
        self._settled_before = 0
        self._failure: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the client has failed or was closed, and sends no more."""
        return self._failure is not None

    @property
    def max_in_flight(self) -> int:
        """Texts that may be in flight now, over all URLs; 0 before the first handshake."""
        return 0 if self._scheduler is None else self._scheduler.limit

    @property
    def settled(self) -> int:
        """Texts that have their vector or their rejection."""
        with self._lock:
            return self._settled_before + sum(submission.settled for submission in self._submissions)

    def info(self) -> ServerInfo:
        """Return `/info` of the first URL that answers.

        Raises:
            EndpointError: it cannot be read.
        """
        return self._until_answered(self._urls, self._handshake().read_info)

    def probe(self, every_url: bool = False) -> EndpointProfile:
        """Return the profile of the first URL that answers; make sure that the others give vectors of the same space.

        Args:
            every_url: wait for all of them; otherwise one is enough, and the others are asked once.

        Raises:
            EndpointError: an endpoint cannot do the job, or they differ.
        """
        first = self._first_profile()
        for url in self._urls:
            if url == first.url:
                continue
            try:
                if every_url:
                    self._until_answered([url], lambda url: self._handshake().read_profile(url, first.space))
                else:
                    self._handshake().read_profile(url, first.space)
            except Unavailable as error:
                logger.warning("%s does not answer (%s): it is used once it does", url, error)
            except ModelChanged as error:
                if self._settings.space is not None:
                    raise
                raise ModelChanged(f"{error} ({first.url} gives the vectors that count here.)") from error
        return first

    def submit(self, texts: Sequence[str]) -> PendingEmbeddings:
        """Start to embed the texts of one shard; may be called from several threads. Earlier shards go first.

        Raises:
            EndpointError: the run must stop, or the client is closed.
        """
        scheduler = self._start()
        profile = self._first_profile()
        submission = Submission(next(self._numbers), texts, profile.space.dimensions)
        kept = None
        if self._settings.overlong is Overlong.DEAD_LETTER:
            kept = _reject_overlong(submission, texts, profile.info)
        else:
            max_characters = profile.info.max_characters
            if max(map(len, texts), default=0) > max_characters:
                submission.truncate(index for index, text in enumerate(texts) if len(text) > max_characters)
        # The canary takes one place, or goes before and after a group of texts that are sent one by one.
        batch_limit = min(profile.info.batch_limit, self._settings.max_in_flight or profile.info.batch_limit)
        max_documents = batch_limit - 1 if batch_limit > 1 else GROUP_TEXTS
        batches = cut(texts, max_documents, BODY_LIMIT, kept)
        tasks = [Task(submission, indices, place) for place, indices in enumerate(batches)]
        with self._lock:
            self._raise_if_over()
            self._settled_before += sum(other.settled for other in self._submissions if other.done)
            self._submissions = [other for other in self._submissions if not other.done]
            self._submissions.append(submission)
        scheduler.put(tasks)
        return PendingEmbeddings(submission)

    def close(self) -> None:
        """End at once what is under way; a thread that waits for it gets an EndpointError. May be called twice."""
        self._closing.set()
        self._timer.stop()
        self._stop(EndpointError("the client was closed"))
        for _ in range(CLOSE_TRIES):
            if self._transport is not None:
                self._transport.close()
            # A connection that is just being made cannot be shut down yet.
            if self._scheduler is None or self._scheduler.join(CLOSE_SECONDS / CLOSE_TRIES):
                return

    def _handshake(self) -> Handshake:
        with self._starting:
            if self._transport is None:
                self._transport = self._make_transport(self._settings)
            return Handshake(self._transport, self._settings, self._pause)

    def _pause(self, attempts: int) -> None:
        self._closing.wait(self._backoff.full(FIRST_HANDSHAKE_PAUSE, MAX_HANDSHAKE_PAUSE, attempts))

    def _first_profile(self) -> EndpointProfile:
        """Return the profile of the URL that answered first."""
        with self._starting:
            if self._profile is None:
                expected = self._settings.space
                profile = self._until_answered(self._urls, lambda url: self._handshake().read_profile(url, expected))
                wire = profile.wire.format.value
                logger.info("embedding with %s by %s: %s", profile.identity, wire, profile.wire_reason)
                self._profile = profile
            return self._profile

    def _until_answered(self, urls: Sequence[str], ask: Callable[[str], Answer]) -> Answer:
        """Return the first answer of one of the URLs, asked in turn until it is time to give up."""
        for attempt in itertools.count():
            asked_for: list[float] = []  # seconds of silence
            for url in urls:
                self._raise_if_over()
                started = self._clock()
                try:
                    answer = ask(url)
                except Unavailable as error:
                    self._raise_if_over()  # not a failure of the endpoint: the client was closed
                    asked_for.append(error.failure.retry_after or 0.0)
                    overloaded = error.failure.action is Action.SLOW_DOWN
                    cause = "too many requests are in flight at" if overloaded else "no answer from"
                    self._timer.record_failure(started, url, str(error), cause)
                else:
                    self._timer.record_success()
                    return answer
            wait = max(self._backoff.full(FIRST_HANDSHAKE_WAIT, MAX_HANDSHAKE_WAIT, attempt), min(asked_for))
            self._closing.wait(min(self._timer.left, wait))
        raise AssertionError("the attempts never end the loop")

    def _start(self) -> Scheduler:
        with self._starting:
            self._raise_if_over()
            if self._scheduler is None:
                self._scheduler = self._open(self._first_profile(), self._handshake())
                if self._closing.is_set():
                    self._scheduler.stop()
            return self._scheduler

    def _open(self, profile: EndpointProfile, handshake: Handshake) -> Scheduler:
        settings, transport = self._settings, self._transport
        assert transport is not None
        endpoints = [
            Endpoint(
                url,
                self._backoff,
                max_in_flight=settings.max_in_flight,
                processes=settings.processes,
                timeout=settings.request_timeout,
            )
            for url in self._urls
        ]
        for endpoint in endpoints:
            if endpoint.url == profile.url:
                endpoint.adopt(profile)
        scheduler = Scheduler(endpoints, self._rng, self._work, self._clock, settings.max_in_flight)
        self._exchange = Exchange(
            transport=transport,
            settings=settings,
            space=profile.space,
            scheduler=scheduler,
            handshake=handshake,
            timer=self._timer,
            backoff=self._backoff,
            rng=self._rng,
            wait=lambda seconds: self._closing.wait(self._pace * seconds),
        )
        return scheduler

    def _work(self, assignment: Assignment) -> None:
        assert self._exchange is not None
        if self._failure is not None:
            return
        try:
            self._exchange.carry_out(assignment)
        except BaseException as failure:  # noqa: BLE001  (callers that wait must get it, whatever it is)
            self._stop(failure)

    def _stop(self, failure: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = failure
            self._settled_before += sum(submission.settled for submission in self._submissions)
            submissions, self._submissions = self._submissions, []
        if self._scheduler is not None:
            self._scheduler.stop()
        for submission in submissions:
            submission.fail(self._failure)

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise copy_of(self._failure)


def connect(settings: EndpointSettings) -> HttpTransport:
    """Return the transport of these settings, with its secrets resolved on this machine.

    Raises:
        EndpointRefused: a secret cannot be read.
    """
    if settings.token is not None or settings.headers:
        for url in filter(travels_in_the_clear, settings.urls):
            logger.warning("credentials travel to %s over plain http, where others can read them", url)
    # A scaled-to-zero Inference Endpoint holds a request for so long instead of answering 503; others ignore it.
    patience = max(1.0, 0.9 * settings.request_timeout)
    credentials = Credentials(settings.token, settings.headers)
    return HttpTransport(credentials, settings.request_timeout, (f"X-Scale-Up-Timeout: {patience:.0f}",))


def _reject_overlong(submission: Submission, texts: Sequence[str], info: ServerInfo) -> list[int]:
    """Reject what the server would refuse for its characters alone; return the indices of the others."""
    max_characters = info.max_characters
    kept = []
    for index, text in enumerate(texts):
        if len(text) > max_characters:
            detail = (
                f"{len(text)} characters; a text of at most {info.max_input_length} tokens cannot have more than "
                f"{max_characters}"
            )
            submission.reject(index, Rejection(Reason.OVERLONG_TEXT, detail, None, 0))
        else:
            kept.append(index)
    return kept
