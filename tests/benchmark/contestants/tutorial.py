"""The tutorial's method: asyncio and aiohttp, one text a request, a new session for each, 512 of them in flight.

A whole file is read, embedded and kept before any of it is written.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.benchmark.contestants import arguments

_IN_FLIGHT = 512
_TIMEOUT = aiohttp.ClientTimeout(total=60)


async def _embed(document: dict[str, Any], url: str, slots: asyncio.Semaphore) -> None:
    async with slots, aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        question = {"inputs": document["content"], "truncate": True}
        async with session.post(f"{url}/embed", json=question) as response:
            if response.status != 200:
                raise RuntimeError(await response.text())
            document["embedding"] = (await response.json())[0]


async def _embed_file(source: Path, output: Path, url: str) -> None:
    with source.open(encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    slots = asyncio.Semaphore(_IN_FLIGHT)
    await asyncio.gather(*(_embed(document, url, slots) for document in documents))
    with output.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def main() -> None:
    told = arguments.parse()
    for source in told.files:
        asyncio.run(_embed_file(source, told.output / source.name, told.url))


if __name__ == "__main__":
    main()
