"""Beam's own way: RunInference with a RemoteModelHandler that posts batches of 32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import orjson
import requests
from apache_beam.ml.inference.base import PredictionResult, RemoteModelHandler, RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from tests.benchmark.contestants import arguments

_Document = dict[str, Any]


class _Tei(RemoteModelHandler):  # type: ignore[misc] # Beam ships no types
    def __init__(self, url: str) -> None:
        super().__init__(namespace="tei", retry_filter=_is_transient)
        self._url = f"{url}/embed"

    def create_client(self) -> requests.Session:
        return requests.Session()

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        size = arguments.TEXTS_A_REQUEST
        return {"min_batch_size": size, "max_batch_size": size}

    def request(
        self,
        batch: Sequence[_Document],
        model: requests.Session,
        inference_args: object = None,  # noqa: ARG002 # as Beam calls it
    ) -> Iterable[PredictionResult]:
        question = {"inputs": [document["content"] for document in batch], "truncate": True}
        response = model.post(self._url, json=question, timeout=60)
        response.raise_for_status()
        return [PredictionResult(*pair) for pair in zip(batch, response.json(), strict=True)]


def _is_transient(error: Exception) -> bool:
    return isinstance(error, requests.RequestException)


def _line(result: PredictionResult) -> str:
    return orjson.dumps({**result.example, "embedding": result.inference}).decode()


def main() -> None:
    told = arguments.parse()
    # The runner by name, as Tayyar takes it: Beam's own choice first tries to download another one.
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromText(str(told.input / "*.ndjson"))
            | "Parse" >> beam.Map(orjson.loads)
            | RunInference(_Tei(told.url))
            | "Encode" >> beam.Map(_line)
            | beam.io.WriteToText(str(told.output / "part"), ".ndjson")
        )


if __name__ == "__main__":
    main()
