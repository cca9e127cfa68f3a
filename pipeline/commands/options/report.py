"""The options of `report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.commands.options.shared import OutputOptions, PriceOptions


@dataclass(frozen=True, kw_only=True)
class ReportOptions(OutputOptions, PriceOptions):
    """The options of `report`."""

    SUMMARY: ClassVar[str] = "write the report again, as JSON, as a page and for Prometheus"
    EXAMPLE: ClassVar[str] = "tayyar report --output embedded --price_per_hour 1.30"
