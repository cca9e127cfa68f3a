from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.storages import KEYS, KINDS, Storage, fresh_clients, gcs_server, place_of, s3_server
from tests.tei_simulator.process import TeiSimulator

# The machine may be busy: how long one example takes says nothing about the code.
settings.register_profile("tayyar", deadline=None, max_examples=150)
settings.register_profile("thorough", deadline=None, max_examples=1500)
settings.load_profile("tayyar")
# Many containers keep no bytecode. Then each of a hundred processes would compile these packages anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Whoever starts the tests in the background may have them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the Flink cluster first and side by side, since each process that gets one starts a cluster."""
    items.sort(key=lambda item: "cluster" not in item.name)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is loaded by now, and stays."""
    gc.freeze()


@pytest.fixture(scope="session")
def hash_tei() -> Iterator[str]:
    """The URL of a real server process with a hash in the model's place."""
    with TeiSimulator() as server:
        yield server.url


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that point to Google Cloud Storage's emulator, which is running."""
    with gcs_server(tmp_path_factory.mktemp("gs") / "log") as url:
        yield {"STORAGE_EMULATOR_HOST": url}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that point to an S3, which is running."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as url:
        yield {**KEYS, "AWS_ENDPOINT_URL_S3": url}


# The emulators are larger tools.
STORAGES = [kind if kind == "local" else pytest.param(kind, marks=pytest.mark.outside) for kind in KINDS]


@pytest.fixture(scope="module", params=STORAGES)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """A kind of storage, its server running, and this process with its children pointing to it."""
    variables = {} if request.param == "local" else request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch, fresh_clients(request.param):
        for name, value in variables.items():
            patch.setenv(name, value)
        yield request.param


@pytest.fixture
def place(kind: str, tmp_path: Path) -> Storage:
    """A fresh folder in the storage."""
    return place_of(kind, tmp_path)
