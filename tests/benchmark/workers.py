"""Two worker processes against one."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.benchmark import corpus, process, table
from tests.benchmark.check import check
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import tayyar

_MODES = {
    "one process": (),
    "one worker process": ("--direct_running_mode", "multi_processing", "--direct_num_workers", 1),
    "two worker processes": ("--direct_running_mode", "multi_processing", "--direct_num_workers", 2),
}


def compare_workers(work: Path, documents: int) -> list[table.Row]:
    """Measure the same run in one process, and in worker processes."""
    large, small = work / f"corpus-{documents}", work / "corpus-1"
    corpus.write_corpus(large, [documents - documents // 2, documents // 2])
    corpus.write_corpus(small, [1])
    with Endpoint() as endpoint:
        rows = []
        for name, options in _MODES.items():
            idle = _run(small, work / "output", endpoint.url, options)
            full = _run(large, work / "output", endpoint.url, options)
            rows.append(_row(name, documents, idle, full))
    return rows


def _run(source: Path, output: Path, url: str, options: tuple[object, ...]) -> process.Usage:
    usage = process.measure(tayyar(source, output, url, *options))
    check(source, output)
    shutil.rmtree(output)
    return usage


def _row(name: str, documents: int, idle: process.Usage, full: process.Usage) -> table.Row:
    seconds = full.wall - idle.wall
    return {
        "mode": name,
        "wall s": full.wall,
        "start-up s": idle.wall,
        "documents/s after start-up": documents / seconds if seconds > 0 else None,  # a busy machine
        "CPU µs/document after start-up": (full.cpu - idle.cpu) / documents * 1e6,
        "peak MB": full.peak_mb,
    }


NOTES = (
    "An endpoint that answers at once, and takes its share of the cores. Start-up is a run over one document. "
    "Every output was checked.",
)
