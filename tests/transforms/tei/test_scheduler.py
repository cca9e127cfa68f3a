from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.tei.endpoint import Backoff, Endpoint
from transforms.tei.scheduler import Assignment, Outcome, Scheduler
from transforms.tei.tasks import Submission, Task
from transforms.tei.transport import Reply

from .helpers import Clock, profile

PERMITS, BATCH = 64, 32
REPLY = Reply(200, {"x-queue-time": "20", "x-inference-time": "10"}, b"", 0.1)


def endpoint(url: str = "http://tei", batch: int = BATCH, permits: int = PERMITS) -> Endpoint:
    one = Endpoint(url, Backoff(random.Random(0)))
    one.adopt(profile(url, max_concurrent_requests=permits, max_client_batch_size=batch))
    return one


def scheduler(*endpoints: Endpoint, max_in_flight: int | None = None) -> tuple[Scheduler, Clock]:
    clock = Clock()
    return Scheduler(endpoints or (endpoint(),), random.Random(0), None, clock, max_in_flight), clock


def task(number: int = 0, sequence: int = 0, texts: int = BATCH - 1) -> Task:
    return Task(Submission(number, ["text"] * texts, 4), range(texts), sequence)


def take(of: Scheduler) -> Assignment:
    assignment = of.take(block=False)
    assert assignment is not None
    return assignment


def fail(ours: Scheduler, one: Endpoint, clock: Clock, times: int = 2) -> None:
    """Let so many requests to an endpoint fail, one after the other."""
    for _ in range(times):
        clock.now += 1
        one.breaker.record_failure(clock.now, clock.now)


def test_the_earliest_shard_and_its_first_task_go_first() -> None:
    ours, _ = scheduler()
    ours.put([task(1, 0, 1), task(0, 1, 1), task(0, 0, 1)])
    taken = [take(ours).task for _ in range(3)]
    assert [(each.submission.number, each.sequence) for each in taken] == [(0, 0), (0, 1), (1, 0)]


def test_what_is_done_again_goes_before_what_came_later() -> None:
    ours, _ = scheduler()
    ours.put([task(0, sequence, 4) for sequence in range(3)])
    first = take(ours)
    ours.settle(first, Outcome.OBJECTED, first.task.halves())
    assert [take(ours).task.sequence for _ in range(3)] == [0, 0, 1]


def test_what_is_to_wait_waits() -> None:
    ours, clock = scheduler()
    ours.put([task(0, 0, 1)], delay=5)
    ours.put([task(1, 0, 1)])
    assert take(ours).task.submission.number == 1
    assert ours.take(block=False) is None
    clock.now += 5
    assert take(ours).task.submission.number == 0


def test_a_task_is_cut_to_what_a_request_may_hold_and_its_rest_filled_up() -> None:
    one, submission = endpoint(permits=512), Submission(0, ["text"] * 62, 4)
    ours, _ = scheduler(one)
    ours.limit_batch(one, 20)
    ours.put([Task(submission, range(31), 0), Task(submission, range(31, 62), 1)])
    taken = [take(ours)]
    while taken[-1].task.indices[-1] != 61:
        ours.settle(taken[-1], Outcome.ANSWERED, reply=REPLY)
        taken.append(take(ours))
    assert [len(each.task.indices) for each in taken] == [19, 19, 19, 5]  # and a canary each
    assert [index for each in taken for index in each.task.indices] == list(range(62))


def test_a_rest_takes_no_text_that_a_request_has_carried() -> None:
    one, submission = endpoint(permits=512), Submission(0, ["text"] * 50, 4)
    ours, _ = scheduler(one)
    ours.limit_batch(one, 20)
    ours.put([Task(submission, range(25), 0)])
    first = take(ours)
    ours.settle(first, Outcome.ANSWERED, [replace(first.task, attempts=1).only([3])], reply=REPLY)
    rest = [take(ours).task.indices, take(ours).task.indices]
    assert [list(indices) for indices in rest] == [[19, 20, 21, 22, 23, 24], [3]]


def test_a_rest_takes_no_text_of_another_shard_and_none_that_may_be_bad() -> None:
    one, submission = endpoint(permits=512), Submission(0, ["text"] * 50, 4)
    ours, _ = scheduler(one)
    ours.limit_batch(one, 20)
    ours.put([Task(submission, range(25), 0), Task(submission, range(25, 27), 1, blames=1), task(1, 0, 3)])
    sizes = []
    for _ in range(4):
        assignment = take(ours)
        sizes.append(len(assignment.task.indices))
        ours.settle(assignment, Outcome.ANSWERED, reply=REPLY)
    assert sizes == [19, 6, 2, 3]


def test_the_canary_counts_as_a_text_in_flight() -> None:
    one = endpoint()
    ours, _ = scheduler(one)
    ours.put([task(texts=31)])
    assignment = take(ours)
    assert (assignment.texts, one.limit.in_flight, one.requests) == (32, 32, 1)
    ours.settle(assignment, Outcome.ANSWERED, reply=REPLY)
    assert (one.limit.in_flight, one.requests) == (0, 0)


def test_where_texts_go_one_by_one_a_task_stays_whole_and_one_text_is_in_flight() -> None:
    one = endpoint(batch=1)
    ours, _ = scheduler(one)
    ours.put([task(texts=100)])
    assignment = take(ours)
    assert (len(assignment.task.indices), assignment.texts) == (100, 1)


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("known", [True, False])
def test_room_is_given_back_however_a_request_ends(outcome: Outcome, known: bool) -> None:
    one = endpoint() if known else Endpoint("http://tei", Backoff(random.Random(0)))
    ours, _ = scheduler(one)
    ours.put([task()])
    ours.settle(take(ours), outcome)
    assert (one.limit.in_flight, one.requests) == (0, 0)


def test_a_task_without_room_is_not_handed_out() -> None:
    ours, _ = scheduler(endpoint(permits=32))
    ours.put([task(0, sequence) for sequence in range(2)])
    first = take(ours)
    assert ours.take(block=False) is None
    ours.settle(first, Outcome.ANSWERED, reply=REPLY)
    assert take(ours).task.sequence == 1


def test_what_may_be_in_flight_on_all_endpoints_together_is_kept() -> None:
    ones = [endpoint(f"http://{number}") for number in range(3)]
    ours, _ = scheduler(*ones, max_in_flight=40)
    ours.put([task(0, sequence, 7) for sequence in range(20)])
    under_way = [each for each in (ours.take(block=False) for _ in range(20)) if each is not None]
    assert sum(one.limit.in_flight for one in ones) == 40 == 8 * len(under_way)
    assert ours.limit == 40


def test_the_less_loaded_endpoint_is_chosen() -> None:
    one, two = endpoint("http://one"), endpoint("http://two")
    ours, _ = scheduler(one, two)
    ours.put([task(0, sequence) for sequence in range(4)])
    chosen = [take(ours).endpoint.url for _ in range(4)]
    assert sorted(chosen) == ["http://one"] * 2 + ["http://two"] * 2
    assert chosen[0] != chosen[1]


def test_an_endpoint_that_fails_again_rests_while_others_work() -> None:
    one, two = endpoint("http://one"), endpoint("http://two")
    ours, clock = scheduler(one, two)
    fail(ours, one, clock)
    ours.put([task(0, sequence, 1) for sequence in range(10)])
    assert {take(ours).endpoint.url for _ in range(10)} == {"http://two"}


def test_an_endpoint_that_was_away_needs_a_handshake_before_anything_else() -> None:
    one = endpoint()
    ours, clock = scheduler(one)
    ours.put([task(0, sequence, 1) for sequence in range(5)])
    for _ in range(2):
        clock.now += 1
        assignment = take(ours)
        ours.settle(assignment, Outcome.FAILED, [assignment.task])
    assert ours.take(block=False) is None  # it rests
    clock.now = one.breaker.quiet_until
    handshake = take(ours)
    assert handshake.profile is None
    assert ours.take(block=False) is None  # one at a time
    ours.adopt(one, profile())
    ours.settle(handshake, Outcome.UNSENT, [handshake.task])
    assert take(ours).profile is not None


def test_timeouts_while_others_succeed_do_not_take_an_endpoint_away() -> None:
    one = endpoint()
    ours, clock = scheduler(one)
    ours.put([task(0, sequence, 1) for sequence in range(12)])
    for _ in range(5):
        slow, fast = take(ours), take(ours)
        clock.now += 30
        ours.settle(fast, Outcome.ANSWERED, reply=REPLY)
        clock.now += 30
        ours.settle(slow, Outcome.TIMED_OUT)
    assert one.profile is not None


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FAILED])
def test_the_silence_that_a_server_wants_is_kept_and_counted(outcome: Outcome) -> None:
    ours, clock = scheduler()
    one = task(0, 0, 1)
    ours.put([one])
    ours.settle(take(ours), outcome, [one], retry_after=7)
    clock.now += 6.9
    assert ours.take(block=False) is None
    clock.now += 0.1
    ours.settle(take(ours), Outcome.ANSWERED, reply=REPLY)
    one.submission.store([0], np.ones((1, 4), np.float32))
    assert one.submission.result().statistics.throttled_ms == 7000


# --- worker threads ---------------------------------------------------------------------------------------------------


class Workers:
    """A scheduler whose workers report what they took and wait to be told how it ends."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.taken: list[Assignment] = []
        self.changed = threading.Condition()
        self.ends: dict[int, tuple[Outcome, Sequence[Task], dict[str, float]]] = {}
        self.stopped = False
        self.ours = Scheduler(endpoints, random.Random(0), self.work)

    def work(self, assignment: Assignment) -> None:
        with self.changed:
            self.taken.append(assignment)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.stopped or id(assignment) in self.ends, 10)
            if id(assignment) not in self.ends:
                return
            outcome, again, options = self.ends.pop(id(assignment))
        self.ours.settle(assignment, outcome, again, **options)  # type: ignore[arg-type]

    def wait_for(self, number: int) -> Assignment:
        """Return the assignment that was taken as so-manyth, from 1 on."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= number, 10)
            return self.taken[number - 1]

    def end(self, assignment: Assignment, outcome: Outcome, again: Sequence[Task] = (), **options: float) -> None:
        with self.changed:
            self.ends[id(assignment)] = outcome, again, options
            self.changed.notify_all()

    def stop(self) -> None:
        """End the workers, those that are at work, too."""
        self.ours.stop()
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        assert self.ours.join(5)


def test_a_worker_is_there_for_each_request_that_may_go_out_and_no_more() -> None:
    workers = Workers(endpoint())
    workers.ours.put([task(0, sequence) for sequence in range(10)])
    for number in (1, 2):
        workers.wait_for(number)
    assert len(workers.taken) == 2  # two requests are all that is permitted
    for number in range(1, 11):
        workers.end(workers.wait_for(number), Outcome.ANSWERED)
    assert len({assignment.task.sequence for assignment in workers.taken}) == 10
    workers.stop()


def test_no_number_of_endpoints_runs_out_of_workers() -> None:
    ones = [endpoint(f"http://{number}") for number in range(100)]
    workers = Workers(*ones)
    workers.ours.put([task(0, sequence) for sequence in range(400)])
    under_way = [workers.wait_for(number) for number in range(1, 201)]
    assert {each.endpoint.url for each in under_way} == {one.url for one in ones}
    for each in under_way:
        workers.end(each, Outcome.UNSENT)
    workers.stop()


def test_somebody_waits_for_the_end_of_a_silence_while_the_others_are_busy() -> None:
    well, ill = endpoint("http://well", permits=32), endpoint("http://ill", permits=32)
    workers = Workers(well, ill)
    workers.ours.put([task(0, sequence) for sequence in range(6)])
    first = {workers.wait_for(number).endpoint.url: workers.taken[number - 1] for number in (1, 2)}
    workers.end(first["http://ill"], Outcome.FAILED, retry_after=0.2)
    workers.end(first["http://well"], Outcome.ANSWERED)
    third = workers.wait_for(3)
    assert third.endpoint is well  # and its worker is busy from now on
    assert workers.wait_for(4).endpoint is ill
    for each in workers.taken[2:]:
        workers.end(each, Outcome.UNSENT)
    workers.stop()


def test_somebody_waits_for_what_is_to_be_sent_later_while_the_others_are_busy() -> None:
    workers = Workers(endpoint())
    workers.ours.put([task(0, 0), task(0, 1)])
    first, second = workers.wait_for(1), workers.wait_for(2)
    later = task(0, 9)
    workers.end(second, Outcome.UNSENT, [later], delay=0.2)
    assert workers.wait_for(3).task is later
    for each in (first, workers.taken[2]):
        workers.end(each, Outcome.UNSENT)
    workers.stop()


def test_stopping_ends_the_workers_that_wait_and_hands_out_no_more() -> None:
    ours, _ = scheduler()
    seen: list[Assignment | None] = []
    thread = threading.Thread(target=lambda: seen.append(ours.take()))
    thread.start()
    ours.stop()
    thread.join(5)
    assert seen == [None]
    ours.put([task()])
    assert ours.take() is None
    assert ours.take(block=False) is None


@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(0, 3)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_every_text_is_sent_until_it_is_answered_and_room_never_leaks(
    shards: list[tuple[int, int]], rng: random.Random
) -> None:
    """Whatever happens to requests, no text is lost or done twice, and nothing stays counted as in flight."""
    ones = [endpoint("http://one", permits=40), Endpoint("http://two", Backoff(random.Random(0)))]
    clock = Clock()
    ours = Scheduler(ones, rng, None, clock)
    submissions = [Submission(number, ["text"] * texts, 1) for number, (texts, _) in enumerate(shards)]
    for submission, (_, delay) in zip(submissions, shards, strict=True):
        ours.put([Task(submission, range(len(submission.texts)), 0)], delay)
    under_way: list[Assignment] = []
    for _ in range(20_000):
        assignment = ours.take(block=False)
        if assignment is not None:
            under_way.append(assignment)
        if under_way and (assignment is None or rng.random() < 0.5):
            settle_somehow(ours, under_way.pop(rng.randrange(len(under_way))), rng)
        elif assignment is None:
            if all(submission.done for submission in submissions):
                break
            clock.now += 1
        assert all(one.limit.in_flight >= 0 and one.requests >= 0 for one in ones)
        assert ones[0].limit.in_flight <= 40
    assert not under_way
    assert all(submission.settled == texts for submission, (texts, _) in zip(submissions, shards, strict=True))
    assert all((one.limit.in_flight, one.requests) == (0, 0) for one in ones)


def settle_somehow(ours: Scheduler, assignment: Assignment, rng: random.Random) -> None:
    task, outcome = assignment.task, rng.choice([Outcome.ANSWERED, Outcome.ANSWERED, *Outcome])
    if assignment.profile is None:
        if outcome is Outcome.ANSWERED:
            ours.adopt(assignment.endpoint, profile(max_concurrent_requests=40))
            outcome = Outcome.UNSENT
        ours.settle(assignment, outcome, [task])
    elif outcome is Outcome.ANSWERED:
        ours.settle(assignment, outcome, reply=REPLY)
        task.submission.store(task.indices, np.ones((len(task.indices), 1), np.float32))
    elif outcome is Outcome.OBJECTED and not task.alone:
        ours.settle(assignment, outcome, task.halves())
    else:
        ours.settle(assignment, outcome, [task], delay=rng.choice([0, 0.5]), retry_after=rng.choice([None, 2]))
