"""Files on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from transforms.storage.base import FileStat, StorageError, too_large
from transforms.storage.chunks import copy_chunks

_CREATION_ATTEMPTS = 20  # each fails only where another process deletes the folder just then


def stat(path: str, *, follow_links: bool = True) -> FileStat | None:
    """Return the description of one file, whose name is taken literally; None if there is none."""
    try:
        found = os.stat(path, follow_symlinks=follow_links)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileStat(path, found.st_size, found.st_mtime, str(found.st_mtime_ns), modes.S_ISLNK(found.st_mode))


def list_below(prefix: str, depth: int | None = None, *, follow_links: bool = True) -> Iterator[FileStat]:
    """Yield the files below the last folder that the prefix names; none if there is no such folder.

    Args:
        prefix: a folder with its final slash, and perhaps the beginning of a name, which is not looked at.
        depth: how many folders deep to look; None for all. What lies deeper may be large, or unreadable.
        follow_links: whether to enter linked folders and describe linked files; else each link below the folder is
            yielded as such.

    Raises:
        StorageError: naming a folder that cannot be listed, or a link that leads nowhere: an existing file that cannot
            be seen must not be taken for a missing one.
    """
    head = prefix[: prefix.rfind("/") + 1]
    top = head.rstrip("/") or head or os.curdir

    def fail(error: OSError) -> None:
        # Another command may have removed a folder since its parent was listed.
        if not (
            isinstance(error, FileNotFoundError) or (isinstance(error, NotADirectoryError) and error.filename == top)
        ):
            raise StorageError(f"{error.filename} cannot be listed: {error.strerror}. Repair it, or leave it out.")

    for parent, folders, names in os.walk(top, onerror=fail, followlinks=follow_links):
        if not follow_links:  # os.walk does not enter linked folders then, but counts them among the folders
            names += [name for name in folders if os.path.islink(os.path.join(parent, name))]
        level = 0 if parent == top else os.path.relpath(parent, top).count("/") + 1
        if depth is not None and level >= depth:
            folders.clear()
        for link in (os.path.join(parent, name) for name in folders if follow_links):
            if os.path.islink(link) and f"{os.path.realpath(parent)}/".startswith(f"{os.path.realpath(link)}/"):
                raise StorageError(f"{link} is a link to a folder that it lies in. Remove it, or leave it out.")
        for name in names:
            path = os.path.join(parent, name).removeprefix("./")
            try:
                found = stat(path, follow_links=follow_links)
            except OSError as error:
                raise StorageError(f"{path} cannot be read: {error.strerror}. Repair it, or remove it.") from error
            if found is not None:
                yield found
            elif os.path.islink(path):
                raise StorageError(f"{path} is a link that leads nowhere. Repair it, or remove it.")


def read(path: str, max_bytes: int) -> bytes | None:
    """Return a small file's bytes; None if there is none."""
    try:
        with open_for_reading(path) as file:
            # As long as the file is, and not max_bytes: Python would allocate those at once.
            data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(data) > max_bytes:
        raise too_large(path, max_bytes)
    return data


def read_beginning(path: str, count: int) -> bytes:
    """Return a file's first bytes."""
    with open_for_reading(path) as file:
        return file.read(count)


def open_for_reading(path: str, buffer_bytes: int = -1) -> BinaryIO:
    """Open a regular file for reading; the operating system reads ahead, so the buffer size is Python's default.

    Raises:
        StorageError: if it is a named pipe, a device, a socket or a folder.
    """
    del buffer_bytes
    # Without O_NONBLOCK, opening a named pipe waits for its writer, forever if there is none.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):  # a socket, or a device without a driver
            raise _not_regular(path) from error
        raise
    if not modes.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return open(descriptor, "rb")


def _not_regular(path: str) -> StorageError:
    return StorageError(f"{path} is not a regular file but a folder, a named pipe, a socket or a device. Remove it.")


def write_whole(
    path: str, temporary: str, chunks: Iterable[bytes], sync: Callable[[int], None] = os.fsync
) -> tuple[int, str]:
    """Write a file under a temporary name and rename it when it is complete.

    The file is synced to the disk before it is renamed, and the folder afterwards. Otherwise a power cut could leave a
    receipt that vouches for an empty file. On ext4 this takes 16 ms for the three files of a shard, where writing 1 MiB
    takes 5 ms; a shard of the default size takes a second or more to embed.

    Args:
        path: where the file belongs.
        temporary: its name until it is complete, on the same file system.
        chunks: its content.
        sync: makes a descriptor's file or folder durable; a test passes one that keeps a record.
    """
    try:
        with _create(temporary) as file:
            written = copy_chunks(chunks, file)
            file.flush()
            sync(file.fileno())
        _make_parent(path)
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or os.curdir, sync)
    except BaseException as error:  # an interruption too: half a file is of no use to anybody
        with contextlib.suppress(OSError):  # the first error is the one to report
            delete([temporary])
        if isinstance(error, OSError):
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}. Make room, or repair its permissions."
            ) from error
        raise
    return written


def _sync_folder(folder: str, sync: Callable[[int], None]) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    except OSError as error:
        # Some file systems, as of buckets that are mounted, cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _create(path: str) -> BinaryIO:
    """Open a new file; another process may delete the folder, while it is empty, before the file is in it."""
    for _ in range(_CREATION_ATTEMPTS - 1):
        # makedirs raises FileExistsError for a folder that is deleted just as it is made.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            _make_parent(path)
            return open(path, "wb")  # not by tempfile, whose files are their owner's alone: the umask decides
    _make_parent(path)
    return open(path, "wb")


def _make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)


def move(path: str, target: str) -> None:
    """Rename a file; a missing one is not an error."""
    _make_parent(target)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, target)


def delete(paths: Iterable[str]) -> None:
    """Delete files, and of links the links themselves; missing files are no error."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def delete_empty_folder(path: str) -> None:
    """Delete a folder if nothing is in it."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def first_link(root: str, name: str) -> str | None:
    """Return the first path from a folder down to a name below it that is a symbolic link; None if there is none."""
    path = root
    for part in name.split("/"):
        path = f"{path}/{part}"
        if os.path.islink(path):
            return path
    return None


def ignores_case(folder: str, exists: Callable[[str], bool] = os.path.exists) -> bool:
    """Return whether names that differ only in case are the same file in a folder, which need not exist yet.

    Args:
        folder: the nearest existing folder above it is tried, with a temporary file.
        exists: looks for a file; a test passes a file system's behaviour.

    Raises:
        StorageError: if no file can be made there.
    """
    while not os.path.isdir(folder or os.curdir):
        folder = os.path.dirname(folder)
    try:
        with tempfile.NamedTemporaryFile(prefix="tayyar_case_", dir=folder or os.curdir) as file:
            return exists(os.path.join(os.path.dirname(file.name), os.path.basename(file.name).upper()))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}. Repair its permissions.") from error
