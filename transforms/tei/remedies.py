"""What is done about a request that failed: another try, halves, a rejection; where patience ends, the run does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from transforms.elements import Reason
from transforms.tei.error_table import BATCH_MAXIMUM, Action, Verdict
from transforms.tei.handshake import Unavailable
from transforms.tei.jitter import Jitter
from transforms.tei.patience import Patience
from transforms.tei.scheduler import Assignment, Dispatcher, Ending
from transforms.tei.settings import Overlong
from transforms.tei.tasks import Rejection, Task
from transforms.tei.verifier import Verifier

logger = logging.getLogger(__name__)

BODY_LIMIT = 1_500_000  # bytes; servers take 2,000,000 unless told otherwise
LEAST_BODY_LIMIT = 10_000  # whoever refuses this many bytes does not do so because of their number
BATCH_TRIES = 3  # of a batch that may hold a bad text, before it is halved
LONE_TRIES = 7  # of a text alone, before it is blamed
STUCK_AFTER = 5  # failures of the endpoint in a row with one request, before the known sentence tells whose they are
PAGE_TRIES = 3  # of a text alone that a page refuses, perhaps a gateway's, while the known sentence is taken
SERVERS_TAKE = 2_000_000  # bytes of a body, unless told otherwise
LOUD_SILENCE = 5.0  # seconds; a longer one is told in the log
FIRST_DELAY = 0.1  # seconds
LONGEST_DELAY = 5.0  # before a text that may be bad is tried again
LONGEST_WAIT = 1.0  # after a failure of the endpoint, which rests by itself where it must


class Remedies:
    """One remedy for each `Action` but STOP. Shared by all threads.

    Attributes:
        body_limit: bytes that the body of several texts may have; shrinks where the endpoint takes less.
        lone_refused: bytes of the smallest body of one text that was refused for its size.
    """

    def __init__(
        self, overlong: Overlong, dispatcher: Dispatcher, verifier: Verifier, patience: Patience, jitter: Jitter
    ) -> None:
        self.body_limit = BODY_LIMIT
        self.lone_refused: float = float("inf")
        self._overlong = overlong
        self._dispatcher = dispatcher
        self._verifier = verifier
        self._patience = patience
        self._jitter = jitter
        self._answers: dict[Action, Callable[[Assignment, Task, Verdict], None]] = {
            Action.WAIT: self._wait,
            Action.SLOW_DOWN: self._slow_down,
            Action.RETRY: self._retry,
            Action.SPLIT: self._split,
            Action.SPLIT_BYTES: self._split_bytes,
            Action.RELIMIT: self._relimit,
        }

    def answer(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        """Settles an assignment whose request failed, with what is to be done next.

        Raises:
            EndpointUnreachable: nothing has succeeded for too long.
        """
        self._answers[verdict.action](assignment, task, verdict)

    def _wait(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        if verdict.status is None and task.alone and task.body_bytes > SERVERS_TAKE and task.waits >= BATCH_TRIES:
            # Some servers hang up on a body that is too big before they have said so.
            self._split_bytes(assignment, task, verdict)
            return
        if self._is_stuck(assignment, task):
            self._retry(assignment, task, verdict)
            return
        again, delay = replace(task, waits=task.waits + 1), self._delay(task.waits, LONGEST_WAIT)
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.FAILED, [again], delay, self._silence(assignment, verdict))

    def _is_stuck(self, assignment: Assignment, task: Task) -> bool:
        """Whether a request fails again and again, as if the endpoint were down, while that takes the known sentence.

        A filter in front of it, or a crash, may be one text's doing.
        """
        was_sent = task.attempts > assignment.task.attempts
        if task.waits < STUCK_AFTER or not was_sent:
            return False
        try:
            self._verifier.verify(assignment.endpoint)
        except Unavailable:
            return False
        self._patience.succeeded()
        return True

    def _slow_down(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.REFUSED, [task], retry_after=self._silence(assignment, verdict))

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
        if self._embeds(assignment, task):
            self.reject(assignment, task, verdict, Ending.OBJECTED)

    def _embeds(self, assignment: Assignment, task: Task) -> bool:
        """Whether the endpoint embeds the known sentence; where it does not, the task waits."""
        try:
            self._verifier.verify(assignment.endpoint)
        except Unavailable as error:
            self.answer(assignment, task, not_the_texts(error.verdict))
            return False
        self._patience.succeeded()
        return True

    def _split(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        if verdict.own:
            self._patience.succeeded()
        if task.alone and verdict.own:
            self.reject(assignment, task, verdict, Ending.OBJECTED)
        elif task.alone:
            self._doubt_page(assignment, task, verdict)
        else:
            task.job.repeated()
            self._dispatcher.settle(assignment, Ending.OBJECTED, task.halves())

    def _doubt_page(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        """Blames a text for a page only after the known sentence was taken each time."""
        if not self._embeds(assignment, task):
            return
        if task.blames + 1 >= PAGE_TRIES:
            self.reject(assignment, task, verdict, Ending.OBJECTED)
            return
        task.job.repeated()
        again = replace(task, blames=task.blames + 1)
        self._dispatcher.settle(assignment, Ending.OBJECTED, [again], self._delay(task.blames))

    def _split_bytes(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        if task.alone:
            self._shorten(assignment, task, verdict)
            return
        self.body_limit = max(LEAST_BODY_LIMIT, min(self.body_limit, task.body_bytes // 2))
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, task.halves())

    def _shorten(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        """Has a text cut whose body is too big alone, or rejects it."""
        if task.body_bytes > LEAST_BODY_LIMIT:
            self.lone_refused = min(self.lone_refused, task.body_bytes)
        if task.body_bytes <= LEAST_BODY_LIMIT or self._overlong is Overlong.DEAD_LETTER:
            self.reject(assignment, task, replace(verdict, reason=Reason.OVERLONG_TEXT), Ending.OBJECTED)
            return
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, [task])

    def _relimit(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        if task.alone:  # no number of texts is less
            self._retry(assignment, task, verdict)
            return
        self._out_of_luck(assignment, verdict)
        endpoint = assignment.endpoint
        if not self._embeds(assignment, task):
            return
        # Whatever `/info` says, as many as were refused just now are too many.
        told = BATCH_MAXIMUM.search(verdict.message)
        self._dispatcher.limit_batch(endpoint, min(task.size - 1, int(told[1]) if told else task.size))
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, [task])

    def reject(self, assignment: Assignment, task: Task, verdict: Verdict, ending: Ending) -> None:
        """Settles an assignment of a single text that can never be embedded."""
        rejection = Rejection(verdict.reason, verdict.message, verdict.status, task.attempts)
        self._dispatcher.settle(assignment, ending)
        task.job.reject(task.indices[0], rejection)

    def _out_of_luck(self, assignment: Assignment, verdict: Verdict) -> None:
        status = f"{verdict.status} " if verdict.status else ""
        overloaded = verdict.action is Action.SLOW_DOWN
        self._patience.failed(assignment.started, assignment.endpoint.url, f"{status}{verdict.message}", overloaded)

    def _silence(self, assignment: Assignment, verdict: Verdict) -> float | None:
        """What the endpoint asks for, so far as patience lasts."""
        if verdict.retry_after is None:
            return None
        seconds = min(verdict.retry_after, self._patience.left)
        if seconds >= LOUD_SILENCE:
            logger.warning("%s asks for %.0f s of silence", assignment.endpoint.url, seconds)
        return seconds

    def _delay(self, times: int, longest: float = LONGEST_DELAY) -> float:
        return self._jitter.full(FIRST_DELAY, longest, times)


def not_the_texts(verdict: Verdict) -> Verdict:
    """A failure of the known sentence says nothing about the texts, whatever it is."""
    return verdict if verdict.action is Action.SLOW_DOWN else replace(verdict, action=Action.WAIT)
