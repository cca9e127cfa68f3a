"""The early stop of a run that has far too many dead letters."""

from __future__ import annotations

from collections.abc import Mapping

from transforms.elements import REMEDIES, Reason


class TooManyDeadLetters(Exception):
    """So many records became dead letters that the rest need not be tried; what was done is kept."""


def early_limit(max_ratio: float) -> float:
    """Return the share of dead letters at which a run stops before its end, if it may have `max_ratio` in the end.

    Ten times as many leave little hope that the rest makes up for it; more than half leave none.
    """
    return max(max_ratio, min(10 * max_ratio, 0.5))


def check_dead_letter_ratio(records: int, reasons: Mapping[str, int], max_ratio: float) -> None:
    """Check that the records seen so far, by one worker or in one shard, do not have too many dead letters.

    Args:
        records: how many they are.
        reasons: the dead letters among them, by reason.
        max_ratio: dead letters a record that the whole run may have.

    Raises:
        TooManyDeadLetters: with the most frequent reason.
    """
    dead_letters = sum(reasons.values())
    if dead_letters > early_limit(max_ratio) * records:
        worst = max(reasons, key=lambda reason: reasons[reason])
        kind = "is a dead letter" if dead_letters == 1 else "are dead letters"
        verb = "is" if reasons[worst] == 1 else "are"
        raise TooManyDeadLetters(
            f"{dead_letters:,} of {records:,} records looked at so far {kind}, more than "
            f"--max_dead_letter_ratio {max_ratio:g} allows; {reasons[worst]:,} of them {verb} {worst}: "
            f"{REMEDIES[Reason(worst)]}"
        )
