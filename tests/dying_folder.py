"""An output folder whose process dies at a chosen step."""

from __future__ import annotations

from collections.abc import Iterable

from transforms.output.folder import OutputFolder
from transforms.storage.api import WrittenFile


class Killed(Exception):
    """The process died."""


class Dying(OutputFolder):
    """A folder on whose n-th change its process dies, before or after it."""

    left = 0
    before = True

    def write(self, name: str, chunks: Iterable[bytes]) -> WrittenFile:
        self._step(before=True)
        written = super().write(name, chunks)
        self._step(before=False)
        return written

    def move(self, name: str, target: str) -> None:
        self._step(before=True)
        super().move(name, target)
        self._step(before=False)

    def delete(self, names: Iterable[str]) -> None:
        self._step(before=True)
        super().delete(names)
        self._step(before=False)

    def _step(self, *, before: bool) -> None:
        if before:
            type(self).left -= 1
        if type(self).left == 0 and before is type(self).before:
            raise Killed
