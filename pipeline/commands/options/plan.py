"""The options of `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.commands.options.declare import option
from pipeline.commands.options.shared import (
    EndpointOptions,
    FormatOptions,
    InputOptions,
    PriceOptions,
    ReuseOptions,
    output_folder,
)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(InputOptions, ReuseOptions, FormatOptions, EndpointOptions, PriceOptions):
    """The options of `plan`."""

    TITLE: ClassVar[str] = "data"
    SUMMARY: ClassVar[str] = "estimate what a run would take, from a sample and some seconds of the endpoint's time"
    EXAMPLE: ClassVar[str] = (
        "tayyar plan --input 'wiki/*.ndjson' --endpoint http://127.0.0.1:8080 \\\n    --price_per_hour 1.30"
    )

    output: str | None = option(
        default=None,
        parse=output_folder,
        metavar="FOLDER",
        meaning="the run's output folder: count what it has already, and save the estimate for its report",
    )
    verbose: bool = option(default=False, meaning="list every file that is left out, and why")
