"""Objects in Google Cloud Storage, through one client a process.

Beam's own file system makes a client for each operation, publishes what an interrupted writer had, and without
`apache-beam[gcp]` connects anonymously, whatever credentials there are.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import google.auth
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from google.api_core import exceptions
from google.auth import credentials as google_credentials
from google.auth import impersonated_credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException

from transforms.storage.base import PARALLEL, FileStat, StorageError, open_ranges, split_url, too_large
from transforms.storage.chunks import spooled

_LOG_IN = "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file,"
_NO_CREDENTIALS = f"no Google credentials were found. {_LOG_IN} of an account with roles/storage.objectUser"
_RETRY_SECONDS = 30.0  # for which a request is tried again
_REQUEST: dict[str, Any] = {
    "retry": DEFAULT_RETRY.with_timeout(_RETRY_SECONDS),
    "timeout": (5.0, 60.0),  # seconds to connect, and for the next bytes
}
_making_client = threading.Lock()
_NO_PERMISSION = "these credentials may not do this. Grant their account roles/storage.objectUser"


def stat(path: str, *, follow_links: bool = True) -> FileStat | None:
    """Return the description of one object; None if there is none."""
    del follow_links  # there are none
    bucket, name = split_url(path)
    with _explained(path):
        blob = _client().bucket(bucket).get_blob(name, **_REQUEST) if name else None
    return None if blob is None else _describe(path, blob)


def _describe(path: str, blob: Any) -> FileStat:
    # `updated` changes with an object's metadata, its generation only with its content.
    return FileStat(path, blob.size, blob.updated.timestamp(), str(blob.generation))


def list_below(prefix: str, depth: int | None = None, *, follow_links: bool = True) -> Iterator[FileStat]:
    """Yield the objects whose paths begin so, in the order of their names."""
    del depth, follow_links  # a bucket has neither folders nor links
    bucket, start = split_url(prefix)
    with _explained(prefix, of_bucket=True):
        fields = "items(name,size,updated,generation),nextPageToken"
        blobs = _client().list_blobs(bucket, prefix=start, fields=fields, **_REQUEST)
        for blob in blobs:
            if not blob.name.endswith("/"):
                yield _describe(f"gs://{bucket}/{blob.name}", blob)


def read(path: str, max_bytes: int) -> bytes | None:
    """Return a small object's bytes as stored; None if there is none."""
    buffer = _BoundedBuffer(path, max_bytes)
    try:
        with _explained(path):
            _blob(path).download_to_file(buffer, raw_download=True, **_REQUEST)
    except FileNotFoundError:
        return None
    return buffer.getvalue()


class _BoundedBuffer(io.BytesIO):
    """Refuses bytes beyond a bound as they arrive: one request instead of one for the size and one for the bytes."""

    def __init__(self, path: str, max_bytes: int) -> None:
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._max_bytes:
            raise too_large(self._path, self._max_bytes)
        return super().write(data)


def read_beginning(path: str, count: int) -> bytes:
    """Return an object's first bytes."""
    with _explained(path):
        data: bytes = _blob(path).download_as_bytes(start=0, end=count - 1, raw_download=True, **_REQUEST)
    return data


def open_for_reading(path: str, buffer_bytes: int) -> BinaryIO:
    """Open an object for reading, as the one that it is now: another one put in its place is an error."""
    with _explained(path):
        found = _blob(path)
        found.reload(**_REQUEST)
    blob = found.bucket.blob(found.name, generation=found.generation)

    def fetch(start: int, end: int) -> bytes:
        try:
            with _explained(path):
                data: bytes = blob.download_as_bytes(start=start, end=end - 1, raw_download=True, **_REQUEST)
        except FileNotFoundError as error:
            raise StorageError(f"{path} was replaced while it was read. Run again.") from error
        return data

    return open_ranges(found.size, fetch, buffer_bytes)


def write_whole(path: str, temporary: str, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Upload a file; the store checks the checksum, and shows nothing before all of it is there."""
    del temporary
    with spooled(chunks) as (file, size, crc32c), _explained(path, of_bucket=True):
        blob = _blob(path)
        blob.crc32c = crc32c
        blob.upload_from_file(file, size=size, content_type="application/octet-stream", checksum=None, **_REQUEST)
    return size, crc32c


def move(path: str, target: str) -> None:
    """Copy an object within the store, which takes several requests for a large one, and delete it."""
    copy, token = _blob(target), None
    try:
        with _explained(path):
            while True:
                token, _, _ = copy.rewrite(_blob(path), token, **_REQUEST)
                if token is None:
                    break
    except FileNotFoundError:
        return
    _delete(path)


def delete(paths: Iterable[str]) -> None:
    """Delete objects; missing ones are no error."""
    with ThreadPoolExecutor(PARALLEL) as threads:
        for _ in threads.map(_delete, paths):
            pass


def delete_empty_folder(path: str) -> None:
    """Do nothing: a bucket has no folders."""


def _delete(path: str) -> None:
    with contextlib.suppress(FileNotFoundError), _explained(path):
        _blob(path).delete(**_REQUEST)


def _blob(path: str) -> Any:  # the library's types are not complete
    bucket, name = split_url(path)
    return _client().bucket(bucket).blob(name)


def _client() -> storage.Client:
    with _making_client:  # functools.cache lets several threads make one each
        return _make_client()


@functools.cache
def _make_client() -> storage.Client:
    # Private, but Beam has no public way to read the options that it gave to a worker process.
    options = (FileSystems._pipeline_options or PipelineOptions([])).view_as(GoogleCloudOptions)
    session = AuthorizedSession(_credentials(options))
    adapter = HTTPAdapter(pool_maxsize=2 * PARALLEL)  # a run lists and reads receipts beside its work
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return storage.Client(options.project or "none", session.credentials, _http=session)


def _credentials(options: Any) -> google_credentials.Credentials:  # Beam ships no types
    """Return the default credentials, impersonating where Beam's options say so; anonymous ones if there are none."""
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return google_credentials.AnonymousCredentials()
    try:
        found, _ = google.auth.default(scopes=options.gcp_oauth_scopes)
    except DefaultCredentialsError:
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise
        return google_credentials.AnonymousCredentials()  # enough for a public bucket
    if not options.impersonate_service_account:
        return found
    *delegates, target = options.impersonate_service_account.split(",")
    return impersonated_credentials.Credentials(found, target, options.gcp_oauth_scopes, delegates=delegates)


@contextlib.contextmanager
def _explained(path: str, *, of_bucket: bool = False) -> Iterator[None]:
    """Turn the library's errors into a StorageError that gives the remedy.

    Args:
        path: which is read or written.
        of_bucket: whether "not found" can only mean the bucket; else it means the object: a FileNotFoundError.
    """
    bucket = f"gs://{split_url(path)[0]}"
    try:
        yield
    except exceptions.NotFound as error:
        if of_bucket:
            raise StorageError(f"{path}: there is no bucket {bucket}. Check the name, or create it.") from error
        raise FileNotFoundError(path) from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        anonymous = isinstance(_client()._credentials, google_credentials.AnonymousCredentials)
        raise StorageError(
            f"{path}: access denied: {_NO_CREDENTIALS if anonymous else _NO_PERMISSION} on {bucket}. "
            f"Google's message: {error.message}"
        ) from error
    except GoogleAuthError as error:
        raise StorageError(
            f"{path}: the Google credentials cannot be used: {str(error).rstrip('.')}. {_LOG_IN} of an account with "
            "roles/storage.objectUser."
        ) from error
    except (exceptions.RetryError, RequestException) as error:
        cause = getattr(error, "cause", None) or error
        raise StorageError(
            f"{path}: {bucket} did not answer for {_RETRY_SECONDS:.0f} s: {str(cause).rstrip('.')}. Check the network "
            "and its proxy."
        ) from error
    except (exceptions.GoogleAPIError, ValueError) as error:  # a name that no bucket can have is a ValueError
        raise StorageError(f"{path}: {str(error).rstrip('.')}. Check the bucket's name.") from error
