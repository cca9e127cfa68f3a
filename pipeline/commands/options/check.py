"""The options of `check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.commands.options.declare import Options, option
from pipeline.commands.options.run import RunOptions
from pipeline.commands.options.shared import EndpointOptions, output_folder


@dataclass(frozen=True, kw_only=True)
class CheckOptions(EndpointOptions):
    """The options of `check`."""

    SUMMARY: ClassVar[str] = "try endpoint, output folder and runner before a long run"
    EXAMPLE: ClassVar[str] = "tayyar check --endpoint http://127.0.0.1:8080 --output embedded"
    BEAM: ClassVar[str | None] = (
        "With a runner's options (--runner … and what it needs), ten documents go through it into a temporary place "
        "below the output folder: packages, the way from workers to the endpoint, the token, and the right to write. "
        "All options of run are taken; those about the data have no effect here."
    )
    IGNORED: ClassVar[type[Options] | None] = RunOptions  # so that a command line of `run` can be tried as it is

    TITLE: ClassVar[str] = "data"

    output: str | None = option(
        default=None, parse=output_folder, metavar="FOLDER", meaning="the output folder, to be tried for writing"
    )
    beam: tuple[str, ...] = ()  # the arguments left for Beam; with any, documents go through the runner
