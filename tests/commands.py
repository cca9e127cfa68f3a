"""Tayyar as a user calls it: in a process of its own, or by its main function where the process is not the point."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import requests

from pipeline.__main__ import main
from pipeline.commands.options.declare import Options
from pipeline.commands.options.parser import parse
from tests.forked import Forked

ROOT = Path(__file__).resolve().parent.parent


OptionsT = TypeVar("OptionsT", bound=Options)


def parsed(kind: type[OptionsT], *arguments: object) -> OptionsT:
    """The options of a command line, which are of the command's kind."""
    options = parse([str(argument) for argument in arguments])
    assert isinstance(options, kind)
    return options


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def tayyar(
    *arguments: object,
    folder: Path = ROOT,
    code: int | None = 0,
    timeout: float = 110,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one command in a process to its end; `code` is the exit code that it must have, None for any.

    `variables` are those of its environment, all of them; None for those of this process.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        program = [*map(str, arguments)]
        with contextlib.closing(
            Forked(program, folder, environment() if variables is None else variables, out, err)
        ) as process:
            found = process.wait(timeout)
        for stream in (out, err):
            stream.seek(0)
        return _with_code(subprocess.CompletedProcess(program, found, out.read(), err.read()), code)


def call(
    program: Sequence[str], folder: Path = ROOT, code: int | None = 0, timeout: float = 110
) -> subprocess.CompletedProcess[str]:
    """Do what `tayyar` does with any program, a Python with the command among them."""
    finished = subprocess.run(
        program, cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    return _with_code(finished, code)


def tayyar_here(*arguments: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Do what `tayyar` does in this process, where Beam is imported already: most of what a small run costs."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _process_state_kept():
        try:
            found = main([*map(str, arguments)])
        except SystemExit as exit_:  # argparse's
            found = int(exit_.code or 0)
    return _with_code(subprocess.CompletedProcess([*map(str, arguments)], found, out.getvalue(), err.getvalue()), code)


def _with_code(finished: subprocess.CompletedProcess[str], code: int | None) -> subprocess.CompletedProcess[str]:
    if code is not None:
        assert finished.returncode == code, f"exit code {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """Put back what `main` sets for its process: where logs go, and what ends it."""
    root, on_term = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    handlers, filters, level = root.handlers[:], root.filters[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:], root.filters[:] = handlers, filters
        root.setLevel(level)
        signal.signal(signal.SIGTERM, on_term)


def started(*arguments: object) -> AbstractContextManager[Forked]:
    """Start one command, and end it with the context however that ends."""
    return contextlib.closing(Forked([*map(str, arguments)], ROOT, environment()))


@contextmanager
def running(program: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Do what `started` does with any program."""
    with subprocess.Popen(
        program, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def texts_embedded(url: str) -> int:
    """Return how many texts a simulator has embedded so far."""
    texts: int = requests.get(f"{url}/simulator/statistics", timeout=10).json()["texts_computed"]
    return texts


def output_files(root: Path) -> dict[str, bytes]:
    """Everything that an undisturbed run and any other way to the same end must have in common, by name."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "_job" not in path.relative_to(root).parts
    }
