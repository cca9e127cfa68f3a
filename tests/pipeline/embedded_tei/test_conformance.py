"""The server against clients that others wrote for TEI."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import numpy as np
import openai
import pytest

from tests.tei_simulator.clients import Simulator, embed
from tests.tei_simulator.process import TeiSimulator

TEXTS = ["القاهرة هي عاصمة مصر", "a plain text"]


def test_the_hub_client(tei: TeiSimulator) -> None:
    client = huggingface_hub.InferenceClient(tei.url)
    np.testing.assert_array_equal(client.feature_extraction(TEXTS[0]), embed(tei.url, TEXTS[0]))
    np.testing.assert_array_equal(client.feature_extraction(TEXTS, normalize=True), embed(tei.url, TEXTS))
    prompted = client.feature_extraction("a", prompt_name="query", truncate=True, truncation_direction="left")
    np.testing.assert_array_equal(prompted, embed(tei.url, "query: a"))


def test_the_hub_client_reads_errors(tei: TeiSimulator) -> None:
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="`inputs` cannot be empty"):
        huggingface_hub.InferenceClient(tei.url).feature_extraction("")


@pytest.mark.parametrize("format_", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_the_openai_client(tei: TeiSimulator, format_: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{tei.url}/v1", api_key="-") as client:
        reply = client.embeddings.create(model="any", input=TEXTS, **format_)
    rows = [item.embedding for item in reply.data]
    if format_.get("encoding_format") != "base64":
        np.testing.assert_array_equal(np.array(rows, np.float32), embed(tei.url, TEXTS))
    assert [item.index for item in reply.data] == [0, 1]
    assert reply.usage.total_tokens == 4 + 2 + 3 + 2
    assert reply.model == "tayyar/hash"


def test_the_openai_client_reads_errors(tei: TeiSimulator) -> None:
    with openai.OpenAI(base_url=f"{tei.url}/v1", api_key="-", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="`inputs` cannot be empty"):
            client.embeddings.create(model="any", input="")
        with pytest.raises(openai.UnprocessableEntityError, match="batch size 33 > maximum allowed batch size 32"):
            client.embeddings.create(model="any", input=["a"] * 33)


def test_the_openai_client_retries_what_is_overloaded(simulator: Simulator) -> None:
    simulator.script("reject", "unavailable", "ok", retry_after=0.01)
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="-", max_retries=2) as client:
        assert len(client.embeddings.create(model="any", input=TEXTS).data) == 2
    assert simulator.statistics()["requests"] == 3
