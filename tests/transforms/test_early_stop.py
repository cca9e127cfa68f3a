from __future__ import annotations

import pytest

from transforms.early_stop import TooManyDeadLetters, check_dead_letter_ratio


@pytest.mark.parametrize(
    ("reasons", "ratio", "message"),
    [
        (
            {"empty_text": 1},
            0.0,
            "1 of 1,000 records looked at so far is a dead letter, more than --max_dead_letter_ratio 0 allows; "
            "1 of them is empty_text: ",
        ),
        (
            {"empty_text": 100, "missing_text": 400},
            0.025,
            "500 of 1,000 records looked at so far are dead letters, more than --max_dead_letter_ratio 0.025 allows; "
            "400 of them are missing_text: ",
        ),
    ],
)
def test_the_message_has_the_numbers(reasons: dict[str, int], ratio: float, message: str) -> None:
    with pytest.raises(TooManyDeadLetters) as stopped:
        check_dead_letter_ratio(1000, reasons, ratio)
    assert str(stopped.value).startswith(message)
