"""Objects in Google Cloud Storage, through one client a process.

Beam's own file system makes a client for each operation, publishes what an interrupted writer had, and without
`apache-beam[gcp]` connects anonymously, whatever credentials there are.
"""

from __future__ import annotations

import contextlib
import functools
import os
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

from transforms.storage.base import PARALLEL, FileStat, StorageError, open_ranges, split_url

_NO_CREDENTIALS = (
    "no Google credentials were found. Run `gcloud auth application-default login`, or set "
    "GOOGLE_APPLICATION_CREDENTIALS to a key file, of an account with roles/storage.objectUser"
)
_PATIENCE = 30.0  # seconds in which a request is tried again
_HOW: dict[str, Any] = {
    "retry": DEFAULT_RETRY.with_timeout(_PATIENCE),
    "timeout": (5.0, 60.0),  # seconds to connect, and for the next bytes
}
_NO_PERMISSION = "these credentials may not do this. Grant their account roles/storage.objectUser"


def stat(path: str) -> FileStat | None:
    """Return what is known of one object; None if there is none."""
    bucket, name = split_url(path)
    with _explained(path):
        blob = _client().bucket(bucket).get_blob(name, **_HOW) if name else None
    return None if blob is None else FileStat(path, blob.size, blob.updated.timestamp())


def list_below(prefix: str) -> Iterator[FileStat]:
    """Yield the objects whose paths begin so, in the order of their names."""
    bucket, start = split_url(prefix)
    with _explained(prefix, of_bucket=True):
        fields = "items(name,size,updated),nextPageToken"
        blobs = _client().list_blobs(bucket, prefix=start, fields=fields, **_HOW)
        for blob in blobs:
            if not blob.name.endswith("/"):
                yield FileStat(f"gs://{bucket}/{blob.name}", blob.size, blob.updated.timestamp())


def read(path: str) -> bytes | None:
    """Return an object's bytes as stored; None if there is none."""
    try:
        with _explained(path):
            data: bytes = _blob(path).download_as_bytes(raw_download=True, **_HOW)
    except FileNotFoundError:
        return None
    return data


def open_for_reading(path: str, buffer_bytes: int) -> BinaryIO:
    """Open an object for reading, as the one that it is now: another one put in its place is an error."""
    with _explained(path):
        found = _blob(path)
        found.reload(**_HOW)
    blob = found.bucket.blob(found.name, generation=found.generation)

    def fetch(start: int, end: int) -> bytes:
        try:
            with _explained(path):
                data: bytes = blob.download_as_bytes(start=start, end=end - 1, raw_download=True, **_HOW)
        except FileNotFoundError as error:
            raise StorageError(f"{path} was replaced while it was read. Run again.") from error
        return data

    return open_ranges(found.size, fetch, buffer_bytes)


def put(path: str, file: BinaryIO, size: int, crc32c: str) -> None:
    """Upload a whole file; the store checks the checksum, and shows nothing before all of it is there."""
    with _explained(path, of_bucket=True):
        blob = _blob(path)
        blob.crc32c = crc32c
        blob.upload_from_file(file, size=size, content_type="application/octet-stream", checksum=None, **_HOW)


def delete(paths: Iterable[str]) -> None:
    """Delete objects; those that are not there are no error."""
    with ThreadPoolExecutor(PARALLEL) as threads:
        for _ in threads.map(_delete, paths):
            pass


def _delete(path: str) -> None:
    with contextlib.suppress(FileNotFoundError), _explained(path):
        _blob(path).delete(**_HOW)


def _blob(path: str) -> Any:  # the library's types are not complete
    bucket, name = split_url(path)
    return _client().bucket(bucket).blob(name)


@functools.cache
def _client() -> storage.Client:
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
    """Turn what the library raises into what its user can mend.

    Args:
        path: what is read or written.
        of_bucket: whether "not found" can mean the bucket alone; else it is the object, and a FileNotFoundError.
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
            f"The store said: {error.message}"
        ) from error
    except GoogleAuthError as error:
        raise StorageError(f"{path}: the Google credentials cannot be used: {error}") from error
    except (exceptions.RetryError, RequestException) as error:
        cause = getattr(error, "cause", None) or error
        raise StorageError(f"{path}: {bucket} did not answer for {_PATIENCE:.0f} s: {cause}") from error
    except (exceptions.GoogleAPIError, ValueError) as error:  # a name that no bucket can have is a ValueError
        raise StorageError(f"{path}: {error}") from error
