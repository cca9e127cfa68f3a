"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_processors(cgroup: Path = _CGROUP) -> int:
    """Return how many processors the affinity mask and the container's CPU quota leave to this process.

    `os.cpu_count()` reports the machine's, so that a container limited to two of 64 processors would start 64
    processes, each with Beam's memory.
    """
    # macOS has no affinity masks.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, processors if quota is None else min(processors, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Return the processors that the container's own control group grants (version 2, then 1); None without a limit."""
    try:
        granted, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            granted = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        quota = int(granted) / int(period)
    except (ValueError, ZeroDivisionError):  # "max" stands for no limit
        return None
    return quota if quota > 0 else None  # -1 stands for no limit in version 1
