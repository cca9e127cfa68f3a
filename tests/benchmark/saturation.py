"""What share of a device's capacity is used, from the first document to the last: a simulated device, a real model."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import requests

from pipeline.embedded_tei.process import EmbeddedTei
from tests.benchmark import corpus, process, table
from tests.benchmark.check import check
from tests.benchmark.registry import CONTESTANTS, TAYYAR, Contestant
from tests.tei_simulator.process import TeiSimulator

_LOADER = "floor + HTTP"
_NAMES = (TAYYAR.name, _LOADER, "tutorial")
_AS_TEI = ("--max_client_batch_size", "32", "--max_concurrent_requests", "512")  # what the loader takes for granted
_FIRST_DOCUMENTS = 64  # texts, more than anyone sends to get to know the endpoint


def saturate(work: Path, documents: int, tokens_per_second: float) -> list[table.Row]:
    """Measure against a simulated device of fixed capacity, behind the real server's permits."""
    source = work / f"corpus-{documents}"
    corpus.write_corpus(source, [documents - documents // 2, documents // 2])
    chosen = [each for each in CONTESTANTS if each.name in _NAMES and not each.missing]
    return [_measured(each, source, work / "output", tokens_per_second) for each in chosen]


def _measured(contestant: Contestant, source: Path, output: Path, tokens_per_second: float) -> table.Row:
    faults = json.dumps({"tokens_per_second": tokens_per_second})
    with TeiSimulator(["--faults", faults]) as server:
        stats = f"{server.url}/simulator/statistics"
        starting = threading.Thread(target=_count_from_the_first_document, args=(stats,), daemon=True)
        starting.start()
        usage = process.measure(contestant.command(source, output, server.url))
        starting.join()
        counts = requests.get(stats, timeout=10).json()
    documents = check(source, output)
    shutil.rmtree(output)
    return _row(contestant.name, documents, counts, usage)


def _count_from_the_first_document(stats: str) -> None:
    """Start the counts again when the documents come, so that getting to know the endpoint is not in them."""
    while requests.get(stats, timeout=10).json()["texts"] < _FIRST_DOCUMENTS:
        time.sleep(0.001)
    requests.post(stats, timeout=10)


def _row(name: str, documents: int, counts: dict[str, Any], usage: process.Usage) -> table.Row:
    return {
        "contestant": name,
        "documents": documents,
        "share of capacity": counts["busy_share"],
        "429s": counts["rejected"],
        "texts sent twice": counts["texts_repeated"],
        "most texts in flight": counts["peak_texts_in_flight"],
        "wall s": usage.wall,
    }


def notes(tokens_per_second: float) -> list[str]:
    """What it was measured on."""
    return [
        f"A simulated device that reads {tokens_per_second:,.0f} tokens a second and forms batches as TEI does, behind "
        "512 permits. Share of capacity: how much of the time from the first document's request to the last reply it "
        "was busy; the first 64 texts are not counted. The known sentence that Tayyar sends now and then counts as "
        "sent twice. Every output was checked."
    ]


def saturate_model(work: Path, documents: int) -> list[table.Row]:
    """Measure against the embedded model, which has the processor's cores to share with whoever asks it."""
    source = work / f"corpus-{documents}"
    corpus.write_corpus(source, [documents])
    rates = {
        each.name: _rate(each, source, work / "output") for each in CONTESTANTS if each.name in (TAYYAR.name, _LOADER)
    }
    return [
        {"contestant": name, "documents/s": rate, "share of the loader's": rate / rates[_LOADER]}
        for name, rate in rates.items()
    ]


def _rate(contestant: Contestant, source: Path, output: Path) -> float:
    """Return documents a second, start-up included."""
    with EmbeddedTei(_AS_TEI) as server:
        usage = process.measure(contestant.command(source, output, server.url))
    documents = check(source, output, exact=False)
    shutil.rmtree(output)
    return documents / usage.wall


MODEL_NOTES = (
    "The embedded TEI with its model, on the same cores. Documents a second, start-up included; the loader is the "
    "floor's functions on 16 threads. Tayyar puts texts of a length together, so the model pads less.",
)
