"""Who takes part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import commands
from tests.benchmark import process

Command = Callable[[Path, Path, str], list[str]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the work.

    Attributes:
        name: in the table.
        does: how it does it, for the table's foot.
        command: from the corpus's folder, the output's and the endpoint's URL.
        needs: what must be importable.
        is_floor: it gets the endpoint's replies from a file.
    """

    name: str
    does: str
    command: Command
    needs: tuple[str, ...] = ()
    is_floor: bool = False

    @property
    def missing(self) -> list[str]:
        """What is not installed of what it needs."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def tayyar(source: Path, output: Path, url: str, *more: object) -> list[str]:
    """The command that a user calls."""
    return commands.command("run", "--input", f"{source}/*.ndjson*", "--output", output, "--endpoint", url, *more)


def _program(name: str) -> Command:
    def command(source: Path, output: Path, url: str) -> list[str]:
        module = f"tests.benchmark.contestants.{name}"
        return process.module(module, "--input", source, "--output", output, "--url", url)

    return command


TAYYAR = Contestant("Tayyar", "`tayyar run`, as it is: base64 replies, 32 texts a request", tayyar)
FLOOR = Contestant(
    "floor",
    "parse, encode the request, decode the reply (base64), encode the vector, splice, write: one thread, no HTTP",
    _program("floor"),
    is_floor=True,
)
CONTESTANTS = (
    TAYYAR,
    Contestant(
        "tutorial",
        "asyncio and aiohttp, one text a request, a new session for each, 512 in flight, JSON replies",
        _program("tutorial"),
        ("aiohttp",),
    ),
    Contestant(
        "RunInference", "Beam's RemoteModelHandler, 32 texts a request, JSON replies", _program("run_inference")
    ),
    Contestant(
        "Ray Data",
        "map_batches, an actor a core, 32 texts a request, 16 in flight, JSON replies",
        _program("ray_data"),
        ("ray", "pyarrow"),
    ),
    Contestant("Daft", "a UDF, 32 texts a request, 16 in flight, JSON replies", _program("daft_udf"), ("daft",)),
    Contestant(
        "floor + HTTP", "the floor's functions on 16 threads with http.client, base64 replies", _program("floor_http")
    ),
    FLOOR,
)
