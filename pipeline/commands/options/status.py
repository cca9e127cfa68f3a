"""The options of `status`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.commands.options.declare import option
from pipeline.commands.options.shared import OutputOptions


@dataclass(frozen=True, kw_only=True)
class StatusOptions(OutputOptions):
    """The options of `status`."""

    TITLE: ClassVar[str] = "display"
    SUMMARY: ClassVar[str] = "show how far a job is, from its output folder alone, on any machine that can read it"
    EXAMPLE: ClassVar[str] = "tayyar status --output embedded --watch"

    watch: bool = option(default=False, meaning="look again every few seconds until the job has finished or stopped")
    json: bool = option(default=False, meaning="print one JSON object a look, instead of text")
