"""Asks an output folder questions: embeds each and prints the document whose vector is nearest."""

from __future__ import annotations

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import requests

from pipeline.embedded_tei.process import EmbeddedTei

Vectors = npt.NDArray[np.float32]


def read_documents(folder: Path) -> tuple[list[dict[str, Any]], Vectors]:
    """Return the folder's n documents, each with the name of its file, and float32[n, dimensions]."""
    documents, vectors = list[dict[str, Any]](), []
    for path in sorted((folder / "data").glob("**/*.ndjson")):
        name = path.relative_to(folder / "data")
        for line in path.open("rb"):
            document = orjson.loads(line)
            vectors.append(np.array(document.pop("embedding"), np.float32))
            documents.append(document | {"file": str(name)})
    return documents, np.array(vectors, np.float32)


def embed(url: str, text: str, prompt_name: str) -> Vectors:
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


def answer(question: str, document: dict[str, Any], similarity: float) -> str:
    """Return what is printed: each text on lines of its own, so that a terminal can set it from right to left."""
    title = document.get("title") or document.get("meta", {}).get("title") or document.get("id", "")
    text = textwrap.wrap(document["content"], 100)
    return "\n".join(
        [question, f"  {similarity:.3f}  {document['file']}", f"    {title}", *(f"    {row}" for row in text)]
    )


def main() -> int:
    """Ask."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="an output folder of tayyar run, with the text in `content`")
    parser.add_argument("questions", nargs="+", metavar="question")
    parser.add_argument("--endpoint", metavar="URL", help="a TEI server of the same model; else an embedded TEI")
    parser.add_argument(
        "--prompt_name", default="query", help="the model's prompt for questions, '' for none (default: %(default)s)"
    )
    options = parser.parse_args()
    documents, vectors = read_documents(options.folder)
    if not documents:
        parser.error(f"{options.folder} holds no embedded documents")
    with endpoint(options.endpoint) as url:
        answers = []
        for question in options.questions:
            similarities = vectors @ embed(url, question, options.prompt_name)  # of unit norm, so these are cosines
            best = int(similarities.argmax())
            answers.append(answer(question, documents[best], similarities[best]))
    print("\n\n".join(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
