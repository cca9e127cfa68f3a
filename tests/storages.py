"""Places to keep files, each seen through its vendor's own client: what Tayyar wrote is not read back by Tayyar."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tests.commands import tayyar_here
from tests.servers import free_port, serving, tool

KINDS = ("local", "gs", "s3")
# What shows most of Parquet at once: numbers that are rounded, a column of strings, and one that most records lack.
PARQUET = ("--output_format", "parquet", "--vector_type", "float16", "--column", "id", "--column", "meta.n")
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


class Storage(Protocol):
    """A folder of files, by their names relative to it.

    Attributes:
        root: what Tayyar is given.
    """

    root: str

    def put(self, name: str, data: bytes) -> None: ...

    def names(self) -> list[str]: ...

    def files(self) -> dict[str, bytes]: ...

    def remove(self, name: str) -> None: ...

    def change_metadata(self, name: str) -> None:
        """Change what is said about a file, and not the file."""


class LocalStorage:
    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def put(self, name: str, data: bytes) -> None:
        path = Path(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def names(self) -> list[str]:
        # Not `rglob`: it raises where a folder goes while it looks.
        found = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        return sorted(str(path.relative_to(self.root)) for path in found)

    def files(self) -> dict[str, bytes]:
        return {name: Path(self.root, name).read_bytes() for name in self.names()}

    def remove(self, name: str) -> None:
        Path(self.root, name).unlink()

    def change_metadata(self, name: str) -> None:
        Path(self.root, name).chmod(0o600)


class GcsStorage:
    def __init__(self, url: str, bucket: str, folder: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        self.root = f"gs://{bucket}/{folder}"
        self._folder = folder
        client = Client("none", AnonymousCredentials(), client_options={"api_endpoint": url})
        self._bucket = client.bucket(bucket)
        if not self._bucket.exists():
            client.create_bucket(bucket)

    def put(self, name: str, data: bytes) -> None:
        self._bucket.blob(f"{self._folder}/{name}").upload_from_string(data)

    def names(self) -> list[str]:
        blobs = self._bucket.list_blobs(prefix=f"{self._folder}/")
        return [blob.name.removeprefix(f"{self._folder}/") for blob in blobs]

    def files(self) -> dict[str, bytes]:
        blobs = {name: self._bucket.blob(f"{self._folder}/{name}") for name in self.names()}
        return {name: blob.download_as_bytes(raw_download=True) for name, blob in blobs.items()}

    def remove(self, name: str) -> None:
        self._bucket.blob(f"{self._folder}/{name}").delete()

    def change_metadata(self, name: str) -> None:
        blob = self._bucket.get_blob(f"{self._folder}/{name}")
        blob.metadata = {"owner": "another"}
        blob.patch()


class S3Storage:
    def __init__(self, url: str, bucket: str, folder: str) -> None:
        self.root = f"s3://{bucket}/{folder}"
        self._folder = folder
        self._name = bucket
        self._client = s3_client(url)
        if bucket not in [found["Name"] for found in self._client.list_buckets()["Buckets"]]:
            self._client.create_bucket(Bucket=bucket)

    def put(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._name, Key=f"{self._folder}/{name}", Body=data)

    def names(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=f"{self._folder}/")
        return [found["Key"].removeprefix(f"{self._folder}/") for page in pages for found in page.get("Contents", [])]

    def files(self) -> dict[str, bytes]:
        assert not self._client.list_multipart_uploads(Bucket=self._name).get("Uploads"), "unfinished uploads"
        keys = {name: f"{self._folder}/{name}" for name in self.names()}
        return {name: self._client.get_object(Bucket=self._name, Key=key)["Body"].read() for name, key in keys.items()}

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=self._name, Key=f"{self._folder}/{name}")

    def change_metadata(self, name: str) -> None:
        here = {"Bucket": self._name, "Key": f"{self._folder}/{name}"}
        how = {"Metadata": {"owner": "another"}, "MetadataDirective": "REPLACE"}
        self._client.copy_object(**here, CopySource=here, **how)


def s3_client(url: str, service: str = "s3") -> Any:
    import boto3

    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


def place_of(kind: str, folder: Path) -> Storage:
    """A place in a kind of storage that nothing else uses, as nothing else does a folder."""
    if kind == "gs":
        return GcsStorage(os.environ["STORAGE_EMULATOR_HOST"], "tayyar-tests", folder.name)
    if kind == "s3":
        return S3Storage(os.environ["AWS_ENDPOINT_URL_S3"], "tayyar-tests", folder.name)
    return LocalStorage(folder / "place")


@contextlib.contextmanager
def fresh_clients(kind: str) -> Iterator[None]:
    """Let this process make its clients of a storage anew: they are made once, for the server that is there then."""
    if kind == "local":
        yield
        return
    module = import_module({"gs": "transforms.storage.gcs", "s3": "transforms.storage.s3"}[kind])  # boto3 is an extra
    module._make_client.cache_clear()
    yield
    module._make_client.cache_clear()


def fill(place: Storage, files: Mapping[str, bytes]) -> None:
    """Put what is to be embedded into a place."""
    for name, data in files.items():
        place.put(f"in/{name}", data)


def job(place: Storage, url: str, *options: object) -> list[object]:
    """The arguments of the job within a place."""
    where = ["--input", f"{place.root}/in/**", "--output", f"{place.root}/out", "--endpoint", url]
    return [*where, "--shard_bytes", 9000, "--max_dead_letter_ratio", 1, *options]


def embed(place: Storage, url: str, *options: object) -> str:
    """Do the job within a place, in this process, and return what it said."""
    return tayyar_here("run", *job(place, url, *options)).stdout


def verify(place: Storage, code: int = 0) -> str:
    """Prove the job's output, and return what was found."""
    return tayyar_here("verify", "--output", f"{place.root}/out", "--max_dead_letter_ratio", 1, code=code).stderr


def outputs(place: Storage) -> dict[str, bytes]:
    """Embedded documents and dead letters, by name; the dead letters' source without its place."""
    here = f'"source":"{place.root}/'.encode()
    return {
        name.removeprefix("out/"): data.replace(here, b'"source":"') if "/dead_letters/" in name else data
        for name, data in place.files().items()
        if name.startswith("out/") and not name.startswith("out/_job/")
    }


def expected(files: Mapping[str, bytes], folder: Path, url: str, *options: object) -> dict[str, bytes]:
    """Return what the job writes where it is simplest: in local files, by one process."""
    place = LocalStorage(folder / "-".join(("expected", *map(str, options))))
    fill(place, files)
    embed(place, url, *options)
    return outputs(place)


@contextlib.contextmanager
def gcs_server(log: Path, data: Path | None = None) -> Iterator[str]:
    """Run Google Cloud Storage's emulator, with the folders of a folder for buckets, and give its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    # In memory, each request takes far longer the more objects there are.
    on_disk = ["-backend", "filesystem", "-filesystem-root", f"{data}-served", "-data", str(data)]
    options += on_disk if data else ["-backend", "memory"]
    with serving([tool("fake-gcs-server"), *options], port, log):
        yield url


@contextlib.contextmanager
def s3_server(log: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run moto's S3 and give its URL."""
    import pytest  # here, because the benchmark uses this module in an environment without it

    pytest.importorskip("moto.server", reason="moto is not here; pip install '.[dev]'")
    port = free_port()
    with serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, log, environment):
        yield f"http://127.0.0.1:{port}"


def s3_options(variables: Mapping[str, str]) -> list[str]:
    """What variables say of an S3, as Beam's options."""
    names = {
        "AWS_ENDPOINT_URL_S3": "--s3_endpoint_url",
        "AWS_ACCESS_KEY_ID": "--s3_access_key_id",
        "AWS_SECRET_ACCESS_KEY": "--s3_secret_access_key",
        "AWS_REGION": "--s3_region_name",
    }
    return [word for name, option in names.items() for word in (option, variables[name])]


def without_cloud() -> dict[str, str]:
    """The environment of a person who has set up no cloud."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "GOOGLE_", "STORAGE_"))}
