"""Write an output folder of tayyar run as a bulk file for Elasticsearch, with a mapping and a query that cleans up."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

# Python puts this file's folder first, where this file has the name of a package; the checkout takes its place.
sys.path[0] = str(Path(__file__).parents[2])

import orjson
import pyarrow as pa

from run_scripts.load.loading import EmbeddedFolder, run, vectors_of

_TYPES = {pa.int64(): "long", pa.float64(): "double", pa.bool_(): "boolean"}
_MAX_SHARDS = 65_536  # of an index: Elasticsearch takes no more terms in a query, and no larger count of them


class BulkFiles:
    """The files that bring an index to the state of a folder.

    mapping.json creates it, bulk.ndjson goes to `_bulk` in parts, stale.json to `_delete_by_query` when all of that is
    done. The bulk file has only what is new or changed if loaded.json has what Elasticsearch answered to count.json.
    That file is used once: an index may have been deleted since.
    """

    def __init__(self, database: str, name: str, folder: EmbeddedFolder) -> None:
        folder.require_few(_MAX_SHARDS)
        self._root = Path(database)
        self._index = name
        self._root.mkdir(parents=True, exist_ok=True)
        self._bulk = self._root / "bulk.ndjson"
        self._bulk.write_bytes(b"")
        properties: dict[str, Any] = {
            field.name: {"type": _TYPES.get(field.type, "keyword")} for field in folder.schema
        }
        properties["text"] = {"type": "text"}
        properties["record"] = {"type": "keyword", "index": False, "doc_values": False}
        dimensions = folder.job.space.dimensions
        properties["embedding"] = {"type": "dense_vector", "dims": dimensions, "similarity": "cosine"}
        self._write("mapping.json", {"mappings": {"properties": properties}})
        versions = {"terms": {"field": "loaded_from", "size": _MAX_SHARDS}}
        self._write("count.json", {"size": 0, "aggs": {"versions": versions}})
        current = {"terms": {"loaded_from": [file.version for file in folder.files]}}
        any_version = {"exists": {"field": "loaded_from"}}
        self._write("stale.json", {"query": {"bool": {"filter": any_version, "must_not": current}}})
        self._rows = self._take_counts()

    def _write(self, name: str, content: object) -> None:
        (self._root / name).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def _take_counts(self) -> dict[str, int]:
        path = self._root / "loaded.json"
        if not path.exists():
            return {}
        buckets = orjson.loads(path.read_bytes())["aggregations"]["versions"]["buckets"]
        path.unlink()
        return {bucket["key"]: bucket["doc_count"] for bucket in buckets}

    def count_rows(self) -> dict[str, int]:
        """See `Table`."""
        return self._rows

    def replace(self, version: str, former: Collection[str], batches: Iterator[pa.RecordBatch]) -> None:
        """See `Table`."""
        self._rows[version] = 0
        with self._bulk.open("ab") as file:
            for batch in batches:
                rows = batch.drop_columns(["embedding"]).to_pylist()
                for row, vector in zip(rows, vectors_of(batch), strict=True):
                    action = {"index": {"_index": self._index, "_id": row["row_id"]}}
                    file.write(orjson.dumps(action) + b"\n")
                    # The shortest decimals that give back the same float32.
                    file.write(orjson.dumps(row | {"embedding": vector}, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
                self._rows[version] += len(batch)
        self.delete(former)

    def delete(self, versions: Collection[str]) -> None:
        """See `Table`. The query in stale.json deletes all that is not of the folder's present state."""
        for version in versions:
            del self._rows[version]

    def close(self) -> None:
        """See `Table`. Nothing is open."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Load."""
    return run(__doc__, "a folder for the files", BulkFiles, arguments)


if __name__ == "__main__":
    sys.exit(main())
