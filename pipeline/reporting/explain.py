"""Why records became dead letters, in a few lines for a person: reasons, examples, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.reporting.numbers import count
from pipeline.reporting.schema import Example
from transforms.elements import Reason

_NEARLY_ALL = 0.9
_REMEDIES = {
    Reason.INVALID_UTF8: "the files are in another encoding: convert them with iconv -t UTF-8",
    Reason.INVALID_JSON: "the lines are not JSON, or records are broken over several lines: write one object a line "
    "with jq -c .",
    Reason.NOT_AN_OBJECT: "the lines hold arrays or plain values: write one object a line with jq -c '.[]'",
    Reason.MISSING_TEXT: "the text is in another field: name it with --text_field",
    Reason.EMPTY_TEXT: "the text field is blank in these records: name another one besides it with a second "
    "--text_field, or remove the records",
    Reason.LINE_TOO_LONG: "newlines are missing between records: write one object a line with jq -c .",
    Reason.OVERLONG_TEXT: "the texts are longer than the model reads: split them, or run with --overlong truncate",
    Reason.REJECTED_BY_ENDPOINT: "the endpoint refuses these texts: look at the detail, and at the server's log",
    Reason.INVALID_VECTOR: "the endpoint computes vectors that are not finite: check the model and its dtype",
}


def explain_dead_letters(reasons: Mapping[str, int], examples: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Yield a line for each reason, the most frequent first, and one with the likely cause if one is nearly all.

    Args:
        reasons: how many dead letters have each reason.
        examples: some of each reason; of the first, `source`, `offset` and `detail` are shown.
    """
    total = sum(reasons.values())
    for reason, many in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        first = next(iter(examples.get(reason, ())), None)
        place = "" if first is None else f", first {first.source}, byte {first.offset}: {first.detail}"
        yield f"  {reason}: {many:,}{place}"
    for reason, many in reasons.items():
        if many >= _NEARLY_ALL * total and reason in {one.value for one in _REMEDIES}:
            yield f"  likely cause: {_REMEDIES[Reason(reason)]}"


def too_many_dead_letters(dead_letters: int, records: int, allowed: float, folder: str) -> str:
    """Return what is said of a job that has more dead letters a record than allowed."""
    share = "all" if dead_letters == records else f"{dead_letters:,} of"
    verb = "is a dead letter" if records == 1 else "are dead letters"
    return (
        f"{share} {count(records, 'record')} {verb}, more than --max_dead_letter_ratio {allowed} allows; "
        f"they are in {folder}"
    )
