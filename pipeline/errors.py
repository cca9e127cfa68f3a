"""The errors that end a command, and its exit codes."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a command's exit code means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    ENDPOINT = 3
    TOO_MANY_DEAD_LETTERS = 4
    NOT_PROVEN = 5


class CommandError(Exception):
    """An error with a message of one line or more, each an argument of its own.

    A line may hold names and texts from outside. Only lines that are apart here are printed apart, so a name with a
    newline in it cannot print a line that looks like Tayyar's own.
    """

    def __str__(self) -> str:
        """Return the lines, joined by newlines."""
        return "\n".join(map(str, self.args))


class UsageError(CommandError):
    """The command cannot be carried out as it was given; the message names the value and the remedy."""


def message_lines(error: Exception) -> tuple[str, ...]:
    """Return the lines of an error's message; of an error that is not a CommandError, it is one line."""
    return error.args if isinstance(error, CommandError) else (describe_error(error),)


def describe_error(error: Exception) -> str:
    """Return an error's message for a person; for an OSError, the path, the reason and the remedy."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}. Check the path, its permissions and the room on its disk."
    return (
        f"{error} does not exist. Check its name, or whether something removes files there."
        if isinstance(error, FileNotFoundError)
        else str(error)
    )


def is_out_of_threads(error: BaseException) -> bool:
    """Return whether an error, perhaps with a runner's words around it, means that no thread can be started."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


OUT_OF_THREADS = "no thread can be started: the limit of processes and threads is reached. Raise it (ulimit -u)."


class PipelineFailed(CommandError):
    """The runner or a worker failed; the message gives the reason, as far as it is known, and `code` the exit code."""

    def __init__(self, *lines: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(*lines)
        self.code = code


class NotProven(CommandError):
    """The ledger does not balance, or the output is not what its receipts say."""
