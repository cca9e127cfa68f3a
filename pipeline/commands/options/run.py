"""The options of `run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.commands.options.declare import option
from pipeline.commands.options.shared import (
    DeadLetterOptions,
    EndpointOptions,
    FormatOptions,
    InputOptions,
    OutputOptions,
    PriceOptions,
    ReuseOptions,
)


@dataclass(frozen=True, kw_only=True)
class RunOptions(
    InputOptions, OutputOptions, ReuseOptions, FormatOptions, EndpointOptions, DeadLetterOptions, PriceOptions
):
    """The options of `run`."""

    TITLE: ClassVar[str] = "data"
    SUMMARY: ClassVar[str] = "embed the documents; run it again to resume"
    EXAMPLE: ClassVar[str] = (
        "tayyar run --input 'wiki/*.ndjson' --output embedded \\\n    --endpoint http://127.0.0.1:8080"
    )
    BEAM: ClassVar[str | None] = "Beam's own options are passed on. Without --runner, Beam's in-process runner is used."

    prune: bool = option(default=False, meaning="remove what was embedded of inputs that the patterns no longer match")
    overwrite: bool = option(default=False, meaning="delete the output folder's former job and start over")
    beam: tuple[str, ...] = ()  # the arguments left for Beam
