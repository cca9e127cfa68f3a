"""Ray Data: `map_batches` with an actor a core, which together have 16 requests of 32 texts in flight."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import ray
import requests
import requests.adapters

from tests.benchmark.contestants import arguments

_ACTORS = os.cpu_count() or 1  # an actor a request would be a process of some seconds of imports for each
_REQUESTS = max(1, arguments.REQUESTS_IN_FLIGHT // _ACTORS)


class _Embedder:
    def __init__(self, url: str) -> None:
        self._url = f"{url}/embed"
        self._session = requests.Session()
        self._session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=_REQUESTS))
        self._threads = ThreadPoolExecutor(_REQUESTS)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        documents = [orjson.loads(line) for line in batch["text"]]
        size = arguments.TEXTS_A_REQUEST
        some = [documents[start : start + size] for start in range(0, len(documents), size)]
        lines = [line for each in self._threads.map(self._embed, some) for line in each]
        return {"text": np.array(lines, object)}

    def _embed(self, documents: list[dict[str, Any]]) -> list[bytes]:
        question = {"inputs": [document["content"] for document in documents], "truncate": True}
        response = self._session.post(self._url, json=question, timeout=60)
        response.raise_for_status()
        pairs = zip(documents, response.json(), strict=True)
        return [orjson.dumps({**document, "embedding": row}) for document, row in pairs]


def main() -> None:
    told = arguments.parse()
    ray.init(num_cpus=_ACTORS + 1, include_dashboard=False, logging_level=logging.ERROR)
    lines = ray.data.read_text([str(path) for path in told.files])
    embedded = lines.map_batches(
        _Embedder,
        fn_constructor_args=(told.url,),
        batch_size=arguments.TEXTS_A_REQUEST * _REQUESTS,
        compute=ray.data.ActorPoolStrategy(size=_ACTORS),
    )
    # Its writer of JSON takes a detour through pandas that rounds the numbers; lines are less work for it as well.
    with (told.output / "embedded.ndjson").open("wb") as file:
        for batch in embedded.iter_batches(batch_size=1024, batch_format="pyarrow"):
            file.write(b"".join([line + b"\n" for line in batch["text"].to_pylist()]))


if __name__ == "__main__":
    main()
