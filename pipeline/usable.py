"""Whether an output folder can be used: a file is written, read back and deleted."""

from __future__ import annotations

from pipeline.errors import UsageError
from transforms.files import StorageError
from transforms.output import OutputFolder

_PROBE = b'{"tayyar": "a probe"}\n'


def require_usable(output: OutputFolder) -> None:
    """Write a file, read it back and delete it.

    Raises:
        StorageError: if the bucket is not there or not to be used.
        UsageError: if one of these fails otherwise.
    """
    name = f"{output.temporary}/check"
    try:
        output.write(name, [_PROBE])
        found = output.read(name)
        output.delete([name])
        output.tidy()
    except StorageError:
        raise
    except Exception as error:  # each object store's client has errors of its own
        raise UsageError(
            f"--output {output.root} cannot be written: {error}. Check its permissions, or give another folder."
        ) from error
    if found != _PROBE:
        raise UsageError(f"--output {output.root} does not give back what was written to it. Give another folder.")
