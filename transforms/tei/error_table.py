"""What the endpoint's failures mean: one table from what was seen to what is done."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import orjson

from transforms.elements import Reason

MOST_SHOWN = 300  # characters of a reply that a message repeats
BATCH_MAXIMUM = re.compile(r"batch size \d+ > maximum allowed batch size (\d{1,9})\b", re.IGNORECASE | re.ASCII)
LONGEST_WAIT = 600.0  # seconds; a gateway that asks for more is asked again before


class Action(enum.Enum):
    """What is done about a request that failed."""

    WAIT = "wait"  # the endpoint's trouble: the same request again, later
    SLOW_DOWN = "slow_down"  # too much at once: the same request again, with less in flight
    RETRY = "retry"  # perhaps the texts' fault, perhaps a neighbour's: a few times again, then in halves
    SPLIT = "split"  # a text's fault: in halves; alone it is rejected
    SPLIT_BYTES = "split_bytes"  # too many bytes: in halves; alone it is cut or rejected
    RELIMIT = "relimit"  # too many texts: the limits are read again
    STOP = "stop"  # nothing that is tried again can help


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means.

    Attributes:
        action: what is done.
        message: what the endpoint said, shortened.
        status: the HTTP status; None where no reply came.
        reason: what a single text is rejected for, where it comes to that.
        retry_after: seconds that the endpoint asked to wait; None where it did not ask.
        own: whether the server itself speaks, in JSON: pages and plain text may be a gateway's.
    """

    action: Action
    message: str
    status: int | None = None
    reason: Reason = Reason.REJECTED_BY_ENDPOINT
    retry_after: float | None = None
    own: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    statuses: frozenset[int]
    action: Action
    message: re.Pattern[str] | None = None
    json: bool | None = None
    reason: Reason = Reason.REJECTED_BY_ENDPOINT


def _row(
    *statuses: int,
    then: Action,
    says: str | None = None,
    json: bool | None = None,
    reason: Reason = Reason.REJECTED_BY_ENDPOINT,
) -> _Row:
    return _Row(frozenset(statuses), then, re.compile(says, re.IGNORECASE) if says else None, json, reason)


# The first row that fits decides. 413 with a JSON body is how servers before 1.9 say 422.
TABLE = (
    _row(429, then=Action.SLOW_DOWN),
    _row(424, then=Action.STOP, says=r"not an? \S+ model|not available for|not supported for|SPLADE"),
    _row(424, then=Action.RETRY),
    _row(413, 422, then=Action.RELIMIT, says=r"batch size \d+ > maximum"),
    _row(413, 422, then=Action.STOP, says=r"default-prompt|prompt_name"),
    _row(413, 422, then=Action.SPLIT, says=r"must have less than \d+ (tokens|characters)", reason=Reason.OVERLONG_TEXT),
    _row(413, then=Action.SPLIT, json=True),
    _row(413, then=Action.SPLIT_BYTES),
    _row(400, then=Action.STOP, says=r"invalid state|endpoint is in error"),
    _row(400, 415, 422, then=Action.SPLIT),
    _row(408, 425, then=Action.WAIT),
)


def verdict_on(status: int, headers: Mapping[str, str], body: bytes) -> Verdict:
    """What a reply with an error status means.

    Statuses that the table does not know: those of the 5xx family come from gateways and pass; any other is an answer
    that asking again will not change.
    """
    message, is_json = _message(body)
    row = next((row for row in TABLE if _fits(row, status, message, is_json)), None)
    action = row.action if row else (Action.WAIT if status >= 500 else Action.STOP)
    reason = row.reason if row else Reason.REJECTED_BY_ENDPOINT
    return Verdict(action, message[:MOST_SHOWN], status, reason, _retry_after(headers), is_json)


def no_reply(what: str) -> Verdict:
    """What it means that no whole, readable reply came."""
    return Verdict(Action.WAIT, what[:MOST_SHOWN])


def doubtful_reply(what: str) -> Verdict:
    """What a reply of status 200 means whose rows cannot be told apart."""
    return Verdict(Action.RETRY, what[:MOST_SHOWN], 200, Reason.INVALID_VECTOR)


def _fits(row: _Row, status: int, message: str, is_json: bool) -> bool:
    return (
        status in row.statuses
        and (row.json is None or row.json is is_json)
        and (row.message is None or row.message.search(message) is not None)
    )


def _message(body: bytes) -> tuple[str, bool]:
    """The message in a body of any of the four shapes, and whether it was JSON of the server's own."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return " ".join(body.decode("utf-8", "replace").split()), False
    if isinstance(content, dict):
        for key in ("error", "message"):
            value = content.get(key)
            if isinstance(value, str):
                return value, True
            if isinstance(value, dict) and isinstance(value.get("message"), str):
                return value["message"], True
    return body.decode("utf-8", "replace"), False


def _retry_after(headers: Mapping[str, str]) -> float | None:
    told = headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = max(0.0, (parsedate_to_datetime(told) - _now(headers)).total_seconds())
        except (ValueError, TypeError):
            return None
    return min(seconds, LONGEST_WAIT) if seconds >= 0 else None


def _now(headers: Mapping[str, str]) -> datetime:
    """The reply's own date, which makes clocks that disagree harmless; this machine's where it has none."""
    try:
        return parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return datetime.now(timezone.utc)
