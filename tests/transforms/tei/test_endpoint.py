from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest

from transforms.tei.endpoint import Budget

PERMITS = 512
BATCH = 32
SERVICE = 0.05  # seconds that a request takes


def test_a_client_that_is_alone_uses_all_permits() -> None:
    budget = Budget(PERMITS)
    for _ in range(16):
        assert budget.fits(BATCH)
        budget.acquire(BATCH)
    assert not budget.fits(1)
    budget.release(BATCH)
    assert budget.fits(BATCH)


def test_one_of_several_starts_with_its_share_and_takes_what_others_leave() -> None:
    budget = Budget(PERMITS, PERMITS // 4)
    assert budget.limit == PERMITS // 4
    for _ in range(2000):
        budget.succeeded(BATCH)
    assert budget.limit == PERMITS


def test_a_share_is_no_more_than_what_is_permitted() -> None:
    assert Budget(PERMITS, PERMITS + 1).limit == PERMITS


def test_requests_that_were_refused_together_cost_one_cut() -> None:
    budget = Budget(PERMITS)
    budget.acquire(PERMITS)
    assert budget.refused(sent_at=0.0, now=1.0)
    limit = budget.limit
    assert not budget.refused(sent_at=0.5, now=1.1)
    assert budget.limit == limit < PERMITS
    assert budget.refused(sent_at=1.2, now=1.3)
    assert budget.limit < limit


def test_a_client_with_more_than_its_share_goes_back_to_it_when_refused() -> None:
    budget = Budget(PERMITS, 128)
    for _ in range(30):
        budget.succeeded(BATCH)
    budget.acquire(160)
    budget.refused(sent_at=0.0, now=1.0)
    assert budget.limit == 128
    budget.release(32)
    budget.refused(sent_at=2.0, now=3.0)
    assert budget.limit < 128


def test_a_client_that_has_its_share_sends_whole_batches_and_one_with_less_sends_parts() -> None:
    budget = Budget(PERMITS, 128)
    assert budget.most_texts == 128
    budget.refused(sent_at=0.0, now=1.0)
    assert budget.most_texts == budget.limit // 4
    for second in range(2, 100):
        budget.refused(second, second + 0.5)
    assert budget.most_texts == 1


def test_a_server_that_permits_more_now_is_believed() -> None:
    budget = Budget(64)
    budget.resize(PERMITS)
    assert (budget.ceiling, budget.share, budget.limit) == (PERMITS, PERMITS, 64)


def test_a_client_with_little_to_send_learns_little_from_a_refusal() -> None:
    budget = Budget(PERMITS)
    budget.acquire(1)
    budget.refused(sent_at=0.0, now=1.0)
    assert budget.limit > PERMITS / 4


def test_one_text_is_always_allowed() -> None:
    budget = Budget(PERMITS)
    for second in range(100):
        budget.refused(second, second + 0.5)
    assert budget.limit == 1
    assert budget.fits(1)


def test_the_limit_comes_back_but_not_above_what_the_server_permits() -> None:
    budget = Budget(PERMITS)
    budget.refused(0, 1)
    for _ in range(2000):
        budget.succeeded(BATCH)
    assert budget.limit == PERMITS


def test_a_server_that_permits_less_now_is_believed() -> None:
    budget = Budget(PERMITS)
    budget.resize(64)
    assert budget.limit == 64
    budget.succeeded(BATCH)
    assert budget.limit == 64


@dataclass
class Client:
    budget: Budget
    served: int = 0
    refused: int = 0
    waits_until: float = 0.0


class Crowd:
    """Several clients with endless work against one server that refuses what exceeds its permits."""

    def __init__(self, clients: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clients = [Client(Budget(PERMITS)) for _ in range(clients)]
        self.taken = 0
        self.now = 0.0
        self.events: list[tuple[float, int, Client, float, int]] = []
        self.busy = 0.0

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for client in self.rng.sample(self.clients, len(self.clients)):
                self._send(client)
            if not self.events:
                self.now += 0.005
                continue
            then, _, client, sent_at, texts = heapq.heappop(self.events)
            self.busy += (then - self.now) * self.taken / PERMITS
            self.now = then
            self._arrive(client, sent_at, texts)

    def _send(self, client: Client) -> None:
        while self.now >= client.waits_until:
            texts = min(BATCH, client.budget.limit)
            if not client.budget.fits(texts):
                return
            client.budget.acquire(texts)
            accepted = self.taken + texts <= PERMITS
            self.taken += texts if accepted else 0
            seconds = SERVICE * self.rng.uniform(0.8, 1.2) if accepted else 0.002
            entry = (self.now + seconds, self.rng.getrandbits(60), client, self.now, texts if accepted else -texts)
            heapq.heappush(self.events, entry)
            if not accepted:
                return

    def _arrive(self, client: Client, sent_at: float, texts: int) -> None:
        if texts > 0:
            self.taken -= texts
            client.served += texts
            client.budget.succeeded(texts)
        else:
            client.refused += 1
            client.budget.refused(sent_at, self.now)
            client.waits_until = self.now + self.rng.uniform(0, 0.1)
        client.budget.release(abs(texts))


@pytest.mark.parametrize("seed", range(3))
def test_eight_clients_settle_near_a_fair_share(seed: int) -> None:
    crowd = Crowd(8, seed)
    crowd.run(20)
    for client in crowd.clients:
        client.served = client.refused = 0
    crowd.busy, began = 0.0, crowd.now
    crowd.run(40)
    served = [client.served for client in crowd.clients]
    fair = sum(served) / len(served)
    assert min(served) > 0.7 * fair
    assert max(served) < 1.3 * fair
    assert crowd.busy / (crowd.now - began) > 0.8
    assert sum(client.refused for client in crowd.clients) < 0.1 * sum(served) / BATCH


def test_a_client_takes_what_others_leave() -> None:
    crowd = Crowd(2, 5)
    crowd.run(10)
    gone = crowd.clients.pop()
    crowd.run(10)
    assert gone.served
    assert crowd.clients[0].budget.limit > 0.9 * PERMITS
