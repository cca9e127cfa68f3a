from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.elements import Reason
from transforms.tei.errors import EndpointUnreachable
from transforms.tei.tasks import Rejection, Submission, Task, count_truncated, cut
from transforms.tei.transport import Reply

TEXTS = st.lists(st.text(max_size=30), max_size=60)
REJECTION = Rejection(Reason.OVERLONG_TEXT, "too long", 422, 3)


@given(TEXTS, st.integers(1, 9), st.integers(1, 60))
def test_every_text_is_in_one_request_within_the_limits(texts: list[str], most: int, characters: int) -> None:
    requests = list(cut(texts, most, characters))
    assert sorted(index for request in requests for index in request) == list(range(len(texts)))
    for request in requests:
        assert 1 <= len(request) <= most
        assert sum(len(texts[index]) for index in request) <= characters or len(request) == 1


@given(TEXTS, st.integers(1, 9))
def test_the_longest_texts_go_first_and_together(texts: list[str], most: int) -> None:
    lengths = [len(texts[index]) for request in cut(texts, most, 10**9) for index in request]
    assert lengths == sorted(lengths, reverse=True)


@given(TEXTS, st.integers(1, 9), st.data())
def test_only_what_is_kept_is_cut(texts: list[str], most: int, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(texts))), unique=True)) if texts else []
    assert sorted(index for request in cut(texts, most, 10**9, kept) for index in request) == sorted(kept)


@pytest.mark.parametrize("count", range(2, 12))
def test_halving_loses_no_text(count: int) -> None:
    whole = Task(Submission(0, ["text"] * count, 4), range(count), 7, waits=3, blames=2)
    halves = whole.halves(1)
    assert [index for half in halves for index in half.indices] == list(range(count))
    assert [(half.sequence, half.waits, half.blames) for half in halves] == [(7, 0, 1)] * 2


def test_a_single_text_is_alone() -> None:
    submission = Submission(0, ["text"] * 2, 4)
    assert Task(submission, [1], 0).alone
    assert not Task(submission, [0, 1], 0).alone


def test_a_job_is_done_when_every_text_has_its_vector_or_its_rejection() -> None:
    submission = Submission(0, ["a", "b", "c"], 2)
    submission.store([2, 0], np.array([[1, 2], [3, 4]], np.float32))
    assert (submission.done, submission.settled) == (False, 2)
    np.testing.assert_array_equal(submission.vectors, [[3, 4], [0, 0], [1, 2]])
    submission.reject(1, REJECTION)
    assert (submission.done, submission.settled) == (True, 3)
    embeddings = submission.result()
    assert embeddings.rejections == {1: REJECTION}
    np.testing.assert_array_equal(embeddings.vectors, [[3, 4], [0, 0], [1, 2]])


def test_a_job_without_texts_is_done_at_once() -> None:
    assert Submission(0, [], 4).result().vectors.shape == (0, 4)


def test_a_failure_ends_a_job_once_and_not_one_that_is_done() -> None:
    submission, done = Submission(0, ["a"], 2), Submission(1, ["a"], 2)
    done.store([0], np.ones((1, 2), np.float32))
    for each in (submission, done):
        each.fail(EndpointUnreachable("gone"))
        each.fail(ValueError("later"))
    assert done.result().vectors.any()
    failures = []
    for _ in range(2):
        with pytest.raises(EndpointUnreachable, match="gone") as raised:
            submission.result()
        failures.append(raised.value)
    assert failures[0] is not failures[1]  # a traceback belongs to one raise


def test_whoever_waits_for_a_job_gets_its_failure() -> None:
    submission = Submission(0, ["a"], 2)
    seen: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(EndpointUnreachable) as raised:
            submission.result()
        seen.append(raised.value)

    thread = threading.Thread(target=wait)
    thread.start()
    submission.fail(EndpointUnreachable("gone"))
    thread.join(5)
    assert len(seen) == 1


def reply_of(queue: str, inference: str, tokens: str, seconds: float) -> Reply:
    headers = {"x-queue-time": queue, "x-inference-time": inference, "x-compute-tokens": tokens}
    return Reply(200, headers, b"", seconds)


def count(submission: Submission, reply: Reply, texts: int, requests: int = 1) -> None:
    submission.count_exchange(
        reply, range(texts), canary_tokens=9, max_tokens=512, truncates=True, requests_in_flight=requests
    )


def test_a_requests_statistics_are_its_texts_without_the_canary() -> None:
    submission = Submission(0, ["text"] * 31, 4)
    count(submission, reply_of("30", "10", "319", 0.05), 31, requests=2)
    submission.count_retries(3)
    submission.count_throttled(1.5)
    submission.store(range(31), np.ones((31, 4), np.float32))
    sums = submission.result().statistics
    assert (sums.requests, sums.tokens, sums.retries, sums.throttled_ms) == (1, 310, 3, 1500)
    assert (sums.queue_ms, sums.inference_ms, sums.flight_ms) == (31 * 30, 31 * 10, 31 * 50)
    # Of 50 ms with two requests in flight, 25 are this one's; 40 ms of queue and device fill them.
    assert (sums.slot_ms, sums.busy_ms) == (25, 25)
    assert sum(sums.latency_ms.values()) == 1


def test_a_device_that_is_idle_between_requests_shows() -> None:
    submission = Submission(0, ["text"] * 31, 4)
    count(submission, reply_of("0", "10", "319", 0.05), 31)
    submission.store(range(31), np.ones((31, 4), np.float32))
    sums = submission.result().statistics
    assert (sums.slot_ms, sums.busy_ms) == (50, 10)


@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=40).map(lambda found: sorted(found, reverse=True)),
    st.integers(1, 5),
    st.integers(3, 600),
)
def test_texts_that_are_truncated_are_found_where_tokens_follow_from_characters(
    characters: list[int], per_token: int, max_tokens: int
) -> None:
    characters = [length * per_token for length in characters]
    tokens = [min(length // per_token + 2, max_tokens) for length in characters]
    truncated = sum(length // per_token + 2 >= max_tokens for length in characters)
    assert count_truncated(characters, sum(tokens), max_tokens) == truncated
    assert count_truncated(characters, 0, max_tokens) == 0


def test_a_text_of_which_the_client_sends_the_beginning_is_truncated_unless_it_is_rejected() -> None:
    submission = Submission(0, ["text"] * 3, 4)
    submission.truncate([2, 0])
    submission.store([0, 1], np.ones((2, 4), np.float32))
    submission.reject(2, Rejection(Reason.REJECTED_BY_ENDPOINT, "no", 422, 1))
    assert submission.result().truncated == [0]
