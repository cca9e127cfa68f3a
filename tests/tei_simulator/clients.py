"""Small clients that the tests share."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import requests

Rows = npt.NDArray[np.float32]


def post(url: str, path: str, body: object, **headers: str) -> requests.Response:
    return requests.post(f"{url}{path}", json=body, headers=headers, timeout=20, allow_redirects=False)


def embed(url: str, inputs: object, **fields: object) -> Rows:
    response = post(url, "/embed", {"inputs": inputs, **fields})
    assert response.status_code == 200, response.text
    return np.array(response.json(), np.float64).astype(np.float32)


def embed_base64(url: str, inputs: object, **fields: object) -> Rows:
    response = post(url, "/v1/embeddings", {"input": inputs, "encoding_format": "base64", **fields})
    assert response.status_code == 200, response.text
    rows = [
        np.frombuffer(base64.b64decode(item["embedding"], validate=True), "<f4") for item in response.json()["data"]
    ]
    return np.stack(rows)


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


class Simulator:
    """A running simulator and its control routes."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set_faults(self, **faults: object) -> None:
        response = post(self.url, "/simulator/faults", faults)
        assert response.status_code == 200, response.text

    def change_faults(self, **faults: object) -> None:
        """Change some faults while everything goes on."""
        response = requests.patch(f"{self.url}/simulator/faults", json=faults, timeout=20)
        assert response.status_code == 200, response.text

    def hold(self) -> None:
        """Keeps the next batches on the device until the faults are set again."""
        self.set_faults(batch_seconds=60)

    def script(self, *faults: str, **others: object) -> None:
        self.set_faults(script=faults, **others)

    def reset_statistics(self) -> None:
        assert post(self.url, "/simulator/statistics", None).status_code == 200

    def statistics(self) -> dict[str, Any]:
        told: dict[str, Any] = requests.get(f"{self.url}/simulator/statistics", timeout=5).json()
        return told

    def wait_for(self, name: str, value: int, within: float = 10.0) -> None:
        """Waits until a count has a value; the server has no way to tell on its own."""
        deadline = time.monotonic() + within
        while self.statistics()[name] != value:
            assert time.monotonic() < deadline, self.statistics()
            time.sleep(0.005)

    def embed(self, inputs: Sequence[str]) -> requests.Response:
        return post(self.url, "/embed", {"inputs": inputs})
