from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.processors import usable_processors


@pytest.mark.parametrize(
    ("quota", "processors"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("nonsense", None)]
)
def test_a_containers_quota_limits_the_processors(tmp_path: Path, quota: str, processors: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_processors(tmp_path) == (processors or len(os.sched_getaffinity(0)))


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_processors(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert usable_processors(tmp_path) == len(os.sched_getaffinity(0))
