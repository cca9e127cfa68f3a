"""The endpoint's client: texts in, vectors or rejections out, in order."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from transforms.elements import Reason
from transforms.tei.batching import cut
from transforms.tei.credentials import resolve_token, travels_in_the_clear
from transforms.tei.error_table import Action
from transforms.tei.errors import EndpointError, ModelChanged
from transforms.tei.exchange import Sender
from transforms.tei.formats import WireFormat
from transforms.tei.handshake import Acquaintance, Contact, Unavailable
from transforms.tei.info import ServerInfo, check_same_length, check_same_model
from transforms.tei.jitter import Jitter
from transforms.tei.patience import Patience
from transforms.tei.pool import Pool
from transforms.tei.remedies import BODY_LIMIT, Remedies
from transforms.tei.scheduler import Dispatcher, Endpoint
from transforms.tei.settings import EndpointSettings, ModelIdentity, Overlong
from transforms.tei.tasks import Embeddings, Job, Rejection, Task, another
from transforms.tei.transport import HttpTransport, Transport
from transforms.tei.verifier import Verifier

logger = logging.getLogger(__name__)

CANARY_EVERY = 100  # requests
SECONDS_TO_CLOSE = 1.0
TRIES_TO_CLOSE = 10
FIRST_WAIT = 0.25  # seconds
LONGEST_WAIT = 10.0
FIRST_PAUSE = 0.1  # between tries of one request of the first contact
LONGEST_PAUSE = 1.0

Answer = TypeVar("Answer")


class PendingEmbeddings:
    """The vectors of a shard that is under way."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._job.over

    def result(self) -> Embeddings:
        """Waits for the shard.

        Raises:
            EndpointError: the run must stop.
        """
        return self._job.result()


class TeiClient:
    """Embeds texts through one or several Text Embeddings Inference servers of one model.

    Nothing is read or sent before the first call that needs the endpoint. That call waits for the endpoint's first
    answer; `submit` never waits for anything else.

    Args:
        settings: where the endpoint is and what to ask of it.
        transport: makes what carries the requests, once.
        clock: seconds.
        rng: chooses delays, endpoints, and the known sentence's place.
        pace: what all delays are multiplied by.
        canary_every: a known sentence goes with the first request and then one in so many; None for none.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        transport: Callable[[EndpointSettings], Transport] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        pace: float = 1.0,
        canary_every: int | None = CANARY_EVERY,
    ) -> None:
        if not settings.urls:
            raise ValueError("a client needs at least one endpoint URL")
        self._settings = settings
        self._urls = tuple(url.rstrip("/") for url in settings.urls)
        self._make_transport = transport or connect
        self._clock = clock
        self._rng = rng or random.Random()
        self._jitter = Jitter(self._rng, pace)
        self._canary_every = canary_every
        self._batches = itertools.count()
        self._numbers = itertools.count()
        self._patience = Patience(settings.give_up_after, clock)
        self._closing = threading.Event()
        self._starting = threading.RLock()
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._met: Acquaintance | None = None
        self._pool: Pool | None = None
        self._jobs: list[Job] = []
        self._failure: BaseException | None = None

    @property
    def wire_format(self) -> WireFormat | None:
        """How vectors come back; None before the first contact."""
        if self._pool is not None:
            return self._pool.verifier.wire.format
        return self._met.wire.format if self._met else None

    @property
    def max_in_flight(self) -> int:
        """Texts that may be in flight at most, over all URLs; 0 before the first contact."""
        return 0 if self._pool is None else self._pool.most_texts

    def info(self) -> ServerInfo:
        """What `/info` of the first URL says; all URLs must tell of the same model.

        Raises:
            EndpointError: it cannot be read, or the models differ.
        """
        infos = [self._patiently([url], self._contact().read_info) for url in self._urls]
        first = infos[0]
        for url, info in zip(self._urls, infos, strict=True):
            check_same_model(info, first.identity(0), url)
            check_same_length(info, first, url)
        return first

    def probe(self, every_url: bool = False) -> ModelIdentity:
        """Embeds a known sentence at the URLs with the job's settings, and says which model did.

        Args:
            every_url: wait for all of them; otherwise one is enough, and the others are asked once.

        Raises:
            EndpointError: an endpoint cannot do the job, or they differ.
        """
        first = self._meet(self._urls)
        for url in self._urls:
            if url == first.url:
                continue
            try:
                other = self._patiently([url], self._contact().meet) if every_url else self._contact().meet(url)
            except Unavailable as error:
                logger.warning("%s does not answer (%s): it is used once it does", url, error)
                continue
            check_same_model(other.info, first.identity, url)
            check_same_length(other.info, first.info, url)
            if not first.known.matches(other.known.vector):
                raise ModelChanged(
                    f"{url} gives a known sentence another vector than {first.url}: they serve different models"
                )
        return first.identity

    def submit(self, texts: Sequence[str]) -> PendingEmbeddings:
        """Starts to embed the texts of one shard; may be called from several threads. Earlier shards go first.

        Raises:
            EndpointError: the run must stop, or the client is closed.
        """
        pool = self._start()
        met = self._meet(self._urls)
        job = Job(next(self._numbers), texts, met.identity.dimensions)
        kept = _reject_overlong(job, texts, met.info) if self._settings.overlong is Overlong.DEAD_LETTER else None
        most = min(endpoint.most_at_best for endpoint in pool.dispatcher.endpoints)
        batches = cut(texts, most, BODY_LIMIT, self._wants_canary, kept)
        tasks = [Task(job, batch.indices, place, batch.canary) for place, batch in enumerate(batches)]
        with self._lock:
            self._raise_if_over()
            self._jobs = [other for other in self._jobs if not other.over]
            self._jobs.append(job)
        pool.dispatcher.put(tasks)
        return PendingEmbeddings(job)

    def close(self) -> None:
        """Ends at once what is under way; whoever waits for it gets an EndpointError. May be called twice."""
        self._closing.set()
        self._stop(EndpointError("the client was closed"))
        for _ in range(TRIES_TO_CLOSE):
            if self._transport is not None:
                self._transport.close()
            # A connection that is just being made cannot be hung up on yet.
            if self._pool is None or self._pool.join(SECONDS_TO_CLOSE / TRIES_TO_CLOSE):
                return

    # --- first contact ------------------------------------------------------------------------------------------------

    def _contact(self) -> Contact:
        with self._starting:
            if self._transport is None:
                self._transport = self._make_transport(self._settings)
            return Contact(self._transport, self._settings, self._pause)

    def _pause(self, times: int) -> None:
        self._closing.wait(self._jitter.full(FIRST_PAUSE, LONGEST_PAUSE, times))

    def _meet(self, urls: Sequence[str]) -> Acquaintance:
        with self._starting:
            if self._met is None:
                met = self._patiently(urls, self._contact().meet)
                logger.info("embedding with %s as %s: %s", met.identity, met.wire.format.value, met.why)
                self._met = met
            return self._met

    def _patiently(self, urls: Sequence[str], ask: Callable[[str], Answer]) -> Answer:
        """The first answer that one of the URLs gives, asked in turn for as long as patience lasts."""
        for times in itertools.count():
            asked: list[float] = []  # seconds of silence that each wants
            for url in urls:
                self._raise_if_over()
                started = self._clock()
                try:
                    answer = ask(url)
                except Unavailable as error:
                    asked.append(error.verdict.retry_after or 0.0)
                    overloaded = error.verdict.action is Action.SLOW_DOWN
                    self._patience.failed(started, url, str(error), overloaded)
                else:
                    self._patience.succeeded()
                    return answer
            wait = max(self._jitter.full(FIRST_WAIT, LONGEST_WAIT, times), min(asked))
            self._closing.wait(min(self._patience.left, wait))
        raise AssertionError("patience never ends the loop")

    def _start(self) -> Pool:
        with self._starting:
            self._raise_if_over()
            if self._pool is None:
                self._pool = self._open_pool(self._meet(self._urls), self._contact())
                if self._closing.is_set():
                    self._pool.stop()
            return self._pool

    def _open_pool(self, met: Acquaintance, contact: Contact) -> Pool:
        settings = self._settings
        most = settings.max_in_flight
        endpoints = [Endpoint(url, met.info, most, self._jitter, settings.processes) for url in self._urls]
        dispatcher = Dispatcher(endpoints, self._rng, self._clock, most)
        for endpoint in endpoints:
            if endpoint.url == met.url:
                dispatcher.verified(endpoint, met.info, generation=0)
        transport = self._transport
        assert transport is not None
        verifier = Verifier(settings, contact, met, dispatcher)
        remedies = Remedies(settings.overlong, dispatcher, verifier, self._patience, self._jitter)
        sender = Sender(transport, settings, dispatcher, verifier, remedies, self._patience, self._rng)
        return Pool(dispatcher, verifier, sender, self._stop)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _stop(self, failure: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = failure
            jobs, self._jobs = self._jobs, []
        if self._pool is not None:
            self._pool.stop()
        for job in jobs:
            job.fail(self._failure)

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise another(self._failure)

    def _wants_canary(self) -> bool:
        return self._canary_every is not None and next(self._batches) % self._canary_every == 0


def connect(settings: EndpointSettings) -> HttpTransport:
    """The transport of these settings, with its token resolved on this machine.

    Raises:
        EndpointRefused: the token cannot be read.
    """
    token = None if settings.token is None else resolve_token(settings.token)
    if token is not None:
        for url in filter(travels_in_the_clear, settings.urls):
            logger.warning("the token %s travels to %s over plain http, where others can read it", settings.token, url)
    # A scaled-to-zero Inference Endpoint holds a request for so long instead of answering 503; others ignore it.
    patience = max(1.0, 0.9 * settings.request_timeout)
    return HttpTransport(token, settings.request_timeout, {"X-Scale-Up-Timeout": f"{patience:.0f}"})


def _reject_overlong(job: Job, texts: Sequence[str], info: ServerInfo) -> list[int]:
    """Rejects what the server would refuse for its characters alone; gives back the indices of the others."""
    most = info.max_characters
    kept = []
    for index, text in enumerate(texts):
        if len(text) > most:
            detail = (
                f"{len(text)} characters; a text of at most {info.max_input_length} tokens cannot have more than {most}"
            )
            job.reject(index, Rejection(Reason.OVERLONG_TEXT, detail, None, 0))
        else:
            kept.append(index)
    return kept
