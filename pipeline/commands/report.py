"""The command `report`: report.json, report.prom and report.html from the output folder; `run` ends with the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import orjson

from pipeline.commands.options import ReportOptions
from pipeline.errors import ExitCode
from pipeline.job.ledger import Ledger, read_ledger
from pipeline.job.sharding import read_plan
from pipeline.job.spec import Job, require_job
from pipeline.planning.estimate import read_estimate
from pipeline.reporting import prometheus
from pipeline.reporting.examples import examples_of
from pipeline.reporting.report import counts, make_report, write_report
from transforms.output.folder import JOB, OutputFolder

PAGE = f"{JOB}/report.html"


def report(options: ReportOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Make the report of a job again, finished or not.

    Args:
        options: which job, and at what price.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        UsageError: if it is no output folder.
    """
    output = OutputFolder(options.output, run="report")
    job = require_job(output)
    ledger = read_ledger(read_plan(output, job.shard_bytes), output, job.digest, output.list())
    price = former_price(output) if options.price_per_hour is None else options.price_per_hour
    made = publish(ledger, job, output, price, say)
    output.tidy()
    for line in counts(ledger, made):
        say(line)
    return ExitCode.DONE


def publish(
    ledger: Ledger, job: Job, output: OutputFolder, price_per_hour: float | None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write a job's report in all its forms, and return what report.json holds.

    Args:
        ledger: of the job.
        job: what the vectors are.
        output: the folder.
        price_per_hour: of the endpoint, in dollars; None if nobody asks.
        say: takes the lines for the person at the terminal.
    """
    examples = examples_of(ledger.receipts(), output, job.text_field)
    made = make_report(ledger, job, price_per_hour, examples, read_estimate(output))
    write_report(made, output)
    output.write(prometheus.NAME, [prometheus.exposition(made).encode()])
    try:
        from pipeline.reporting.page import render
    except ImportError:
        output.delete([PAGE])  # it would tell of another run
        say(
            f"report: {output.path(output.report)}; for the same as a page, in Tayyar's folder: "
            f"{sys.executable} -m pip install '.[report]', and then tayyar report --output {output.root}"
        )
        return made
    output.write(PAGE, [render(made).encode()])
    say(f"report: {output.path(PAGE)}")
    return made


def former_price(output: OutputFolder) -> float | None:
    """Return the price that the last report was made at, so that it need not be told again."""
    try:
        former = orjson.loads(output.read(output.report) or b"{}")
        price = former.get("price_per_hour")
    except (ValueError, AttributeError):
        return None
    return float(price) if isinstance(price, (int, float)) else None
