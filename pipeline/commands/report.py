"""The command `report`: report.json, report.prom and report.html from the output folder; `run` ends with the same."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.commands.options.report import ReportOptions
from pipeline.errors import ExitCode
from pipeline.job.ledger import Ledger, read_job_ledger
from pipeline.job.spec import JobSpec, require_job
from pipeline.planning.estimate import read_estimate
from pipeline.reporting import prometheus
from pipeline.reporting.examples import examples_of
from pipeline.reporting.report import make_report, read_former_report, read_verified, summary, write_report
from pipeline.reporting.schema import LastRun, Report
from transforms.output.folder import JOB, OutputFolder

PAGE = f"{JOB}/report.html"


def report(options: ReportOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Make the report of a job again, finished or not.

    Args:
        options: which job, and at what price.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE; FAILED if shards are missing, so that a script does not take the report for that of a finished job.

    Raises:
        UsageError: if it is not an output folder.
    """
    output = OutputFolder(options.output, run="report")
    job = require_job(output)
    ledger = read_job_ledger(output, job)
    made = publish(ledger, job, output, options.price_per_hour, say)
    output.tidy()
    if ledger.doubt:
        say(ledger.doubt)
    for line in summary(made, None):
        say(line)
    return ExitCode.DONE if made.complete else ExitCode.FAILED


def publish(
    ledger: Ledger,
    job: JobSpec,
    output: OutputFolder,
    price_per_hour: float | None,
    say: Callable[[str], None] = print,
    run: LastRun | None = None,
    *,
    keep_page: bool = False,
) -> Report:
    """Write a job's report in all its forms, and return what report.json holds.

    Args:
        ledger: of the job.
        job: what shapes the vectors.
        output: the folder.
        price_per_hour: of the endpoint, in dollars; None for that of the former report, or else of the estimate.
        say: takes the lines for the person at the terminal.
        run: what the run did that ends with this report; None for that of the former report.
        keep_page: whether a page that cannot be made again, for lack of its packages, still shows the job as it is.
    """
    estimate = read_estimate(output)
    former = read_former_report(output)
    prices = (price_per_hour, former.price_per_hour, (estimate or {}).get("price_per_hour"))
    made = make_report(
        ledger,
        job,
        output.root,
        next((float(price) for price in prices if isinstance(price, (int, float))), None),
        examples=examples_of(ledger.receipts(), output, job.text_field),
        estimate=estimate,
        verified=read_verified(output, ledger),
        # A run that had nothing to do is not the one whose call and duration a reader looks for.
        last_run=former.last_run if former.last_run and not (run and run.work_seconds) else run,
        former_price=former.dollars_per_document,
    )
    write_report(made, output)
    output.write(prometheus.EXPOSITION, [prometheus.exposition(made)])
    try:
        from pipeline.reporting.page import render
    except ImportError:
        if not keep_page:
            output.delete([PAGE])  # it would show another run
        say(
            f"report: {output.path(output.report)}; for the same as a page, {sys.executable} -m pip install "
            f"'tayyar[report]', and then tayyar report --output {output.root}"
        )
        return made
    output.write(PAGE, [render(made).encode()])
    say(f"report: {output.path(PAGE)}")
    return made
