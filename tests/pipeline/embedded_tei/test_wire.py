import re

import numpy as np
import pytest
import requests

from tests.tei_simulator.clients import embed, embed_base64, post
from tests.tei_simulator.process import TeiSimulator

TEXTS = ["القاهرة هي عاصمة مصر", "a plain text", "emoji 🙂 and ﷺ", "  ", "x" * 3000]
INFO_KEYS = [
    "model_id",
    "model_sha",
    "model_dtype",
    "served_model_name",
    "model_type",
    "max_concurrent_requests",
    "max_input_length",
    "max_batch_tokens",
    "max_batch_requests",
    "max_client_batch_size",
    "auto_truncate",
    "tokenization_workers",
    "version",
    "sha",
    "docker_label",
]


def test_info_has_all_keys_in_order(tei: TeiSimulator) -> None:
    info = requests.get(f"{tei.url}/info", timeout=5).json()
    assert list(info) == INFO_KEYS
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_concurrent_requests"], info["max_client_batch_size"]) == (512, 32)
    assert info["version"] == "1.9.3"


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_an_empty_200(tei: TeiSimulator, path: str, method: str) -> None:
    response = requests.request(method, f"{tei.url}{path}", timeout=5)
    assert (response.status_code, response.content) == (200, b"")


def test_all_formats_give_the_same_bits(tei: TeiSimulator) -> None:
    rows = embed(tei.url, TEXTS)
    assert rows.shape == (len(TEXTS), 384)
    floats = post(tei.url, "/v1/embeddings", {"input": TEXTS}).json()["data"]
    assert [item["index"] for item in floats] == list(range(len(TEXTS)))
    openai_rows = np.array([item["embedding"] for item in floats], np.float64).astype(np.float32)
    np.testing.assert_array_equal(rows.view(np.uint32), openai_rows.view(np.uint32))
    np.testing.assert_array_equal(rows.view(np.uint32), embed_base64(tei.url, TEXTS).view(np.uint32))


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_a_single_text_is_one_row_and_the_same_as_in_a_batch(tei: TeiSimulator, path: str) -> None:
    single = post(tei.url, path, {"inputs": TEXTS[0]}).json()
    assert len(single) == 1
    assert single[0] == post(tei.url, path, {"inputs": TEXTS}).json()[0]


def test_rows_have_unit_norm_and_differ(tei: TeiSimulator) -> None:
    rows = embed(tei.url, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert abs(rows @ rows.T - np.eye(len(TEXTS))).max() < 0.3


def test_decimals_are_the_shortest(tei: TeiSimulator) -> None:
    text = post(tei.url, "/embed", {"inputs": TEXTS[0]}).text
    decimals = re.findall(r"[-0-9.e]+", text)
    assert len(decimals) == 384
    assert all(decimal == np.format_float_positional(np.float32(decimal), trim="0") for decimal in decimals)
    assert " " not in text


def test_dimensions_are_cut_then_normalised(tei: TeiSimulator) -> None:
    whole, cut = embed(tei.url, TEXTS), embed(tei.url, TEXTS, dimensions=8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, rtol=1e-6)
    np.testing.assert_array_equal(cut, embed_base64(tei.url, TEXTS, dimensions=8))
    np.testing.assert_array_equal(whole, embed(tei.url, TEXTS, dimensions=384))


def test_normalize_false_shows(tei: TeiSimulator) -> None:
    np.testing.assert_array_equal(embed(tei.url, TEXTS, normalize=False), embed(tei.url, TEXTS) * 4)


def test_prompts_are_put_before_the_text(tei: TeiSimulator) -> None:
    np.testing.assert_array_equal(embed(tei.url, "a", prompt_name="query"), embed(tei.url, "query: a"))
    assert (embed(tei.url, "a", prompt_name="query") != embed(tei.url, "a", prompt_name="passage")).any()


def test_truncation_keeps_the_right_end(tei: TeiSimulator) -> None:
    words = [f"w{k}" for k in range(600)]
    long = " ".join(words)
    # 512 tokens, of which two are special
    np.testing.assert_array_equal(embed(tei.url, long), embed(tei.url, " ".join(words[:510])))
    left = embed(tei.url, long, truncation_direction="left")
    np.testing.assert_array_equal(left, embed(tei.url, " " + " ".join(words[-510:])))
    exact = " ".join(words[:510])
    np.testing.assert_array_equal(embed(tei.url, exact, truncate=False), embed(tei.url, exact))


def test_a_text_of_too_many_characters_is_cut_at_a_byte_first(tei: TeiSimulator) -> None:
    most = 512 * 250
    kept = embed(tei.url, "w" * most)
    np.testing.assert_array_equal(embed(tei.url, "w" * most + "x"), kept)
    np.testing.assert_array_equal(embed(tei.url, "w" * most + "م"), kept)
    # the last byte that fits is inside a character, so nothing is cut
    assert (embed(tei.url, "w" * (most - 1) + "مx") != kept).any()


@pytest.mark.parametrize("body", [b'{"inputs":"a"} trailing', b'{"inputs":"a"}{', b' {"inputs":"a","unknown":[1]}'])
def test_what_is_unknown_or_behind_is_ignored(tei: TeiSimulator, body: bytes) -> None:
    response = requests.post(f"{tei.url}/embed", body, headers={"content-type": "application/json"}, timeout=5)
    assert response.status_code == 200


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.x+json", "Application/JSON"])
def test_json_content_types(tei: TeiSimulator, kind: str) -> None:
    assert post(tei.url, "/embed", {"inputs": "a"}, **{"content-type": kind}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openai_shape(tei: TeiSimulator, path: str) -> None:
    reply = post(tei.url, path, {"input": ["one two", "three"], "model": "any", "user": None}).json()
    assert list(reply) == ["object", "data", "model", "usage"]
    assert list(reply["data"][0]) == ["object", "embedding", "index"]
    assert reply["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert reply["model"] == "tayyar/hash"


@pytest.mark.parametrize(("path", "field"), [("/embed", "inputs"), ("/v1/embeddings", "input")])
def test_headers_of_success(tei: TeiSimulator, path: str, field: str) -> None:
    headers = post(tei.url, path, {field: ["مصر هنا", "b"]}).headers
    assert headers["x-compute-type"] == "gpu+optimized"
    assert headers["x-compute-characters"] == "8"
    assert headers["x-compute-tokens"] == "7"
    times = ["x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"]
    assert all(headers[name].isdigit() for name in times)
    assert not [name for name in headers if name.startswith("access-control")]


def test_headers_only_of_success(tei: TeiSimulator) -> None:
    others = [
        post(tei.url, "/embed", {"inputs": ""}),
        post(tei.url, "/tokenize", {"inputs": "a"}),
        requests.get(f"{tei.url}/info", timeout=5),
        requests.get(f"{tei.url}/health", timeout=5),
    ]
    assert not [name for response in others for name in response.headers if name.startswith("x-")]


def test_tokenize_tells_byte_offsets(tei: TeiSimulator) -> None:
    tokens = post(tei.url, "/tokenize", {"inputs": ["مصر هنا"], "prompt_name": "query"}).json()[0]
    assert tokens[0] == {"id": 0, "text": "<s>", "special": True, "start": None, "stop": None}
    assert tokens[-1]["special"]
    whole = "query: مصر هنا".encode()
    inner = tokens[1:-1]
    assert [whole[token["start"] : token["stop"]].decode() for token in inner] == [token["text"] for token in inner]
    assert "".join(token["text"] for token in inner) == whole.decode()
    plain = post(tei.url, "/tokenize", {"inputs": "مصر هنا", "add_special_tokens": False}).json()
    assert [token["text"] for token in plain[0]] == ["مصر", " هنا"]


def test_tokenize_counts_what_embed_reads(tei: TeiSimulator) -> None:
    for text in [*TEXTS, " a  b "]:
        tokens = post(tei.url, "/tokenize", {"inputs": [text]}).json()[0]
        assert int(post(tei.url, "/embed", {"inputs": text}).headers["x-compute-tokens"]) == len(tokens)
