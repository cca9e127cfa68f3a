"""How many processes will share the endpoint, as far as a runner's options show."""

from __future__ import annotations

import re

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.processors import usable_processors

_ONE_PROCESS_A_WORKER = "no_use_multiple_sdk_containers"
_LOOPBACK = "LOOPBACK"  # the work is done in the launcher


def count_processes(options: PipelineOptions) -> int:
    """Return the most worker processes that the options allow; 1 where they do not show.

    Threads do not count: those of one process share one client.
    """
    runner: str = options.view_as(StandardOptions).runner.lower().removesuffix("runner")
    if runner == "dataflow":
        return _on_dataflow(options)
    if runner in ("flink", "portable", "spark"):
        return _on_flink(options)
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode == "multi_processing":
        return int(direct.direct_num_workers) or usable_processors()
    return 1


def _on_flink(options: PipelineOptions) -> int:
    """Return the processes of all slots: each may be on a machine of its own, whose processes serve all its slots."""
    flink, portable = options.view_as(FlinkRunnerOptions), options.view_as(PortableOptions)
    local = flink.flink_master in ("[local]", "[auto]")
    if (portable.environment_type or (_LOOPBACK if local else "")).upper() == _LOOPBACK:
        return 1
    return max(1, int(flink.parallelism)) * max(1, int(portable.sdk_worker_parallelism))


def _on_dataflow(options: PipelineOptions) -> int:
    """Return the processors of all workers: Dataflow starts a process on each."""
    workers = options.view_as(WorkerOptions)
    machines = workers.max_num_workers or workers.num_workers or 1
    if _ONE_PROCESS_A_WORKER in (options.view_as(DebugOptions).experiments or ()):
        return int(machines)
    return int(machines) * _processors(workers.machine_type or "")


def _processors(machine_type: str) -> int:
    """Return how many a type of machine has by its name: n1-standard-4, e2-custom-8-16384; 1 if it does not say.

    The shared-core types (e2-micro to e2-medium) have two.
    """
    if re.fullmatch(r"e2-(micro|small|medium)", machine_type):
        return 2
    found = re.search(r"-(?:custom-)?(\d+)(?:-\d+(?:-ext)?|-lssd)?$", machine_type)
    return int(found[1]) if found else 1
