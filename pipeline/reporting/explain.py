"""Why records became dead letters, in a few lines for a person: reasons, examples, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.job.ledger import Ledger
from pipeline.reporting.numbers import count
from pipeline.reporting.schema import DeadLetterReason
from transforms.elements import Reason

_NEARLY_ALL = 0.9
_REMEDIES = {
    Reason.INVALID_UTF8: "the files are in another encoding: convert them with iconv -t UTF-8",
    Reason.INVALID_JSON: "the lines are not JSON, or records are broken over several lines: write one object a line "
    "(jq -c . FILE)",
    Reason.NOT_AN_OBJECT: "the lines hold arrays or plain values: write one object a line (jq -c '.[]' FILE)",
    Reason.MISSING_TEXT: "the text is in another field: name it with --text_field",
    Reason.EMPTY_TEXT: "the text field is blank in these records: name another one besides it with a second "
    "--text_field, or remove the records",
    Reason.LINE_TOO_LONG: "newlines are missing between records: write one object a line (jq -c . FILE)",
    Reason.OVERLONG_TEXT: "the texts are longer than the model reads: split them, or run with --overlong truncate",
    Reason.REJECTED_BY_ENDPOINT: "the endpoint refuses these texts: look at the detail, and at the server's log",
    Reason.INVALID_VECTOR: "the endpoint computes vectors that are not finite: check the model and its dtype",
}


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
    if most is None or most.count < _NEARLY_ALL * total or most.reason not in {known.value for known in _REMEDIES}:
        return None
    return _REMEDIES[Reason(most.reason)]


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
