"""Each row of TEI's error table, in the order in which TEI checks."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests

from tests.tei_simulator.clients import address, post
from tests.tei_simulator.process import TeiSimulator

EMPTY = "Input validation error: `inputs` cannot be empty"
LONG = " ".join(["w"] * 600)
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def keyed() -> Iterator[TeiSimulator]:
    arguments = ["--api_key", "env:TEI_KEY", "--payload_limit", "1000"]
    strict = ["--no_auto_truncate", "--max_input_length", "30"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TEI_KEY", "s3cret")
        with TeiSimulator([*arguments, *strict]) as server:
            yield server


@pytest.fixture(scope="module")
def old() -> Iterator[TeiSimulator]:
    with TeiSimulator(["--generation", "1.8"]) as server:
        yield server


@dataclass(frozen=True)
class Case:
    body: dict[str, object]
    status: int
    error_type: str
    message: str


NATIVE = [
    Case({"inputs": ""}, 400, "Empty", EMPTY),
    Case({"inputs": []}, 400, "Empty", EMPTY),
    Case({"inputs": ["a", ""]}, 400, "Empty", EMPTY),
    Case({"inputs": ["a"] * 33}, 422, "Validation", "batch size 33 > maximum allowed batch size 32"),
    Case(
        {"inputs": LONG, "truncate": False},
        422,
        "Validation",
        "Input validation error: `inputs` must have less than 512 tokens. Given: 602",
    ),
    Case(
        {"inputs": "w" * 128001, "truncate": False},
        422,
        "Validation",
        "Input validation error: `inputs` must have less than 128000 characters. Given: 128001",
    ),
    Case(
        {"inputs": "a", "dimensions": 0}, 422, "Validation", "Input validation error: `dimensions` should be positive"
    ),
    Case(
        {"inputs": "a", "dimensions": 385},
        422,
        "Validation",
        "Input validation error: `dimensions` should be smaller than the maximum embedding dimension.",
    ),
    Case(
        {"inputs": "a", "prompt_name": "x"},
        422,
        "Validation",
        "Input validation error: `default-prompt-name` is set to `x` but it was not found in the Sentence Transformers "
        'prompts. Available prompts: ["query", "passage"]',
    ),
    # the error of the lowest index is told
    Case({"inputs": ["a", "", LONG], "truncate": False}, 400, "Empty", EMPTY),
    Case(
        {"inputs": ["a", LONG, ""], "truncate": False},
        422,
        "Validation",
        "Input validation error: `inputs` must have less than 512 tokens. Given: 602",
    ),
    # the size is checked before the texts are
    Case({"inputs": [""] * 33}, 422, "Validation", "batch size 33 > maximum allowed batch size 32"),
]


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: case.message[-40:])
@pytest.mark.parametrize("path", ["/embed", "/"])
def test_native_errors(tei: TeiSimulator, case: Case, path: str) -> None:
    response = post(tei.url, path, case.body)
    assert response.status_code == case.status
    assert response.json() == {"error": case.message, "error_type": case.error_type}
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("case", [case for case in NATIVE if len(case.body) == 1], ids=lambda case: str(case.status))
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openai_errors_are_flat(tei: TeiSimulator, case: Case, path: str) -> None:
    response = post(tei.url, path, {"input": case.body["inputs"]})
    assert response.status_code == case.status
    assert response.json() == {"message": case.message, "code": case.status, "type": case.error_type}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": None},
        {"inputs": 5},
        {"inputs": {}},
        {"inputs": [1, "a"]},
        {"inputs": ["a", None]},
        {"inputs": [-1]},
        {"inputs": [1.5]},
        {"inputs": [True]},
        {"inputs": [4294967296]},
        {"inputs": "a", "normalize": None},
        {"inputs": "a", "truncate": "yes"},
        {"inputs": "a", "truncation_direction": None},
        {"inputs": "a", "truncation_direction": "up"},
        {"inputs": "a", "prompt_name": 1},
        {"inputs": "a", "dimensions": -1},
        {"inputs": "a", "dimensions": 1.0},
    ],
    ids=str,
)
def test_the_wrong_type_is_plain_422(tei: TeiSimulator, body: dict[str, object]) -> None:
    response = post(tei.url, "/embed", body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.startswith("Failed to deserialize the JSON body into the target type: ")


@pytest.mark.parametrize("field", [{"encoding_format": None}, {"encoding_format": "float16"}, {"model": 3}])
def test_the_wrong_type_is_plain_422_on_openai_routes(tei: TeiSimulator, field: dict[str, object]) -> None:
    response = post(tei.url, "/v1/embeddings", {"input": "a", **field})
    assert response.status_code == 422
    assert response.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"inputs": "a}', b'{"inputs": NaN}', b'{"inputs": "\\ud83d"}', b'{"inputs": "\xff"}'], ids=str
)
def test_what_is_no_json_is_plain_400(tei: TeiSimulator, body: bytes) -> None:
    response = requests.post(f"{tei.url}/embed", body, headers=JSON, timeout=5)
    assert response.status_code == 400
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.startswith("Failed to parse the request body as JSON: ")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/jsonp"])
def test_another_content_type_is_plain_415(tei: TeiSimulator, kind: str | None) -> None:
    response = requests.post(f"{tei.url}/embed", b"{", headers={"content-type": kind}, timeout=5)
    assert response.status_code == 415
    assert response.text == "Expected request with `Content-Type: application/json`"


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
def test_the_payload_limit_counts_bytes(tei: TeiSimulator, extra: int, status: int) -> None:
    frame = len(b'{"inputs":""}')
    body = b'{"inputs":"%b"}' % (b"a" * (2_000_000 - frame + extra))
    response = requests.post(f"{tei.url}/embed", body, headers=JSON, timeout=20)
    assert response.status_code == status
    if status == 413:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.text == "Failed to buffer the request body: length limit exceeded"


def test_a_body_without_a_length_is_limited_too(keyed: TeiSimulator) -> None:
    chunks = (b"a" * 400 for _ in range(5))
    headers = {**JSON, "authorization": "Bearer s3cret"}
    assert requests.post(f"{keyed.url}/embed", chunks, headers=headers, timeout=5).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/models", 404), ("POST", "/nothing", 404), ("GET", "/embed", 405), ("POST", "/info", 405)],
)
def test_unknown_paths_and_methods_have_no_body(tei: TeiSimulator, method: str, path: str, status: int) -> None:
    response = requests.request(method, f"{tei.url}{path}", timeout=5)
    assert (response.status_code, response.content) == (status, b"")
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "bearer s3cret", "Bearer  s3cret", "s3cret"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/info"), ("POST", "/embed"), ("POST", "/"), ("GET", "/embed")])
def test_without_the_key_it_is_an_empty_401(keyed: TeiSimulator, header: str | None, method: str, path: str) -> None:
    # the key is checked before the type, the length and the body
    response = requests.request(
        method, f"{keyed.url}{path}", data=b"{" * 2000, headers={"authorization": header}, timeout=5
    )
    assert (response.status_code, response.content) == (401, b"")
    assert "www-authenticate" not in response.headers


def test_a_large_body_that_nobody_reads_does_not_block_its_connection(keyed: TeiSimulator) -> None:
    with requests.Session() as session:
        for _ in range(2):
            assert session.post(f"{keyed.url}/embed", b"{" * 3_000_000, headers=JSON, timeout=5).status_code == 401
        headers = {"authorization": "Bearer s3cret"}
        assert session.post(f"{keyed.url}/embed", json={"inputs": "a"}, headers=headers, timeout=5).status_code == 200


def test_with_the_key_it_answers(keyed: TeiSimulator) -> None:
    assert post(keyed.url, "/embed", {"inputs": "a"}, authorization="Bearer s3cret").status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ping", 200), ("/", 200), ("/nothing", 404)])
def test_these_need_no_key(keyed: TeiSimulator, path: str, status: int) -> None:
    assert requests.get(f"{keyed.url}{path}", timeout=5).status_code == status


def test_the_type_is_checked_before_the_length_and_the_length_before_the_json(keyed: TeiSimulator) -> None:
    headers = {"authorization": "Bearer s3cret"}
    plain = requests.post(f"{keyed.url}/embed", b"{" * 2000, headers={**headers, "content-type": "x/y"}, timeout=5)
    assert plain.status_code == 415
    assert requests.post(f"{keyed.url}/embed", b"{" * 2000, headers={**headers, **JSON}, timeout=5).status_code == 413


@pytest.mark.parametrize(("truncate", "status"), [({}, 422), ({"truncate": None}, 422), ({"truncate": True}, 200)])
def test_the_servers_auto_truncate_holds_where_a_request_does_not_say(
    keyed: TeiSimulator, truncate: dict[str, object], status: int
) -> None:
    body = {"inputs": " ".join(["a"] * 40), **truncate}
    assert post(keyed.url, "/embed", body, authorization="Bearer s3cret").status_code == status


def test_tokenize_errors(tei: TeiSimulator) -> None:
    empty = post(tei.url, "/tokenize", {"inputs": []})
    assert (empty.status_code, empty.json()["error"]) == (400, "`inputs` cannot be empty")
    assert post(tei.url, "/tokenize", {"inputs": ""}).json() == {"error": EMPTY, "error_type": "Empty"}
    assert post(tei.url, "/tokenize", {"inputs": ["a"] * 33}).json()["error_type"] == "Validation"
    assert post(tei.url, "/tokenize", {"inputs": [1]}).status_code == 422
    assert post(tei.url, "/tokenize", {"inputs": "w" * 128001}).status_code == 422
    assert post(tei.url, "/tokenize", {"inputs": "a", "prompt_name": "x"}).status_code == 422


def test_the_older_generation_says_413(old: TeiSimulator) -> None:
    response = post(old.url, "/embed", {"inputs": ["a"] * 33})
    assert response.status_code == 413
    assert response.json()["error_type"] == "Validation"
    assert post(old.url, "/embed", {"inputs": ""}).json() == {"error": EMPTY, "error_type": "Validation"}
    info = requests.get(f"{old.url}/info", timeout=5).json()
    assert info["version"].startswith("1.8")
    assert "served_model_name" not in info


def test_a_connection_serves_on_after_an_error(tei: TeiSimulator) -> None:
    connection = http.client.HTTPConnection(*address(tei.url), timeout=5)
    connection.connect()
    socket = connection.sock
    for body, status in [(b'{"inputs":""}', 400), (b"{", 400), (b'{"inputs":"a"}', 200)]:
        connection.request("POST", "/embed", body, JSON)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert connection.sock is socket
    connection.close()
