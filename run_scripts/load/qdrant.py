"""Load an output folder of tayyar run into Qdrant."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# Python puts this file's folder first, where other recipes have the names of packages; the checkout takes its place.
sys.path[0] = str(Path(__file__).parents[2])

import pyarrow as pa

from pipeline.errors import UsageError
from run_scripts.load.loading import NAMESPACE, DatabaseError, EmbeddedFolder, how_to_install, run, vectors_of

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException
except ImportError as missing:
    sys.exit(how_to_install(missing))

_MAX_SHARDS = 100_000  # of a collection: their counts are one reply


class QdrantCollection:
    """A collection of Qdrant. All columns but the vector are the points' payload."""

    def __init__(self, database: str, name: str, folder: EmbeddedFolder) -> None:
        folder.require_few(_MAX_SHARDS)
        is_server = "://" in database
        if is_server:
            # With the check, a server that is not there is reported twice: also in a warning about its version.
            key = os.environ.get("QDRANT_API_KEY")
            self._client = QdrantClient(database, api_key=key, check_compatibility=False)
        else:
            self._client = _open_folder(database)
        self._name = name
        # Of vectors of unit norm, both have the same order, and COSINE would normalize, and so change, each once more.
        distance = models.Distance.DOT if folder.job.normalize else models.Distance.COSINE
        if not self._client.collection_exists(name):
            size = folder.job.space.dimensions
            self._client.create_collection(name, models.VectorParams(size=size, distance=distance))
            if is_server:  # the client's own engine needs no index
                self._client.create_payload_index(name, "loaded_from", models.PayloadSchemaType.KEYWORD)

    def count_rows(self) -> dict[str, int]:
        """See `Table`."""
        # Of a shard that an interrupted load replaced, both versions are there.
        found = self._client.facet(self._name, "loaded_from", limit=2 * _MAX_SHARDS, exact=True)
        return {str(hit.value): hit.count for hit in found.hits}

    def replace(self, version: str, former: Collection[str], batches: Iterator[pa.RecordBatch]) -> None:
        """See `Table`. Points of this version that an interrupted load has written are written again: ids are equal."""
        for batch in batches:
            payload = batch.drop_columns(["embedding"]).to_pylist()
            ids = [_point_id(row["row_id"]) for row in payload]
            self._client.upload_collection(self._name, vectors_of(batch), payload, ids, batch_size=256, wait=True)
        self.delete(former)

    def delete(self, versions: Collection[str]) -> None:
        """See `Table`."""
        if versions:
            loaded_from = models.FieldCondition(key="loaded_from", match=models.MatchAny(any=list(versions)))
            self._client.delete(self._name, models.Filter(must=[loaded_from]), wait=True)

    def close(self) -> None:
        """See `Table`."""
        self._client.close()


def _open_folder(path: str) -> QdrantClient:
    """Return a client of the engine inside this package, which has its data in a folder.

    Raises:
        UsageError: if a new folder would have the name of a server: all rows would go there, and none to the server.
        DatabaseError: if another process has it open.
    """
    if re.fullmatch(r"[^/]+:\d+(/.*)?", path) and not Path(path).is_dir():
        raise UsageError(
            f"--database {path} is no existing folder. For a server, write http://{path}; for a new folder of this "
            f"name, ./{path}."
        )
    try:
        return QdrantClient(path=path)
    except RuntimeError as error:
        raise DatabaseError(str(error)) from error


def _point_id(row_id: str) -> str:
    """Return a UUID, as points need: the id itself if it is one as UUIDs are written, else one that follows from it."""
    try:
        if str(uuid.UUID(row_id)) == row_id:
            return row_id
    except ValueError:
        pass
    return str(uuid.uuid5(NAMESPACE, row_id))


def main(arguments: Sequence[str] | None = None) -> int:
    """Load."""
    return run(
        __doc__,
        "http://HOST:6333, with a key in QDRANT_API_KEY if it needs one; or a folder, for a few thousand documents",
        QdrantCollection,
        arguments,
        failures=(ApiException,),
    )


if __name__ == "__main__":
    sys.exit(main())
