"""The benchmark: `python -m tests.benchmark COMMAND`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmark import compare, corpus, load, memory, saturation, scale, startup, table, workers
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import CONTESTANTS

_LATENCY = 0.05  # seconds
_ENDPOINTS = {
    "instant": (0.0, 512, "an endpoint that answers at once"),
    "latency": (_LATENCY, compare.UNLIMITED, f"an endpoint that answers after {_LATENCY * 1000:.0f} ms, to any number"),
}


def _compare(options: argparse.Namespace) -> None:
    for name in options.endpoint or _ENDPOINTS:
        latency, permits, what = _ENDPOINTS[name]
        with Endpoint(options.server_processes, latency, permits) as endpoint:
            rows = compare.compare(options.work, options.documents, options.rounds, endpoint, options.only)
        table.publish(options.results, name, rows, compare.notes(options.documents, options.rounds, what, options.only))
        bars = {str(row["contestant"]): float(row["µs/document after start-up"] or 0) for row in rows}
        table.draw(options.results / f"{name}.svg", f"CPU a document after start-up: {what}", bars, "µs")


def _reuse(options: argparse.Namespace) -> None:
    rows = compare.compare_reuse(options.work, options.documents, options.rounds)
    table.publish(options.results, "reuse", rows, compare.REUSE_NOTES)


def _saturation(options: argparse.Namespace) -> None:
    rows = saturation.saturate(options.work, options.documents, options.tokens_per_second)
    table.publish(options.results, "saturation", rows, saturation.notes(options.tokens_per_second))


def _model(options: argparse.Namespace) -> None:
    table.publish(
        options.results, "model", saturation.saturate_model(options.work, options.documents), saturation.MODEL_NOTES
    )


def _memory(options: argparse.Namespace) -> None:
    rows = memory.remember(options.work, options.sizes, options.forms, options.formats)
    table.publish(options.results, "memory", rows, memory.NOTES)


def _startup(options: argparse.Namespace) -> None:
    table.publish(options.results, "startup", startup.start(options.work, options.rounds), startup.NOTES)


def _workers(options: argparse.Namespace) -> None:
    table.publish(options.results, "workers", workers.compare_workers(options.work, options.documents), workers.NOTES)


def _receipts(options: argparse.Namespace) -> None:
    from tests.benchmark import receipts  # here, because its storage emulators come with the extra [dev] alone

    rows = receipts.read_receipts(options.work, options.receipts, options.latency)
    table.publish(options.results, "receipts", rows, receipts.notes(options.latency))


def _write(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    rows = load.write(options.work, options.documents, options.rounds, options.input)
    table.publish(options.results, "write", rows, load.write_notes(options.input))


def _load(options: argparse.Namespace) -> None:
    rows = load.load(options.work, options.documents, options.formats, options.recipes)
    table.publish(options.results, "load", rows, load.notes(options.documents))


def _scale(options: argparse.Namespace) -> None:
    rows = scale.embed_all(options.work, options.documents, options.keep)
    table.publish(options.results, "scale", rows, scale.notes(options.documents))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.benchmark", description=__doc__, allow_abbrev=False)
    parser.add_argument("--work", type=Path, default=Path("build/benchmark"), help="where corpora and outputs go")
    parser.add_argument("--results", type=Path, default=Path("build/benchmark/results"), help="where the tables go")
    commands = parser.add_subparsers(required=True)

    one = commands.add_parser("compare", help="all contestants: CPU, time, memory")
    one.add_argument("--documents", type=int, default=20_000)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--endpoint", nargs="*", choices=_ENDPOINTS, help="default: all of them")
    one.add_argument("--server_processes", type=int, default=1, help="of the endpoint")
    one.add_argument("--only", nargs="*", default=[], choices=[each.name for each in CONTESTANTS])
    one.set_defaults(run=_compare)

    one = commands.add_parser("saturation", help="share of a device's capacity")
    one.add_argument("--documents", type=int, default=15_000)
    one.add_argument("--tokens_per_second", type=float, default=100_000)
    one.set_defaults(run=_saturation)

    one = commands.add_parser("model", help="share of what a bare load generator gets out of the embedded model")
    one.add_argument("--documents", type=int, default=160)
    one.set_defaults(run=_model)

    _add_parts(commands)
    return parser


def _add_parts(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add what measures one part of Tayyar, or one job of its own."""
    one = commands.add_parser("memory", help="peak memory for few and many documents")
    one.add_argument("--sizes", type=int, nargs="*", default=[50_000, 500_000])
    one.add_argument("--forms", nargs="*", choices=memory.FORMS, default=list(memory.FORMS))
    one.add_argument("--formats", nargs="*", choices=load.FORMATS, default=list(load.FORMATS), help="of the output")
    one.set_defaults(run=_memory)

    one = commands.add_parser("startup", help="from the command to its first request")
    one.add_argument("--rounds", type=int, default=5)
    one.set_defaults(run=_startup)

    one = commands.add_parser("reuse", help="what reuse adds to documents that all have to be sent")
    one.add_argument("--documents", type=int, default=12_000, help="of 1.2 kB, as many as a shard of 16 MiB has")
    one.add_argument("--rounds", type=int, default=15)
    one.set_defaults(run=_reuse)

    one = commands.add_parser("workers", help="two worker processes against one")
    one.add_argument("--documents", type=int, default=100_000)
    one.set_defaults(run=_workers)

    one = commands.add_parser("receipts", help="what is done already, read from a bucket: in parallel, and one by one")
    one.add_argument("--receipts", type=int, default=2000, help="the emulator is slower with more")
    one.add_argument("--latency", type=float, default=0.06, help="seconds to the bucket and back")
    one.set_defaults(run=_receipts)

    one = commands.add_parser("write", help="a shard as NDJSON and as Parquet: CPU and size")
    one.add_argument("--documents", type=int, default=8192)
    one.add_argument("--rounds", type=int, default=15)
    one.add_argument("--input", type=Path, help="an NDJSON file whose documents to take (default: made up)")
    one.set_defaults(run=_write)

    one = commands.add_parser("load", help="the recipes of run_scripts/load, from NDJSON and from Parquet")
    one.add_argument("--documents", type=int, default=20_000)
    one.add_argument("--formats", nargs="*", choices=load.FORMATS, default=list(load.FORMATS))
    one.add_argument("--recipes", nargs="*", choices=load.RECIPES, default=list(load.RECIPES))
    one.set_defaults(run=_load)

    one = commands.add_parser(
        "scale", help="the tutorial's whole corpus, killed and resumed, also after an edit: 30 GB of disk"
    )
    one.add_argument("--documents", type=int, default=corpus.TUTORIAL_DOCUMENTS)
    one.add_argument("--keep", action="store_true", help="leave corpus and output where they are")
    one.set_defaults(run=_scale)


def main() -> None:
    options = _parser().parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
