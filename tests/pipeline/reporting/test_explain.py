from __future__ import annotations

import pytest

from pipeline.reporting.explain import explain_dead_letters
from pipeline.reporting.schema import DeadLetterReason, Example
from transforms.elements import Reason

EXAMPLE = Example(
    source="/in/a.ndjson",
    offset=1007,
    stage="read",
    detail="there is no field 'content'",
    http_status=None,
    attempts=0,
    text=None,
    line="{}",
)


def reason(name: str, count: int) -> DeadLetterReason:
    return DeadLetterReason(name, count, ())


def test_each_reason_has_its_number_and_its_first_example_the_most_frequent_first() -> None:
    reasons = [reason("empty_text", 2), DeadLetterReason("missing_text", 5, (EXAMPLE, EXAMPLE))]
    assert list(explain_dead_letters(reasons)) == [
        "  missing_text: 5, first at byte 1,007 of /in/a.ndjson: there is no field 'content'",
        "  empty_text: 2",
    ]


@pytest.mark.parametrize(("others", "likely"), [(0, True), (1, True), (2, False)])
def test_a_reason_that_is_nearly_all_has_a_likely_cause(others: int, likely: bool) -> None:
    *_, last = explain_dead_letters([reason("missing_text", 9), reason("empty_text", others)])
    assert last.startswith("  likely cause: the text is in another field") is likely


@pytest.mark.parametrize("known", list(Reason))
def test_every_reason_has_a_remedy(known: Reason) -> None:
    assert list(explain_dead_letters([reason(known.value, 1)]))[1].startswith("  likely cause: ")


def test_nothing_is_said_without_dead_letters_and_an_unknown_reason_has_no_cause() -> None:
    assert list(explain_dead_letters([])) == []
    assert list(explain_dead_letters([reason("of_another_version", 1)])) == ["  of_another_version: 1"]
