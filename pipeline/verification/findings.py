"""What `verify` finds: how many things are wrong, and the first of them with their places."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_SHOWN = 10  # the first ones show the cause; a damaged folder may have millions


class WrongLine(Exception):
    """An output line is not what it should be; the message gives the reason."""


@dataclass
class Findings:
    """What is wrong: how many things, and the first ten with their places."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, finding: str) -> None:
        """Add one."""
        self.count += 1
        if len(self.first) < MAX_SHOWN:
            self.first.append(finding)

    def extend(self, others: Findings) -> None:
        """Add those of another part of the folder."""
        self.count += others.count
        self.first += others.first[: MAX_SHOWN - len(self.first)]
