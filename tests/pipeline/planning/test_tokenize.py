from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from pipeline.planning.tokenize import CannotTokenize, count_tokens
from tests.tei_simulator.process import TeiSimulator
from transforms.tei.credentials import Credentials
from transforms.tei.handshake import ServerInfo, parse_info
from transforms.tei.transport import HttpTransport


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with TeiSimulator(["--max_client_batch_size", "3", "--max_input_length", "20"]) as server:
        yield server.url


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(Credentials(), 10.0)
    yield made
    made.close()


def info_of(url: str) -> ServerInfo:
    return parse_info(requests.get(f"{url}/info", timeout=10).content, url)


def test_every_text_has_its_own_count_however_they_are_batched(url: str, transport: HttpTransport) -> None:
    texts = ["one", "one two three", "التيّار يبلغ البحر", "word " * 40, "one two", "one"]
    found = count_tokens(transport, url, info_of(url), texts, None)
    alone = [requests.post(f"{url}/tokenize", json={"inputs": text}, timeout=10).json()[0] for text in texts]
    assert found == [len(tokens) for tokens in alone]
    assert found[3] is not None
    assert found[3] > 20  # before any cut


def test_a_text_that_the_server_would_not_read_has_none(url: str, transport: HttpTransport) -> None:
    texts = ["one", "x" * (20 * 250 + 1), "\ud800 lone"]
    found = count_tokens(transport, url, info_of(url), texts, None)
    assert found[1] is None
    assert found[0] is not None
    assert found[2] is not None


def test_a_prompt_that_the_model_does_not_have_is_not_passed_over(url: str, transport: HttpTransport) -> None:
    with pytest.raises(CannotTokenize, match="status"):
        count_tokens(transport, url, info_of(url), ["one"], "no such prompt")


def test_a_server_that_does_not_tell_is_named(url: str, transport: HttpTransport) -> None:
    info = info_of(url)
    with pytest.raises(CannotTokenize, match="elsewhere/tokenize answers with status 404"):
        count_tokens(transport, f"{url}/elsewhere", info, ["one"], None)
    with pytest.raises(CannotTokenize, match="no answer"):
        count_tokens(transport, "http://127.0.0.1:1", info, ["one"], None)
