"""The server against its description, and against clients that others wrote for TEI."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import numpy as np
import openai
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from pipeline.embedded_tei.openapi import describe

from pipeline.embedded_tei.limits import ServerLimits
from tests.tei_simulator.clients import Simulator, embed
from tests.tei_simulator.hash_model import HashModel
from tests.tei_simulator.process import TeiSimulator

TEXTS = ["القاهرة هي عاصمة مصر", "a plain text"]

schema = schemathesis.openapi.from_dict(describe(HashModel(), ServerLimits()))


@schema.hook
def map_body(context: object, body: object) -> object:
    """Writes 3.0 as 3: both are integers to JSON Schema, and only the second one is to TEI."""
    if isinstance(body, float) and body.is_integer():
        return int(body)
    if isinstance(body, list):
        return [map_body(context, item) for item in body]
    if isinstance(body, dict):
        return {name: map_body(context, item) for name, item in body.items()}
    return body


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
def test_every_answer_is_as_described(case: Any, tei: TeiSimulator) -> None:
    case.call_and_validate(base_url=tei.url)


def test_the_description_is_served(tei: TeiSimulator) -> None:
    served = requests.get(f"{tei.url}/api-doc/openapi.json", timeout=5).json()
    assert served == describe(HashModel(), ServerLimits())


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
