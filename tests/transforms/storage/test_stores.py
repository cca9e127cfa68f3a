"""What a store's library raises, as its user reads it."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import ModuleType, SimpleNamespace

import pytest
from botocore import exceptions as of_s3
from google.api_core import exceptions as of_google
from google.auth import exceptions as of_google_auth
from requests.exceptions import SSLError

from transforms.storage import gcs, s3
from transforms.storage.base import StorageError, open_ranges


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (of_google.RetryError("Timeout of 30.0s exceeded", OSError("no route")), "gs://b did not answer for 30 s: no"),
        (SSLError("self-signed certificate"), "did not answer for 30 s: self-signed certificate. Check the network"),
        (of_google.BadRequest("odd"), "gs://b/out: 400 odd. Check the bucket's name"),
        (
            of_google_auth.RefreshError("expired"),
            "cannot be used: expired. Run `gcloud auth application-default login`",
        ),
        (ValueError("Bucket names must start with a letter"), "gs://b/out: Bucket names must start"),
    ],
)
def test_what_googles_library_raises_is_a_storage_error(raised: Exception, words: str) -> None:
    with pytest.raises(StorageError, match=words), gcs._explained("gs://b/out"):
        raise raised


def test_an_object_whose_metadata_changed_has_its_former_version() -> None:
    """Unlike the emulator, Google's servers set `updated` then."""
    first, second = (
        gcs._describe("gs://b/a", SimpleNamespace(size=3, generation=7, updated=datetime.fromtimestamp(at)))
        for at in (1, 2)
    )
    assert first.mtime != second.mtime
    assert (first.version, first.size) == (second.version, second.size) == ("7", 3)


def test_a_name_that_no_bucket_can_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    gcs._make_client.cache_clear()
    try:
        with pytest.raises(StorageError, match="gs://_bad/out: Bucket names must start and end"):
            gcs.read("gs://_bad/out", 1)
    finally:
        gcs._make_client.cache_clear()


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (of_s3.SSLError(endpoint_url="https://x", error="self-signed"), "s3://b/out: SSL validation failed"),
        (
            of_s3.ConnectTimeoutError(endpoint_url="https://x"),
            "s3://b/out: Connect timeout.*[^.]\\. Check the bucket's name and region, and AWS_ENDPOINT_URL_S3",
        ),
        (of_s3.ReadTimeoutError(endpoint_url="https://x"), "s3://b/out: Read timeout"),
        (ValueError("Invalid endpoint: x"), "s3://b/out: Invalid endpoint: x"),
        (
            of_s3.ClientError(
                {
                    "Error": {"Code": "SlowDown", "Message": "slower"},
                    "ResponseMetadata": {
                        "HTTPStatusCode": 503,
                        "RequestId": "",
                        "HostId": "",
                        "HTTPHeaders": {},
                        "RetryAttempts": 5,
                    },
                },
                "GetObject",
            ),
            "s3://b/out: the store's message: .*slower\\. Check the bucket's name and region",
        ),
    ],
)
def test_what_amazons_library_raises_is_a_storage_error(raised: Exception, words: str) -> None:
    with pytest.raises(StorageError, match=words), s3._explained("s3://b/out"):
        raise raised


@pytest.mark.parametrize("store", [gcs, s3])
def test_threads_that_begin_at_once_share_one_client(store: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store._make_client.cache_clear()
    try:
        threads, start = 8, threading.Barrier(8)

        def use(_: int) -> int:
            start.wait(10)
            return id(store._client())

        with ThreadPoolExecutor(threads) as pool:
            assert len(set(pool.map(use, range(threads)))) == 1
    finally:
        store._make_client.cache_clear()


@pytest.mark.parametrize("buffer_bytes", [1, 100, 1000, 5000])
def test_no_more_is_fetched_than_the_buffer_holds(buffer_bytes: int) -> None:
    data, fetched = bytes(range(256)) * 40, []

    def fetch(start: int, end: int) -> bytes:
        fetched.append(end - start)
        return data[start:end]

    file = open_ranges(len(data), fetch, buffer_bytes)
    for at in (7000, 3, 5120):
        file.seek(at, io.SEEK_SET)
        assert file.read(1) == data[at : at + 1]
    assert sum(fetched) <= 3 * buffer_bytes


@pytest.mark.parametrize(
    ("status", "code", "is_denied"),
    [
        (400, "400", True),  # of a HEAD, which has no body
        (400, "ExpiredToken", True),
        (400, "InvalidToken", True),
        (400, "AuthorizationHeaderMalformed", True),
        (400, "KeyTooLongError", False),
        (400, "InvalidArgument", False),
        (403, "SignatureDoesNotMatch", True),
    ],
)
def test_a_request_that_s3_does_not_understand_is_not_one_that_it_denies(
    status: int, code: str, is_denied: bool
) -> None:
    response = {"Error": {"Code": code, "Message": "so"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(StorageError) as raised, s3._explained("s3://b/out"):
        raise of_s3.ClientError(response, "GetObject")
    assert ("access denied" in str(raised.value)) == is_denied
    assert ("Its message: so" if is_denied else "so. Check the bucket's name") in str(raised.value)
