"""Checks that paths can be read and written, before anything is sent."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UsageError, describe_error
from transforms.output.folder import OutputFolder
from transforms.storage.base import StorageError

_PROBE = b'{"tayyar": "a probe"}\n'


@contextmanager
def as_usage_errors() -> Iterator[None]:
    """Turn a path that cannot be read or written into a usage error; also a decorator.

    Raises:
        UsageError: instead of a StorageError or an OSError.
    """
    try:
        yield
    except (StorageError, OSError) as error:
        raise UsageError(describe_error(error)) from error


@as_usage_errors()
def require_usable(output: OutputFolder) -> None:
    """Write a file, read it back and delete it.

    Raises:
        UsageError: if one of these fails.
    """
    # Two commands may begin at once.
    name = f"{output.temporary}/{output.run}-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}-check"
    try:
        output.write(name, [_PROBE])
        found = output.read(name)
        output.delete([name])
        output.tidy()
    except (StorageError, OSError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if isinstance(reason, (NotADirectoryError, FileExistsError)):
            raise UsageError(f"--output {output.root} is a file, or lies below one. Give another folder.") from error
        if not isinstance(reason, OSError):
            raise
        raise UsageError(  # without the temporary file's name, which means nothing to the user
            f"--output {output.root} cannot be written: {reason.strerror or reason}. Make room, check its permissions, "
            "or give another folder."
        ) from error
    if found != _PROBE:
        raise UsageError(f"--output {output.root} does not give back what was written to it. Give another folder.")
