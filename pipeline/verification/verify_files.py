"""What `verify` does with a folder that another tool wrote: which files are of which inputs, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from pipeline.commands.options import VerifyOptions
from pipeline.errors import UsageError
from pipeline.job.input_selection import ENDINGS
from pipeline.job.sharding import make_plan, stem
from pipeline.verification.file_check import FileOutcome, FileWork, check_file
from pipeline.verification.findings import Checked, Findings, Sample
from pipeline.verification.parallel import processes_for, spread
from pipeline.verification.vectors import Fields
from transforms.ndjson.decompress import is_compressed
from transforms.output.folder import JOB, OutputFolder
from transforms.storage import api as storage
from transforms.storage.base import FileStat

_RANGE_BYTES = 16 << 20  # of a file: one work item
_AT_ONCE_IN_BUCKETS = 4  # work items of a process: one waits while the other is parsed


def ndjson_files(output: OutputFolder) -> dict[str, FileStat]:
    """Return the files to verify in a folder without a job, by name.

    Raises:
        UsageError: if there is none, or if a part of a job is there: then it is Tayyar's, and damaged.
    """
    files = output.list()
    found = {name: file for name, file in files.items() if name.endswith(ENDINGS)}
    if not found or any(JOB in name.split("/") for name in files):
        raise UsageError(
            f"{output.root} is no output folder of Tayyar: it has no {output.job}"
            f"{'' if found else ', and no NDJSON files of another tool either'}. Check --output."
        )
    return found


def check_files(files: Mapping[str, FileStat], options: VerifyOptions, fields: Fields) -> Checked:
    """Check every line of a folder's files, and hold it against its input's where inputs are named.

    Args:
        files: by name.
        options: which inputs, and how many lines to pick.
        fields: where the lines have their texts and vectors.

    Raises:
        UsageError: if the inputs cannot be used.
    """
    findings, sample = Findings(), Sample(options.sample)
    sources = _sources_of(files, options, findings)
    items = [
        FileWork(path, start, end, size, source, fields.text, fields.embedding, options.sample, options.seed)
        for path, start, end, size, source in _ranges(files, sources)
    ]
    size = sum(file.size for file in files.values())
    at_once = at_once_for([options.output, *options.inputs])
    outcomes = spread(check_file, items, processes_for(options.processes, size), at_once, size, "B")
    dimensions = _dimensions(outcomes)
    for item, outcome in zip(items, outcomes, strict=True):
        findings.extend(outcome.findings)
        _note_other_sizes(item.path, outcome, dimensions, findings)
        sample.add(outcome.picks)
    lines = sum(outcome.lines for outcome in outcomes)
    if not lines and not options.inputs:
        findings.add(f"{options.output}: there is no line in its {len(files)} files, so nothing is proven")
    return Checked(_proof(lines, len(files), dimensions, bool(options.inputs)), sample, findings)


def _sources_of(files: Mapping[str, FileStat], options: VerifyOptions, findings: Findings) -> dict[str, str]:
    """Return for each file the input of the same name; those that have no partner are findings."""
    if not options.inputs:
        return {}
    named = {source.name: source.path for source in make_plan(options.inputs, options.output, _RANGE_BYTES).sources}
    names: dict[str, str] = {}
    for name in sorted(files):
        first = names.setdefault(stem(name), name)
        if first != name:
            findings.add(
                f"{files[name].path}: {files[first].path} has the same name but for the ending, "
                "and one input makes one of them: remove the other"
            )
    for name in sorted(named.keys() - names.keys()):
        findings.add(f"{named[name]}: no file of this name is in {options.output}")
    for name in sorted(names.keys() - named.keys()):
        findings.add(f"{files[names[name]].path}: no --input has this name")
    return {names[name]: path for name, path in named.items() if name in names}


def _ranges(
    files: Mapping[str, FileStat], sources: dict[str, str]
) -> Iterator[tuple[str, int, int | None, int, str | None]]:
    """Yield path, beginning, end, size and source of each work item."""
    for name in sorted(files):
        file = files[name]
        if name in sources or is_compressed(name):
            yield file.path, 0, None, file.size, sources.get(name)
            continue
        for start in range(0, file.size, _RANGE_BYTES):
            end = min(start + _RANGE_BYTES, file.size)
            yield file.path, start, end, end - start, None


def _dimensions(outcomes: list[FileOutcome]) -> int:
    """Return the size that most vectors have, of those that have any numbers; 0 if there are none."""
    sizes: Counter[int] = Counter()
    for outcome in outcomes:
        sizes.update({size: count for size, (count, _) in outcome.sizes.items() if size})
    return max(sizes, key=lambda size: (sizes[size], size), default=0)


def _note_other_sizes(path: str, outcome: FileOutcome, dimensions: int, findings: Findings) -> None:
    for size, (count, first) in sorted(outcome.sizes.items(), key=lambda pair: pair[1][1]):
        if size != dimensions or not size:
            most = f"; most have {dimensions}" if dimensions else ""
            more = f", and those of {count - 1} lines behind it have as many" if count > 1 else ""
            findings.add(f"{path}, byte {first}: the vector has {size} numbers{most}{more}")


def _proof(lines: int, files: int, dimensions: int, compared: bool) -> str:
    if compared:
        return (
            f"verified: {lines} lines in {files} files, each the line of its input with a vector of {dimensions} "
            "finite numbers, and none missing"
        )
    return (
        f"checked: {lines} lines in {files} files, each with a text and a vector of {dimensions} finite numbers. "
        "Whether lines are missing or changed is not known: name the inputs with --input"
    )


def at_once_for(paths: Iterable[str]) -> int:
    """Return how many work items with files in these places a process should work on at once."""
    return 1 if all(storage.is_local(path) for path in paths) else _AT_ONCE_IN_BUCKETS
