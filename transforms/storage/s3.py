"""Objects in S3 and in stores that speak its protocol, through one client a process.

Beam's own file system makes a session for each operation (170 ms of CPU), cannot write an empty object, and publishes
what an interrupted writer had.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, S3Options

from transforms.storage.base import (
    PARALLEL,
    FileStat,
    StorageError,
    open_ranges,
    split_url,
    too_large,
)
from transforms.storage.chunks import Crc32c, spooled

try:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore import exceptions
    from botocore.config import Config
except ImportError as missing:
    raise StorageError(
        f"s3:// needs a library that is not installed ({missing.name}): {sys.executable} -m pip install 'tayyar[aws]'"
    ) from missing

_CHECK_ADDRESS = "Check the bucket's name and region, and AWS_ENDPOINT_URL_S3 where it is set."
_KEYS_PER_DELETION = 1000  # S3's own limit
_MAX_PUT_BYTES = 5 << 30  # of an object that is uploaded by one request; S3's own limit
_PART_BYTES = 64 << 20  # of a larger object, held in memory
_MAX_PARTS = 10_000  # of an upload; S3's own limit
_READ_ATTEMPTS = 4  # of one range, whose body breaks off
# Codes of a 400 that mean the credentials, not the request.
_DENIAL = re.compile(r"Token|Authoriz|Credential|Signature|AccessKey|Security")
_making_client = threading.Lock()
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def stat(path: str, *, follow_links: bool = True) -> FileStat | None:
    """Return the description of one object; None if there is none."""
    del follow_links  # there are none
    bucket, name = split_url(path)
    if not name:
        return None
    try:
        with _explained(path):
            found = _client().head_object(Bucket=bucket, Key=name)
    except FileNotFoundError:
        return None
    return FileStat(path, found["ContentLength"], found["LastModified"].timestamp(), found["ETag"])


def list_below(prefix: str, depth: int | None = None, *, follow_links: bool = True) -> Iterator[FileStat]:
    """Yield the objects whose paths begin so, in the order of their names."""
    del depth, follow_links  # a bucket has neither folders nor links
    bucket, start = split_url(prefix)
    with _explained(prefix):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
            for found in page.get("Contents", []):
                if not found["Key"].endswith("/"):
                    path, modified = f"s3://{bucket}/{found['Key']}", found["LastModified"].timestamp()
                    yield FileStat(path, found["Size"], modified, found["ETag"])


def read(path: str, max_bytes: int) -> bytes | None:
    """Return a small object's bytes as stored; None if there is none."""
    try:
        return _get(path, max_bytes)
    except FileNotFoundError:
        return None


def read_beginning(path: str, count: int) -> bytes:
    """Return an object's first bytes."""
    return _get(path, count, Range=f"bytes=0-{count - 1}")


def open_for_reading(path: str, buffer_bytes: int) -> BinaryIO:
    """Open an object for reading, as the one that it is now: another one put in its place is an error."""
    bucket, name = split_url(path)
    with _explained(path):
        found = _client().head_object(Bucket=bucket, Key=name)

    def fetch(start: int, end: int) -> bytes:
        return _get(path, end - start, Range=f"bytes={start}-{end - 1}", IfMatch=found["ETag"])

    return open_ranges(found["ContentLength"], fetch, buffer_bytes)


def _get(path: str, max_bytes: int, **request: str) -> bytes:
    """Return an object or a range of it; a body that breaks off is asked for again.

    What fails before the body is not: botocore has tried that again already.
    """
    with _explained(path):
        for _ in range(_READ_ATTEMPTS - 1):
            body = _open_body(path, max_bytes, request)
            with contextlib.suppress(exceptions.HTTPClientError, exceptions.IncompleteReadError):
                return bytes(body.read())
        return bytes(_open_body(path, max_bytes, request).read())


def _open_body(path: str, max_bytes: int, request: Mapping[str, str]) -> Any:
    bucket, name = split_url(path)
    found = _client().get_object(Bucket=bucket, Key=name, **request)
    if found["ContentLength"] > max_bytes:
        found["Body"].close()
        raise too_large(path, max_bytes)
    return found["Body"]


def write_whole(path: str, temporary: str, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Upload a file; the store checks the checksum, and shows nothing before all of it is there."""
    del temporary
    with spooled(chunks) as (file, size, crc32c):
        put(path, file, size, crc32c)
    return size, crc32c


def put(
    path: str,
    file: BinaryIO,
    size: int,
    crc32c: str,
    *,
    max_put_bytes: int = _MAX_PUT_BYTES,
    part_bytes: int = _PART_BYTES,
) -> None:
    """Upload a file by one request, or in parts if it has more than `max_put_bytes`."""
    bucket, name = split_url(path)
    with _explained(path):
        if size <= max_put_bytes:
            _client().put_object(Bucket=bucket, Key=name, Body=file, ContentLength=size, ChecksumCRC32C=crc32c)
        else:
            _put_in_parts(path, file, crc32c, max(part_bytes, -(-size // _MAX_PARTS)))


def _put_in_parts(path: str, file: BinaryIO, crc32c: str, part_bytes: int) -> None:
    """Upload a file in parts; the store checks each part's checksum, and shows nothing before the last is there.

    That the parts together are the file is checked here: stores that speak S3's protocol do not all know checksums of
    whole multipart uploads.
    """
    bucket, name = split_url(path)
    where = {"Bucket": bucket, "Key": name}
    where["UploadId"] = _client().create_multipart_upload(**where, ChecksumAlgorithm="CRC32C")["UploadId"]
    with contextlib.ExitStack() as undo:
        # After an interruption, too: parts of an upload that never ends are invisible, and are paid for.
        undo.callback(_client().abort_multipart_upload, **where)
        parts: list[dict[str, Any]] = []
        whole = Crc32c()
        while data := file.read(part_bytes):
            part = Crc32c()
            part.update(data)
            whole.update(data)
            about = {"PartNumber": len(parts) + 1, "ChecksumCRC32C": part.base64()}
            sent = _client().upload_part(**where, **about, Body=data)
            parts.append({**about, "ETag": sent["ETag"]})
        if whole.base64() != crc32c:
            raise StorageError(f"{path} changed on this machine's disk while it was uploaded. Check the disk.")
        _client().complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
        undo.pop_all()


def move(path: str, target: str, *, max_copy_bytes: int = _MAX_PUT_BYTES, part_bytes: int = _PART_BYTES) -> None:
    """Copy an object within the store, in parts if it has more than `max_copy_bytes`, and delete it."""
    source, copy = (dict(zip(("Bucket", "Key"), split_url(each), strict=True)) for each in (path, target))
    config = TransferConfig(multipart_threshold=max_copy_bytes, multipart_chunksize=part_bytes)
    try:
        with _explained(path):
            _client().copy(source, copy["Bucket"], copy["Key"], Config=config)
    except FileNotFoundError:
        return
    delete([path])


def delete(paths: Iterable[str]) -> None:
    """Delete objects; missing ones are no error."""
    by_bucket = itertools.groupby(sorted(map(split_url, paths)), key=lambda parts: parts[0])
    for bucket, parts in by_bucket:
        names = [name for _, name in parts]
        for first in range(0, len(names), _KEYS_PER_DELETION):
            _delete(bucket, names[first : first + _KEYS_PER_DELETION])


def delete_empty_folder(path: str) -> None:
    """Do nothing: a bucket has no folders."""


def _delete(bucket: str, names: list[str]) -> None:
    with _explained(f"s3://{bucket}/{names[0]}"):
        keys = [{"Key": name} for name in names]
        failed = _client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True}).get("Errors", [])
    if failed:
        raise StorageError(
            f"s3://{bucket}/{failed[0]['Key']} cannot be deleted: {failed[0]['Message']}. "
            f"Grant s3:DeleteObject on s3://{bucket}, and look whether it locks its objects."
        )


def _client() -> Any:  # boto3 makes its classes when it runs
    with _making_client:  # functools.cache lets several threads make one each
        return _make_client()


@functools.cache
def _make_client() -> Any:
    # Private, but Beam has no public way to read the options that it gave to a worker process.
    options = (FileSystems._pipeline_options or PipelineOptions([])).view_as(S3Options)
    return boto3.session.Session().client(
        "s3",
        region_name=options.s3_region_name,
        api_version=options.s3_api_version,
        use_ssl=not options.s3_disable_ssl,
        verify=options.s3_verify,
        endpoint_url=options.s3_endpoint_url,
        aws_access_key_id=options.s3_access_key_id,
        aws_secret_access_key=options.s3_secret_access_key,
        aws_session_token=options.s3_session_token,
        # A request is made seven times at most. So a store that cannot be reached is given up after half a minute, and
        # one that accepts and does not answer after 140 s, and botocore's waits between: half a minute on average.
        config=Config(
            max_pool_connections=2 * PARALLEL,  # a run lists and reads receipts beside its work
            connect_timeout=4,
            read_timeout=20,  # longer than a store takes that deletes a thousand objects one by one
            retries={"mode": "standard", "max_attempts": 6},
        ),
    )


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn the library's errors into a StorageError that gives the remedy; a missing object is FileNotFoundError."""
    bucket = f"s3://{split_url(path)[0]}"
    try:
        yield
    except exceptions.ClientError as error:
        details, status = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if details["Code"] == "NoSuchBucket":
            raise StorageError(f"{path}: there is no bucket {bucket}. Check the name, or create it.") from error
        if status == 404:
            raise FileNotFoundError(path) from error
        if status == 412:
            raise StorageError(f"{path} was replaced while it was read. Run again.") from error
        # A HEAD has no body, so of an expired token it gives a bare 400; with a body, the code names the reason.
        if status in {401, 403} or (status == 400 and (details["Code"] == "400" or _DENIAL.search(details["Code"]))):
            raise StorageError(
                f"{path}: access denied. Check {_CREDENTIALS}; grant s3:GetObject, s3:PutObject, s3:DeleteObject "
                f"and s3:ListBucket on {bucket}. Its message: {details.get('Message') or details['Code']}"
            ) from error
        raise StorageError(f"{path}: the store's message: {error}. {_CHECK_ADDRESS}") from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise StorageError(f"{path}: no AWS credentials were found. Set {_CREDENTIALS}.") from error
    except (exceptions.BotoCoreError, ValueError) as error:  # a malformed address raises ValueError
        raise StorageError(f"{path}: {str(error).rstrip('.')}. {_CHECK_ADDRESS}") from error
