"""Ask questions of a table that `load/lancedb.py` made: embed each, and print the document whose vector is nearest."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

from pipeline.embedded_tei.process import EmbeddedTei, EmbeddedTeiError
from transforms.ndjson.parse import BOM, parse_object, value_of

try:
    import lancedb
except ImportError as missing:
    sys.exit(f"ask.py: a package is missing ({missing.name}): {sys.executable} -m pip install 'tayyar[local,load]'")


def embed(url: str, text: str, prompt_name: str) -> npt.NDArray[np.float32]:
    """Return float32[dimensions] of unit norm."""
    body = {"inputs": text, "prompt_name": prompt_name or None, "truncate": True}
    reply = requests.post(f"{url.rstrip('/')}/embed", json=body, timeout=60)
    reply.raise_for_status()
    return np.array(reply.json()[0], np.float32)


@contextlib.contextmanager
def endpoint(url: str | None) -> Iterator[str]:
    """Give the URL of the endpoint: the one given, or an embedded TEI's."""
    if url is not None:
        yield url
        return
    with EmbeddedTei() as tei:
        yield tei.url


def answer(question: str, row: dict[str, Any], similarity: float) -> str:
    """Return what is printed: each text on lines of its own, so that a terminal can set it from right to left."""
    document, _ = parse_object(row["record"].encode().removeprefix(BOM))
    title = next(filter(None, (value_of(document, field) for field in ("title", "meta.title", "id"))), "")
    shard = row["loaded_from"].rpartition("@")[0]
    text = textwrap.wrap(row["text"], min(100, shutil.get_terminal_size().columns - 4))
    return "\n".join([question, f"  {similarity:.3f}  {shard}", f"    {title}", *(f"    {line}" for line in text)])


def main() -> int:
    """Ask."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("database", help="the folder of the LanceDB database, or s3://… or gs://…")
    parser.add_argument("table")
    parser.add_argument("questions", nargs="+", metavar="question")
    parser.add_argument(
        "--endpoint", metavar="URL", help="a TEI server of the same model (default: one that Tayyar starts here)"
    )
    parser.add_argument(
        "--prompt_name", default="query", help="the model's prompt for questions, '' for none (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        table = lancedb.connect(options.database).open_table(options.table)
    except ValueError as error:  # there is no such table
        sys.exit(f"ask.py: {options.database}: {error}. Load it first: run_scripts/load/lancedb.py")
    with endpoint(options.endpoint) as url:
        answers = []
        for question in options.questions:
            vector = embed(url, question, options.prompt_name)
            # By Euclidean distance; of vectors of unit norm, the order is the same by cosine.
            nearest = table.search(vector).limit(1).to_list()
            answers += [answer(question, row, float(vector @ np.array(row["embedding"]))) for row in nearest]
    print("\n\n".join(answers))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (EmbeddedTeiError, requests.RequestException) as error:
        sys.exit(f"ask.py: {error}")
