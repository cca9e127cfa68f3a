"""Peak memory for few and for many documents, plain and compressed, as NDJSON and as Parquet."""

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


def remember(work: Path, sizes: Sequence[int], forms: Sequence[str], formats: Sequence[str]) -> list[table.Row]:
    """Measure Tayyar over corpora of several sizes, and verify what it wrote."""
    with Endpoint() as endpoint:
        cases = [(size, form, output_format) for form in forms for size in sizes for output_format in formats]
        return [_measured(work, *case, endpoint.url) for case in cases]


def _measured(work: Path, documents: int, form: str, output_format: str, url: str) -> table.Row:
    source, output = work / f"corpus-{documents}-{form}", work / "output"
    whole, rest = divmod(documents, _A_FILE)
    corpus.write_corpus(source, [_A_FILE] * whole + [rest] * bool(rest), FORMS[form])
    usage = process.measure(tayyar(source, output, url, "--output_format", output_format))
    process.measure(commands.command("verify", "--output", output))
    for folder in (source, output):
        shutil.rmtree(folder)
    return {
        "input": form,
        "output": output_format,
        "documents": documents,
        "peak MB": usage.peak_mb,
        "documents/s": documents / usage.wall,
        "CPU µs/document": usage.cpu / documents * 1e6,
    }


NOTES = ("Peak of the one process; its output was verified with `tayyar verify`.",)
