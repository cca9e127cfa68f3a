from __future__ import annotations

import pytest

from pipeline.processors import usable_processors
from pipeline.runners.parallelism import count_processes
from pipeline.runners.runner import beam_options


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        ("", 1),
        ("--direct_num_workers 4", 1),  # threads of this process
        ("--direct_running_mode multi_processing --direct_num_workers 4", 4),
        ("--runner DirectRunner --direct_running_mode multi_processing --direct_num_workers 3", 3),
        ("--direct_running_mode multi_processing --direct_num_workers 0", usable_processors()),
        ("--runner PrismRunner", 1),
        ("--runner FlinkRunner --parallelism 8", 1),  # the workers are in this process
        ("--runner FlinkRunner --flink_master host:8081 --parallelism 8", 8),
        ("--runner flink --flink_master [local] --environment_type EXTERNAL --parallelism 2", 2),
        ("--runner FlinkRunner --flink_master host:8081 --environment_type loopback --parallelism 8", 1),
        ("--runner FlinkRunner --flink_master host:8081 --parallelism 8 --sdk_worker_parallelism 2", 16),
        ("--runner FlinkRunner --flink_master host:8081 --parallelism 8 --sdk_worker_parallelism 0", 8),
        ("--runner FlinkRunner --flink_master host:8081", 1),
        ("--runner DataflowRunner", 1),
        ("--runner DataflowRunner --num_workers 3", 3),
        ("--runner DataflowRunner --num_workers 3 --max_num_workers 10", 10),
        ("--runner DataflowRunner --max_num_workers 10 --number_of_worker_harness_threads 12", 10),
        ("--runner DataflowRunner --max_num_workers 10 --worker_machine_type n1-standard-4", 40),
        ("--runner DataflowRunner --max_num_workers 10 --machine_type c3d-standard-8-lssd", 80),
        ("--runner DataflowRunner --max_num_workers 10 --machine_type n2-custom-6-20480", 60),
        ("--runner DataflowRunner --max_num_workers 10 --machine_type custom-6-20480-ext", 60),
        ("--runner DataflowRunner --max_num_workers 10 --machine_type e2-medium", 20),
        ("--runner DataflowRunner --max_num_workers 10 --machine_type something", 10),
        (
            "--runner DataflowRunner --max_num_workers 10 --machine_type n1-standard-4 "
            "--experiments no_use_multiple_sdk_containers",
            10,
        ),
    ],
)
def test_the_options_of_a_runner_tell_how_many_processes_there_will_be(arguments: str, processes: int) -> None:
    assert count_processes(beam_options(arguments.split())) == processes
