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

from pipeline.commands.console import say
from run_scripts.load.loading import EmbeddedFolder, run, vectors_of

_TYPES = {pa.int64(): "long", pa.float64(): "double", pa.bool_(): "boolean"}
_MAX_SHARDS = 65_536  # of an index: Elasticsearch takes no more terms in a query, and no larger count of them


class BulkFiles:
    """The files that bring an index to the state of a folder.

    mapping.json creates it, bulk.ndjson goes to `_bulk` in parts, stale.json to `_delete_by_query` when all of that is
    done. The bulk file has only what is new or changed if loaded.json has what Elasticsearch answered to count.json.
    That file is used once: an index may have been deleted since. stale.json exists only beside a complete bulk file:
    it deletes every row that is not of the folder's present state, of which that file may have brought nothing.
    """

    def __init__(self, database: str, name: str, folder: EmbeddedFolder) -> None:
        folder.require_few(_MAX_SHARDS)
        self._root = Path(database)
        self._index = name
        self._root.mkdir(parents=True, exist_ok=True)
        self._stale = self._root / "stale.json"
        self._stale.unlink(missing_ok=True)
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
        self._current = {file.version: file.rows for file in folder.files}
        self._rows = self._take_counts()

    def _write(self, name: str, content: object) -> None:
        (self._root / name).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def _take_counts(self) -> dict[str, int]:
        path = self._root / "loaded.json"
        if not path.exists():
            return {}
        answer = path.read_bytes()
        path.unlink()
        try:
            buckets = orjson.loads(answer)["aggregations"]["versions"]["buckets"]
            return {str(bucket["key"]): int(bucket["doc_count"]) for bucket in buckets}
        except (ValueError, KeyError, TypeError):  # empty if no server answered; else the server's error
            say(f"{path} is ignored, since it is not the answer to count.json: every row is written", sys.stderr)
            return {}

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
        """See `Table`. It is the query in stale.json that deletes them."""
        for version in versions:
            del self._rows[version]

    def close(self) -> None:
        """Write stale.json, unless the load has failed: then the index will not have every row."""
        if self._rows == self._current:
            current = {"terms": {"loaded_from": list(self._current)}}
            any_version = {"exists": {"field": "loaded_from"}}
            self._write(self._stale.name, {"query": {"bool": {"filter": any_version, "must_not": current}}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Load."""
    return run(__doc__, "a folder for the files", BulkFiles, arguments)


if __name__ == "__main__":
    sys.exit(main())
