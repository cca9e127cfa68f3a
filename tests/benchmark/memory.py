"""Peak memory for few and for many documents, plain and compressed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests import commands
from tests.benchmark import corpus, process, table
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import tayyar

FORMS = {"plain": "", "gzip": ".gz"}
_A_FILE = 250_000  # documents; the tutorial's largest file has about as many


def remember(work: Path, sizes: Sequence[int], forms: Sequence[str]) -> list[table.Row]:
    """Measure Tayyar over corpora of several sizes, and verify what it wrote."""
    with Endpoint() as endpoint:
        return [_measured(work, size, form, endpoint.url) for form in forms for size in sizes]


def _measured(work: Path, documents: int, form: str, url: str) -> table.Row:
    source, output = work / f"corpus-{documents}-{form}", work / "output"
    whole, rest = divmod(documents, _A_FILE)
    corpus.write_corpus(source, [_A_FILE] * whole + [rest] * bool(rest), FORMS[form])
    usage = process.measure(tayyar(source, output, url))
    process.measure(commands.command("verify", "--output", output))
    for folder in (source, output):
        shutil.rmtree(folder)
    return {
        "input": form,
        "documents": documents,
        "peak MB": usage.peak_mb,
        "documents/s": documents / usage.wall,
        "CPU µs/document": usage.cpu / documents * 1e6,
    }


NOTES = ("Peak of the one process; its output was verified with `tayyar verify`.",)
