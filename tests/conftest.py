from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from pipeline.embedded_tei.process import EmbeddedTei

# The machine may be busy: how long one example takes says nothing about the code.
settings.register_profile("tayyar", deadline=None, max_examples=150)
settings.load_profile("tayyar")
# Many containers keep no bytecode. Then each of a hundred processes would compile these packages anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Whoever starts the tests in the background may have them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def hash_tei() -> Iterator[str]:
    """The URL of a real server process with a hash in the model's place."""
    with EmbeddedTei(["--model", "hash"]) as server:
        yield server.url
