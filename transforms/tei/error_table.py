"""What an endpoint's failures mean: one table from status and message to what is done."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import orjson

from transforms.elements import Reason

MAX_MESSAGE = 300  # characters of a reply that a message repeats
MAX_RETRY_AFTER = 600.0  # seconds; a gateway that asks for more is asked again before


class Action(enum.Enum):
    """What is done about a request that failed."""

    WAIT = "wait"  # a failure of the endpoint: the same request again, later
    SLOW_DOWN = "slow_down"  # too much at once: the same request again, with less in flight
    RETRY = "retry"  # perhaps the texts' fault, perhaps a neighbour's: a few times again, then in halves
    SPLIT = "split"  # a text's fault: in halves; alone it is rejected
    SPLIT_BYTES = "split_bytes"  # too many bytes: in halves; alone it is cut or rejected
    SHRINK = "shrink"  # more texts than the server takes: smaller requests from now on
    STOP = "stop"  # trying again cannot help


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failure means.

    Attributes:
        action: what is done.
        message: of the endpoint, shortened.
        status: the HTTP status; None where no reply came.
        reason: that a single text is rejected for, where it comes to that.
        retry_after: seconds that the endpoint asked to wait; None where it did not ask.
        from_server: whether the server itself answered, in JSON: pages and plain text may be a gateway's.
        timed_out: whether the time was over, which may mean no more than that the endpoint is slow.
    """

    action: Action
    message: str
    status: int | None = None
    reason: Reason = Reason.REJECTED_BY_ENDPOINT
    retry_after: float | None = None
    from_server: bool = False
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    statuses: frozenset[int]
    action: Action
    message: re.Pattern[str] | None = None
    json: bool | None = None
    reason: Reason = Reason.REJECTED_BY_ENDPOINT


def _row(
    *statuses: int,
    action: Action,
    message: str | None = None,
    json: bool | None = None,
    reason: Reason = Reason.REJECTED_BY_ENDPOINT,
) -> _Row:
    return _Row(frozenset(statuses), action, re.compile(message, re.IGNORECASE) if message else None, json, reason)


# The first row that fits decides. Servers before 1.9 answer 413 with a JSON body where newer ones answer 422.
TABLE = (
    _row(429, action=Action.SLOW_DOWN),
    _row(424, action=Action.STOP, message=r"not an? \S+ model|not available for|not supported for|SPLADE"),
    _row(424, action=Action.RETRY),
    _row(413, 422, action=Action.SHRINK, message=r"batch size \d+ > maximum"),
    _row(413, 422, action=Action.STOP, message=r"default-prompt|prompt_name|`dimensions` should"),
    _row(
        413,
        422,
        action=Action.SPLIT,
        message=r"must have less than \d+ (tokens|characters)",
        reason=Reason.OVERLONG_TEXT,
    ),
    _row(413, action=Action.SPLIT, json=True),
    _row(413, action=Action.SPLIT_BYTES),
    _row(400, action=Action.STOP, message=r"invalid state|endpoint is in error"),
    _row(400, 415, 422, action=Action.SPLIT),
    _row(408, 425, action=Action.WAIT),
)


def classify(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Return what a reply with an error status means.

    Of the statuses that the table does not know, those from 500 on come from gateways and pass; any other is an answer
    that asking again will not change.
    """
    message, is_json = _message(body)
    message = " ".join(message.split())  # on one line: another one could look like a line of ours
    row = next((row for row in TABLE if _fits(row, status, message, is_json)), None)
    action = row.action if row else (Action.WAIT if status >= 500 else Action.STOP)
    reason = row.reason if row else Reason.REJECTED_BY_ENDPOINT
    return Failure(action, message[:MAX_MESSAGE], status, reason, _retry_after(headers), is_json)


def no_reply(what: str, *, timed_out: bool = False) -> Failure:
    """Return what it means that no whole, readable reply came."""
    return Failure(Action.WAIT, what[:MAX_MESSAGE], timed_out=timed_out)


def doubtful_reply(what: str) -> Failure:
    """Return what a reply of status 200 means whose rows cannot be assigned to their texts."""
    return Failure(Action.RETRY, what[:MAX_MESSAGE], 200, Reason.INVALID_VECTOR)


def _fits(row: _Row, status: int, message: str, is_json: bool) -> bool:
    return (
        status in row.statuses
        and (row.json is None or row.json is is_json)
        and (row.message is None or row.message.search(message) is not None)
    )


def _message(body: bytes) -> tuple[str, bool]:
    """Return the message in a body of any of the four shapes, and whether it was JSON of the server's own."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace"), False
    if isinstance(content, dict):
        for key in ("error", "message"):
            value = content.get(key)
            if isinstance(value, str):
                return value, True
            if isinstance(value, dict) and isinstance(value.get("message"), str):
                return value["message"], True
    return body.decode("utf-8", "replace"), False


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = max(0.0, (parsedate_to_datetime(value) - _now(headers)).total_seconds())
        except (ValueError, TypeError):
            return None
    return min(seconds, MAX_RETRY_AFTER) if seconds >= 0 else None


def _now(headers: Mapping[str, str]) -> datetime:
    """Return the reply's own date, which makes clocks that disagree harmless; this machine's where it has none."""
    try:
        return parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return datetime.now(timezone.utc)
