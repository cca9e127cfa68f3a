from collections.abc import Iterator

import pytest

from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[TeiSimulator]:
    with TeiSimulator(["--max_concurrent_requests", "64", "--max_batch_requests", "16"]) as server:
        yield server


@pytest.fixture
def simulator(simulator_process: TeiSimulator) -> Iterator[Simulator]:
    simulator = Simulator(simulator_process.url)
    simulator.reset_statistics()
    yield simulator
    simulator.set_faults()
