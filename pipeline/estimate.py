"""The estimate that `plan` saved: what a run was expected to come to."""

from __future__ import annotations

from typing import Any

import orjson

from transforms.output import JOB, OutputFolder

NAME = f"{JOB}/estimate.json"


def read_estimate(output: OutputFolder) -> dict[str, Any] | None:
    """Return what `plan` saved beside the output; None if it saved nothing that can be read."""
    try:
        estimate = orjson.loads(output.read(NAME) or b"null")
    except ValueError:
        return None
    return estimate if isinstance(estimate, dict) else None
