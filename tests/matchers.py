"""The pipeline that tests run, and matchers for its `assert_that`. They raise: one that returns False passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline


def local_pipeline(options: PipelineOptions | None = None) -> TestPipeline:
    """Return a pipeline that runs on this machine when its context ends, without trying to download a runner.

    Args:
        options: of the runner; None for the one that works in this process.
    """
    return TestPipeline(runner="FnApiRunner", options=options)


def equal_in_any_order(expected: Iterable[Any]) -> Callable[[list[Any]], None]:
    """Hold the elements of a collection against these, each as often as it is here."""
    wanted = list(expected)

    def match(actual: list[Any]) -> None:
        left = list(wanted)
        surplus = []
        for element in actual:
            if element in left:
                left.remove(element)
            else:
                surplus.append(element)
        if left or surplus:
            raise AssertionError(f"missing: {left!r}; not expected: {surplus!r}")

    return match


def each_by(key: Callable[[Any], Any], checks: Mapping[Any, Callable[[Any], None]]) -> Callable[[list[Any]], None]:
    """Find exactly one element for each key, and check it; the checks raise."""

    def match(actual: list[Any]) -> None:
        keys = sorted(key(element) for element in actual)
        if keys != sorted(checks):
            raise AssertionError(f"there are {keys}, not {sorted(checks)}")
        for element in actual:
            checks[key(element)](element)

    return match
