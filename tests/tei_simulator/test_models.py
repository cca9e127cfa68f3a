"""Vectors that are not what they seem: other models, prompts, noise, caches; and the vectors that are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import requests

from tests.tei_simulator.clients import Simulator, embed, embed_base64, post
from tests.tei_simulator.hash_model import expected_vector, expected_vectors
from tests.tei_simulator.process import TeiSimulator

TEXTS = [f"text {k}" for k in range(16)]
OTHER = 1_000_003


def _info(simulator: Simulator) -> dict[str, object]:
    fields: dict[str, object] = requests.get(f"{simulator.url}/info", timeout=5).json()
    return fields


@pytest.mark.parametrize(
    "text", ["a", "  two  spaces ", "w " * 900, " w" * 900, "x" * 200_000, "م " * 100_000], ids=len
)
def test_the_expected_vector_is_what_the_server_replies(simulator: Simulator, text: str) -> None:
    np.testing.assert_array_equal(embed(simulator.url, text)[0], expected_vector(text))
    np.testing.assert_array_equal(
        embed_base64(simulator.url, text, dimensions=8)[0], expected_vector(text, dimensions=8)
    )


@pytest.mark.timeout(60)  # half a second's work; minutes, if each word had the rest of the text looked at
def test_long_texts_are_tokenized_in_linear_time() -> None:
    assert len(expected_vectors(["word " * 40_000] * 100)) == 100


def test_a_share_of_the_replies_comes_from_another_model(simulator: Simulator) -> None:
    before = _info(simulator)
    simulator.set_faults(mix=0.3)
    replies = [embed(simulator.url, TEXTS) for _ in range(60)]
    others = [np.array_equal(rows, expected_vectors(TEXTS, OTHER)) for rows in replies]
    assert all(
        other or np.array_equal(rows, expected_vectors(TEXTS)) for other, rows in zip(others, replies, strict=True)
    )
    assert 0.1 < np.mean(others) < 0.5
    assert _info(simulator) == before


def test_the_model_is_swapped_after_some_texts_on_the_same_connection(simulator: Simulator) -> None:
    simulator.set_faults(swap_at=32, other_seed=7)
    with requests.Session() as session:
        replies = [session.post(f"{simulator.url}/embed", json={"inputs": TEXTS}, timeout=5).json() for _ in range(4)]
    seeds = [0, 0, 7, 7]
    for rows, seed in zip(replies, seeds, strict=True):
        np.testing.assert_array_equal(np.array(rows, np.float32), expected_vectors(TEXTS, seed))
    simulator.set_faults()
    simulator.change_faults(swap_at=0)
    np.testing.assert_array_equal(
        embed(simulator.url, TEXTS, dimensions=8), expected_vectors(TEXTS, OTHER, dimensions=8)
    )


def test_a_restart_under_the_same_name_may_serve_another_space(simulator: Simulator) -> None:
    before = _info(simulator)
    with TeiSimulator(["--model_seed", "5", "--same_name", "true", "--info_fields", '{"version": "1.8.9"}']) as other:
        fields = _info(Simulator(other.url))
        assert (fields["model_id"], fields["model_sha"]) == (before["model_id"], before["model_sha"])
        assert fields["version"] == "1.8.9"
        np.testing.assert_array_equal(embed(other.url, TEXTS), expected_vectors(TEXTS, 5))


@pytest.mark.parametrize("fault", ["shuffled", "swapped"])
def test_rows_change_places(simulator: Simulator, fault: str) -> None:
    simulator.set_faults(**{fault: 1})
    right, found = expected_vectors(TEXTS), embed(simulator.url, TEXTS)
    moved = int((found != right).any(axis=1).sum())
    assert moved == 2 if fault == "swapped" else moved > 8
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(right, axis=0))


def test_a_prompt_is_set_silently(simulator: Simulator) -> None:
    simulator.change_faults(default_prompt="passage: ")
    np.testing.assert_array_equal(embed(simulator.url, TEXTS), expected_vectors(TEXTS, prompt="passage: "))


def test_noise(simulator: Simulator) -> None:
    right = expected_vectors(TEXTS)
    simulator.set_faults(noise="float16")
    rounded = embed(simulator.url, TEXTS)
    assert (rounded != right).any()
    np.testing.assert_allclose(rounded, right, atol=2**-11)
    simulator.set_faults(noise="quantized")
    alone, together = embed(simulator.url, TEXTS[0])[0], embed(simulator.url, TEXTS)
    np.testing.assert_allclose((together * right).sum(axis=1), 0.99875, atol=0.0005)
    np.testing.assert_array_equal(embed(simulator.url, TEXTS), together)
    assert (alone != together[0]).any()


def test_a_caching_proxy(simulator: Simulator) -> None:
    simulator.set_faults(cache="body")
    first = embed(simulator.url, TEXTS)
    simulator.change_faults(model_seed=1)
    np.testing.assert_array_equal(embed(simulator.url, TEXTS), first)
    np.testing.assert_array_equal(embed(simulator.url, TEXTS[:2]), expected_vectors(TEXTS[:2], 1))
    simulator.set_faults(cache="first_text")
    embed(simulator.url, ["a", "b"])
    np.testing.assert_array_equal(embed(simulator.url, ["a", "c"]), expected_vectors(["a", "b"]))
    assert simulator.statistics()["cache_hits"] == 2


def test_a_token_expires_until_its_file_changes(simulator: Simulator, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    simulator.set_faults(token_file=str(file), expire_after=2)

    def status(token: str) -> int:
        return post(simulator.url, "/embed", {"inputs": "a"}, authorization=f"Bearer {token}").status_code

    assert [status("one"), status("two"), status("one"), status("one"), status("one")] == [200, 401, 200, 401, 401]
    file.write_text("two")
    assert [status("one"), status("two")] == [401, 200]


def test_a_header_may_be_required(simulator: Simulator) -> None:
    simulator.set_faults(required_header="x-api-key: secret")
    assert simulator.embed(["a"]).status_code == 401
    assert post(simulator.url, "/embed", {"inputs": "a"}, **{"x-api-key": "secret"}).status_code == 200


def test_servers_without_information(simulator: Simulator) -> None:
    simulator.set_faults(no_info=True)
    assert requests.get(f"{simulator.url}/info", timeout=5).status_code == 404
    assert simulator.embed(["a"]).status_code == 200
    simulator.set_faults(openai_only=True)
    assert requests.get(f"{simulator.url}/info", timeout=5).status_code == 404
    assert simulator.embed(["a"]).status_code == 404
    assert requests.get(f"{simulator.url}/v1/models", timeout=5).json()["data"][0]["id"] == "tayyar/hash"
    reply = post(simulator.url, "/v1/embeddings", {"input": TEXTS})
    assert len(reply.json()["data"]) == len(TEXTS)
    assert not [name for name in reply.headers if name.startswith("x-")]
