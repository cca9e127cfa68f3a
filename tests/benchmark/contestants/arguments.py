"""What every contestant is told."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

TEXTS_A_REQUEST = 32
REQUESTS_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Arguments:
    """Where the corpus is, where the result goes, and who embeds; the floor has the replies in a file instead."""

    input: Path
    output: Path
    url: str

    @property
    def files(self) -> list[Path]:
        return sorted(self.input.glob("*.ndjson"))


def parse() -> Arguments:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--url", required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return Arguments(options.input, options.output, options.url)
