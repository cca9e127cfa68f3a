"""Why records became dead letters, in a few lines for a person: reasons, examples, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.job.ledger import Ledger
from pipeline.reporting.numbers import count
from pipeline.reporting.schema import DeadLetterReason
from transforms.elements import REMEDIES, Reason

_NEARLY_ALL = 0.9


def explain_dead_letters(reasons: Sequence[DeadLetterReason]) -> Iterator[str]:
    """Yield a line for each reason, the most frequent first, and one with the likely cause if one is nearly all."""
    for one in sorted(reasons, key=lambda each: (-each.count, each.reason)):
        place = ""
        if one.examples:
            first = one.examples[0]
            place = f", first at byte {first.offset:,} of {first.source}: {first.detail}"
        yield f"  {one.reason}: {one.count:,}{place}"
    if cause := likely_cause(reasons):
        yield f"  likely cause: {cause}"


def likely_cause(reasons: Sequence[DeadLetterReason]) -> str | None:
    """Return the cause and the remedy of nearly all dead letters; None if they have several, or an unknown one."""
    total = sum(one.count for one in reasons)
    most = max(reasons, key=lambda each: each.count, default=None)
    if most is None or most.count < _NEARLY_ALL * total or most.reason not in {known.value for known in REMEDIES}:
        return None
    return REMEDIES[Reason(most.reason)]


def too_many_dead_letters(ledger: Ledger, allowed: float, folder: str) -> str | None:
    """Return a sentence on a job that has more dead letters a record than allowed; None if it has not."""
    dead_letters, records = ledger.dead_letters, ledger.records
    if dead_letters <= allowed * records:
        return None
    share = "all" if dead_letters == records else f"{dead_letters:,} of"
    verb = "is a dead letter" if records == 1 else "are dead letters"
    return (
        f"{share} {count(records, 'record')} {verb}, more than --max_dead_letter_ratio {allowed} allows; "
        f"they are in {folder}"
    )
