"""Tayyar as a user calls it: a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def tayyar(
    *arguments: object, folder: Path = ROOT, code: int | None = 0, timeout: float = 110
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; `code` is the exit code that it must have, None for any."""
    finished = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    if code is not None:
        assert finished.returncode == code, f"exit code {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start one command, and end it with the context however that ends."""
    with subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def texts_embedded(url: str) -> int:
    """How many texts a server has embedded so far."""
    found = re.search(r"^te_embed_success (\d+)$", requests.get(f"{url}/metrics", timeout=10).text, re.MULTILINE)
    return int(found[1]) if found else 0


def output_files(root: Path) -> dict[str, bytes]:
    """Everything that an undisturbed run and any other way to the same end must have in common, by name."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "_job" not in path.relative_to(root).parts
    }
