"""Daft: a UDF over batches of 32, with a pool of 16 requests in flight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import daft
import orjson
import requests
import requests.adapters

from tests.benchmark.contestants import arguments


@daft.cls
class _Embedder:
    def __init__(self, url: str) -> None:
        self._url = f"{url}/embed"
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=arguments.REQUESTS_IN_FLIGHT)
        self._session.mount("http://", adapter)
        self._threads = ThreadPoolExecutor(arguments.REQUESTS_IN_FLIGHT)

    @daft.method.batch(return_dtype=daft.DataType.string())  # type: ignore[untyped-decorator]
    def embed(self, lines: daft.Series) -> list[str]:
        documents = [orjson.loads(line) for line in lines]
        size = arguments.TEXTS_A_REQUEST
        batches = [documents[start : start + size] for start in range(0, len(documents), size)]
        return [line for some in self._threads.map(self._embed, batches) for line in some]

    def _embed(self, documents: list[dict[str, Any]]) -> list[str]:
        question = {"inputs": [document["content"] for document in documents], "truncate": True}
        response = self._session.post(self._url, json=question, timeout=60)
        response.raise_for_status()
        pairs = zip(documents, response.json(), strict=True)
        return [orjson.dumps({**document, "embedding": row}).decode() for document, row in pairs]


def main() -> None:
    told = arguments.parse()
    lines = daft.read_text([str(path) for path in told.files])
    embedded = lines.select(_Embedder(told.url).embed(lines["text"]))
    with (told.output / "embedded.ndjson").open("w", encoding="utf-8") as file:
        for batch in embedded.to_arrow_iter():
            for line in batch.column(0).to_pylist():
                file.write(line + "\n")


if __name__ == "__main__":
    main()
