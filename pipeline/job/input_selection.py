"""Which files a pattern stands for: what a person would take for records, and why the others are left out."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UsageError
from pipeline.job.file_kinds import EMPTY_FILE, FileKind, look_at_all
from pipeline.reporting.numbers import count
from transforms.elements import Reason
from transforms.ndjson.decompress import COMPRESSIONS
from transforms.ndjson.parse import TextField, Unusable, text_of
from transforms.storage import api as storage

RECORD_ENDINGS = (".ndjson", ".jsonl", ".json")
ENDINGS = tuple(format_ + compression for format_ in RECORD_ENDINGS for compression in ("", *COMPRESSIONS))
MAX_NAMED = 10  # files, in one message
_SHOWN_FIELDS = 20  # names of fields, in one message


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that a pattern matches and that is not taken, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that a pattern matches.

    Attributes:
        file: as listed.
        name: its path below the pattern's fixed prefix.
        named: whether it was given by its own name, not by a folder or a pattern.
        pattern: that matches it.
    """

    file: storage.FileStat
    name: str
    named: bool
    pattern: str

    @property
    def must_hold_records(self) -> bool:
        """Whether it is an error if it holds none."""
        return self.named or self.name.lower().endswith(ENDINGS)


def candidates(pattern: str) -> list[Candidate]:
    """Return all files that a pattern matches."""
    exact = storage.stat(pattern)
    if pattern.endswith("/") or (exact is not None and storage.is_local(pattern) and os.path.isdir(pattern)):
        prefix, files = pattern.rstrip("/") + "/", storage.list_below(pattern.rstrip("/"))
    elif exact is not None:
        prefix, files = pattern[: pattern.rfind("/") + 1], [exact]
    else:
        prefix, files = storage.fixed_prefix(pattern), storage.match(pattern)
    named = exact is not None and files == [exact]
    return [Candidate(file, file.path[len(prefix) :], named, pattern) for file in files]


def hidden(candidate: Candidate) -> str | None:
    """Return why Spark, Hadoop and `datasets` would pass over a file, judged by its name; None if they would not."""
    if candidate.named:
        return None
    # A pattern that spells such a part, as in `_batch*/x.ndjson`, means it.
    spelt = {part[:1] for part in candidate.pattern.split("/")[-candidate.name.count("/") - 1 :]}
    for part in candidate.name.split("/"):
        # Hive's partitions by a column whose name begins so, `_day=1`, hold records.
        if part[:1] not in spelt and (part.startswith(".") or (part.startswith("_") and "=" not in part)):
            return "hidden or staging"
    return None


def excluded_by(patterns: Sequence[str], candidate: Candidate) -> bool:
    """Return whether a pattern of `--exclude` matches a file.

    A pattern is compared with the path below the input's fixed prefix, with the name alone, and with the whole path.
    """
    names = (candidate.name, candidate.name.rpartition("/")[2], candidate.file.path)
    return any(_exclusion(pattern).fullmatch(name) for pattern in patterns for name in names)


def _exclusion(pattern: str) -> re.Pattern[str]:
    """Return an expression for a pattern; what matches a folder matches all below it."""
    return re.compile(storage.translate_pattern(pattern.rstrip("/")) + "(?:/.*)?", re.DOTALL)


def without_links(found: Sequence[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """Keep one name of each local file that is there under several: its own, or else the first of its links."""
    by_file: dict[str, list[Candidate]] = {}
    for candidate in found:
        path = candidate.file.path
        by_file.setdefault(os.path.realpath(path) if storage.is_local(path) else path, []).append(candidate)
    kept, left_out = [], []
    for real, names in by_file.items():
        best = min(names, key=lambda one: (not one.named, _is_link(one, real), one.file.path))
        kept.append(best)
        left_out += [LeftOut(one.file.path, "another name of a file that is taken") for one in names if one is not best]
    return kept, left_out


def _is_link(candidate: Candidate, real: str) -> bool:
    """Return whether a link lies on a file's way below the pattern's fixed prefix."""
    path = candidate.file.path
    prefix = path[: len(path) - len(candidate.name)]
    return os.path.join(os.path.realpath(prefix), candidate.name) != real


def require_records(found: Sequence[Candidate]) -> tuple[list[tuple[Candidate, FileKind]], list[LeftOut]]:
    """Look at the first bytes of the files, and return those that hold records.

    Raises:
        UsageError: naming those that must hold records and do not.
    """
    taken, left_out, wrong = [], [], []
    kinds = look_at_all([candidate.file for candidate in found])
    for candidate, kind in zip(found, kinds, strict=True):
        if kind.problem is None or (kind.problem == EMPTY_FILE and candidate.must_hold_records):
            taken.append((candidate, kind))
        elif candidate.must_hold_records:
            wrong.append((candidate.file.path, kind))
        else:
            left_out.append(LeftOut(candidate.file.path, kind.problem))
    if wrong:
        lines = [f"{path} looks like {kind.problem}. {kind.remedy}" for path, kind in wrong[:MAX_NAMED]]
        more = len(wrong) - len(lines)
        more_line = [f"and {count(more, 'more file')} of a wrong kind"] if more else []
        rest = [*more_line, "Leave files out with --exclude PATTERN."]
        raise UsageError(*lines, *rest)
    return taken, left_out


def require_text_field(kinds: Iterable[FileKind], text_field: TextField) -> None:
    """Refuse records of which none in the sample has the text field.

    Raises:
        UsageError: naming the field and those that there are.
    """
    fields: Counter[str] = Counter()
    records = 0
    for record in itertools.chain.from_iterable(kind.records for kind in kinds):
        if _has_field(record, text_field):
            return
        records += 1
        fields.update(_names_in(record))
    if records:
        wanted = text_field if isinstance(text_field, str) else ", ".join(text_field)
        names = ", ".join(name for name, _ in fields.most_common(_SHOWN_FIELDS)) or "none"
        hint = " For several fields, repeat the option." if "," in wanted and isinstance(text_field, str) else ""
        raise UsageError(
            f"--text_field {wanted}: no text there in the first {count(records, 'record')} looked at. Fields found: "
            f"{names}.{hint} Give the one that holds the text with --text_field."
        )


def _has_field(record: dict[str, Any], text_field: TextField) -> bool:
    """Return whether there is a text, or at least a blank one: that is one record's fault, not the option's."""
    try:
        text_of(record, text_field)
    except Unusable as unusable:
        return unusable.reason is Reason.EMPTY_TEXT
    return True


def _names_in(record: Mapping[str, Any]) -> Iterator[str]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from (f"{name}.{below}" for below in value)
        else:
            yield name


def describe(left_out: Sequence[LeftOut]) -> str:
    """Return one sentence on the files that are left out: how many, the reasons, the first names."""
    reasons = Counter(one.reason for one in left_out)
    parts = []
    for reason, many in reasons.most_common():
        names = [one.path for one in left_out if one.reason == reason][:3]
        parts.append(f"{many:,} ({reason}): {', '.join(names)}{', …' if many > len(names) else ''}")
    return f"left out {count(len(left_out), 'file')}: {'; '.join(parts)}"
