"""Objects in S3 and in stores that speak its protocol, through one client a process.

Beam's own file system makes a session for each operation (170 ms of CPU), cannot write an empty object, and publishes
what an interrupted writer had.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, S3Options

from transforms.storage.base import PARALLEL, FileStat, StorageError, open_ranges, split_url

try:
    import boto3
    from botocore import exceptions
    from botocore.config import Config
except ImportError as missing:
    raise StorageError(
        f"s3:// needs a library that is not installed ({missing.name}): in Tayyar's folder, "
        f"{sys.executable} -m pip install '.[aws]'"
    ) from missing

_KEYS_A_DELETION = 1000  # S3's own limit
_READ_ATTEMPTS = 4
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def stat(path: str) -> FileStat | None:
    """Return what is known of one object; None if there is none."""
    bucket, name = split_url(path)
    if not name:
        return None
    try:
        with _explained(path):
            found = _client().head_object(Bucket=bucket, Key=name)
    except FileNotFoundError:
        return None
    return FileStat(path, found["ContentLength"], found["LastModified"].timestamp())


def list_below(prefix: str) -> Iterator[FileStat]:
    """Yield the objects whose paths begin so, in the order of their names."""
    bucket, start = split_url(prefix)
    with _explained(prefix):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
            for found in page.get("Contents", []):
                if not found["Key"].endswith("/"):
                    yield FileStat(f"s3://{bucket}/{found['Key']}", found["Size"], found["LastModified"].timestamp())


def read(path: str) -> bytes | None:
    """Return an object's bytes as stored; None if there is none."""
    try:
        return _get(path)
    except FileNotFoundError:
        return None


def open_for_reading(path: str, buffer_bytes: int) -> BinaryIO:
    """Open an object for reading, as the one that it is now: another one put in its place is an error."""
    bucket, name = split_url(path)
    with _explained(path):
        found = _client().head_object(Bucket=bucket, Key=name)

    def fetch(start: int, end: int) -> bytes:
        return _get(path, Range=f"bytes={start}-{end - 1}", IfMatch=found["ETag"])

    return open_ranges(found["ContentLength"], fetch, buffer_bytes)


def _get(path: str, **how: str) -> bytes:
    """Read an object or a range of it; botocore tries again what fails before the body, and nothing in the body."""
    bucket, name = split_url(path)
    with _explained(path):
        for _ in range(_READ_ATTEMPTS - 1):
            with contextlib.suppress(exceptions.HTTPClientError, exceptions.IncompleteReadError):
                return _body(bucket, name, how)
        return _body(bucket, name, how)


def _body(bucket: str, name: str, how: Mapping[str, str]) -> bytes:
    data: bytes = _client().get_object(Bucket=bucket, Key=name, **how)["Body"].read()
    return data


def put(path: str, file: BinaryIO, size: int, crc32c: str) -> None:
    """Upload a whole file; the store checks the checksum, and shows nothing before all of it is there."""
    bucket, name = split_url(path)
    with _explained(path):
        _client().put_object(Bucket=bucket, Key=name, Body=file, ContentLength=size, ChecksumCRC32C=crc32c)


def delete(paths: Iterable[str]) -> None:
    """Delete objects; those that are not there are no error."""
    by_bucket = itertools.groupby(sorted(map(split_url, paths)), key=lambda parts: parts[0])
    for bucket, parts in by_bucket:
        names = [name for _, name in parts]
        for first in range(0, len(names), _KEYS_A_DELETION):
            _delete(bucket, names[first : first + _KEYS_A_DELETION])


def _delete(bucket: str, names: list[str]) -> None:
    with _explained(f"s3://{bucket}/{names[0]}"):
        keys = [{"Key": name} for name in names]
        failed = _client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True}).get("Errors", [])
    if failed:
        raise StorageError(f"s3://{bucket}/{failed[0]['Key']} cannot be deleted: {failed[0]['Message']}")


@functools.cache
def _client() -> Any:  # boto3 makes its classes when it runs
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
        # Who cannot be reached is given up after half a minute.
        config=Config(
            max_pool_connections=PARALLEL, connect_timeout=4, retries={"mode": "standard", "max_attempts": 6}
        ),
    )


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what the library raises into what its user can mend; an object that is not there is FileNotFoundError."""
    bucket = f"s3://{split_url(path)[0]}"
    try:
        yield
    except exceptions.ClientError as error:
        said, status = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if said["Code"] == "NoSuchBucket":
            raise StorageError(f"{path}: there is no bucket {bucket}. Check the name, or create it.") from error
        if status == 404:
            raise FileNotFoundError(path) from error
        if status == 412:
            raise StorageError(f"{path} was replaced while it was read. Run again.") from error
        if status in {400, 401, 403}:
            raise StorageError(
                f"{path}: access denied. Check {_CREDENTIALS}; grant s3:GetObject, s3:PutObject, s3:DeleteObject "
                f"and s3:ListBucket on {bucket}. The store said: {said.get('Message') or said['Code']}"
            ) from error
        raise StorageError(f"{path}: the store said: {error}") from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise StorageError(f"{path}: no AWS credentials were found. Set {_CREDENTIALS}.") from error
    except (exceptions.BotoCoreError, ValueError) as error:  # an address that is none is a ValueError
        raise StorageError(f"{path}: {error}") from error
