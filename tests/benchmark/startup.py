"""How long a command takes before it does anything."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

import requests

from tests import commands
from tests.benchmark import corpus, process, table
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import tayyar

_FEW = 60  # documents


def start(work: Path, rounds: int) -> list[table.Row]:
    """Measure imports, help, and a run over a few documents."""
    source = work / f"corpus-{_FEW}"
    corpus.write_corpus(source, [_FEW])
    programs = {
        "python": process.program("pass"),
        "import apache_beam": process.program("import apache_beam"),
        "tayyar --help": commands.command("--help"),
        "tayyar run --help": commands.command("run", "--help"),
    }
    rows = [_middle(name, [_timed(command) for _ in range(rounds)]) for name, command in programs.items()]
    runs = [_run(source, work / "output") for _ in range(rounds)]
    return [*rows, *(_middle(f"tayyar run: {name}", [run[name] for run in runs]) for name in runs[0])]


def _timed(command: list[str]) -> tuple[float, float]:
    usage = process.measure(command)
    return usage.wall, usage.cpu


def _middle(name: str, times: list[tuple[float, float]]) -> table.Row:
    wall, cpu = (statistics.median(values) for values in zip(*times, strict=True))
    return {"what": name, "s": wall, "CPU s": cpu or None}


def _run(source: Path, output: Path) -> dict[str, tuple[float, float]]:
    """Seconds from the command to its first request, to its first document's, and to its end."""
    with Endpoint() as endpoint:
        started = time.time()
        usage = process.measure(tayyar(source, output, endpoint.url))
        stats = requests.get(f"{endpoint.url}/stats", timeout=10).json()
    shutil.rmtree(output)
    return {
        "to the first request": (stats["first_request"] - started, 0.0),
        "to the first documents": (stats["first_batch"] - started, 0.0),
        f"all of it, over {_FEW} documents": (usage.wall, usage.cpu),
    }


NOTES = ("Medians; seconds from the start of the process.",)
