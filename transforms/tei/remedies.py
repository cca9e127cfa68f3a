"""What is done about a request that failed: another try, halves, a rejection; where patience ends, the run does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from transforms.records import Reason
from transforms.tei.contact import Unavailable
from transforms.tei.dispatcher import Assignment, Dispatcher, Ending
from transforms.tei.grammar import Action, Verdict
from transforms.tei.jitter import Jitter
from transforms.tei.patience import Patience
from transforms.tei.settings import Overlong
from transforms.tei.verifier import Verifier
from transforms.tei.work import Rejection, Task

BODY_LIMIT = 1_500_000  # bytes; servers take 2,000,000 unless told otherwise
LEAST_BODY_LIMIT = 10_000  # whoever refuses this many bytes does not do so because of their number
BATCH_TRIES = 3  # of a batch that may hold a bad text, before it is halved
LONE_TRIES = 7  # of a text alone, before it is blamed
FIRST_DELAY = 0.1  # seconds
LONGEST_DELAY = 5.0  # before a text that may be bad is tried again
LONGEST_WAIT = 1.0  # after a failure of the endpoint, which rests by itself where it must


class Remedies:
    """One remedy for each `Action` but STOP. Shared by all threads.

    Attributes:
        body_limit: bytes that a request's body may have; shrinks where the endpoint takes less.
    """

    def __init__(
        self, overlong: Overlong, dispatcher: Dispatcher, verifier: Verifier, patience: Patience, jitter: Jitter
    ) -> None:
        self.body_limit = BODY_LIMIT
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
        again, delay = replace(task, waits=task.waits + 1), self._delay(task.waits, LONGEST_WAIT)
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.FAILED, [again], delay, verdict.retry_after)

    def _slow_down(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.REFUSED, [task], retry_after=verdict.retry_after)

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
            self._verifier.verify(assignment.endpoint)
        except Unavailable as error:
            self._wait(assignment, task, not_the_texts(error.verdict))
            return
        self._patience.succeeded()
        self.reject(assignment, task, verdict, Ending.OBJECTED)

    def _split(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        if task.alone:
            self.reject(assignment, task, verdict, Ending.OBJECTED)
            return
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, task.halves())

    def _split_bytes(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        size = task.body_bytes
        self.body_limit = max(LEAST_BODY_LIMIT, min(self.body_limit, size // 2))
        cannot_shrink = size <= LEAST_BODY_LIMIT or self._overlong is Overlong.DEAD_LETTER
        if task.alone and cannot_shrink:
            self.reject(assignment, task, replace(verdict, reason=Reason.OVERLONG_TEXT), Ending.OBJECTED)
            return
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, task.halves() if not task.alone else [task])

    def _relimit(self, assignment: Assignment, task: Task, verdict: Verdict) -> None:
        self._out_of_luck(assignment, verdict)
        endpoint = assignment.endpoint
        try:
            self._verifier.verify(endpoint)
        except Unavailable as error:
            self._wait(assignment, task, not_the_texts(error.verdict))
            return
        # Whatever `/info` says, as many as were refused just now are too many.
        self._dispatcher.limit_batch(endpoint, task.size - 1)
        task.job.repeated()
        self._dispatcher.settle(assignment, Ending.OBJECTED, [task])

    def reject(self, assignment: Assignment, task: Task, verdict: Verdict, ending: Ending) -> None:
        """Settles an assignment of a single text that can never be embedded."""
        rejection = Rejection(verdict.reason, verdict.message, verdict.status, task.attempts)
        self._dispatcher.settle(assignment, ending)
        task.job.reject(task.indices[0], rejection)

    def _out_of_luck(self, assignment: Assignment, verdict: Verdict) -> None:
        status = f"{verdict.status} " if verdict.status else ""
        self._patience.failed(assignment.started, assignment.endpoint.url, f"{status}{verdict.message}")

    def _delay(self, times: int, longest: float = LONGEST_DELAY) -> float:
        return self._jitter.full(FIRST_DELAY, longest, times)


def not_the_texts(verdict: Verdict) -> Verdict:
    """A failure of the known sentence says nothing about the texts, whatever it is."""
    return verdict if verdict.action is Action.SLOW_DOWN else replace(verdict, action=Action.WAIT)
