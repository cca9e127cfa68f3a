"""The work at the graph's beginning: in the job's description, or in files where there is too much of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import apache_beam as beam
import orjson

from transforms.elements import Shard, Source
from transforms.output.folder import JOB, OutputFolder
from transforms.output.json_fields import build_dataclass
from transforms.storage.base import StorageError

FOLDER = f"{JOB}/work"
# Dataflow refuses a job whose description is larger than 10 MB. A shard takes about as many bytes of it as its line in
# a list takes, and base64 and JSON around them half as many again; all else takes well under 1 MB.
MAX_DESCRIBED_BYTES = 4_000_000
_SHARDS_A_LIST = 5_000  # about 1 MB


@dataclass
class ListShards(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """Give the shards to do.

    Attributes:
        work: the shards; in the job's description where `lists` is empty.
        output: the folder that holds the lists.
        lists: names of the files that hold the work, as `write_lists` returns them.
    """

    work: Sequence[Shard]
    output: OutputFolder
    lists: Sequence[str] = ()

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Begin with the shards themselves, or with the names of their lists."""
        if not self.lists:
            return root | "ShardsToDo" >> beam.Create(self.work, reshuffle=False)
        names = root | "Lists" >> beam.Create(self.lists, reshuffle=False) | "SpreadLists" >> beam.Reshuffle()
        return names | "ReadLists" >> beam.FlatMap(functools.partial(read_list, self.output)).with_output_types(Shard)


def write_lists(work: Sequence[Shard], output: OutputFolder, max_bytes: int = MAX_DESCRIBED_BYTES) -> list[str]:
    """Write the work into files of the output folder if a job's description could not hold it.

    Args:
        work: the shards to do.
        output: the folder.
        max_bytes: of the lines that hold the shards, up to which nothing is written.

    Returns:
        the names of the files; none where the work is small enough.
    """
    lines = [orjson.dumps(asdict(shard), option=orjson.OPT_APPEND_NEWLINE) for shard in work]
    if sum(map(len, lines)) <= max_bytes:
        return []
    names = []
    for number, start in enumerate(range(0, len(lines), _SHARDS_A_LIST)):
        names.append(f"{FOLDER}/{output.run}-{number:05d}.ndjson")
        output.write(names[-1], itertools.islice(lines, start, start + _SHARDS_A_LIST))
    return names


def read_list(output: OutputFolder, name: str) -> Iterator[Shard]:
    """Yield the shards of one list.

    Raises:
        StorageError: if it is gone or damaged.
    """
    data = output.read(name)
    try:
        if data is None:
            raise ValueError("it does not exist")
        for line in data.splitlines():
            fields = orjson.loads(line)
            yield build_dataclass(Shard, {**fields, "source": build_dataclass(Source, fields["source"])})
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{output.path(name)}, which lists shards to do, cannot be read: {error}. Run the job again."
        ) from error
