from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, SetupOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.testing.util import assert_that, equal_to

from pipeline.errors import ExitCode, PipelineFailed, UsageError
from pipeline.runners.runner import beam_options, make_runner, meaning_of, require_reach, run_pipeline
from transforms.early_stop import TooManyDeadLetters
from transforms.read_shards import SourceChanged
from transforms.tei import errors

ENDPOINT_ERRORS = [
    errors.EndpointError,
    errors.EndpointRefused,
    errors.EndpointUnreachable,
    errors.ModelChanged,
    errors.NotTei,
    errors.PairingBroken,
    errors.VectorsDoubtful,
]


def test_without_options_beams_in_process_runner_is_taken() -> None:
    options = beam_options([])
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert isinstance(make_runner(options), fn_runner.FnApiRunner)


@pytest.mark.parametrize("name", ["DirectRunner", "DataflowRunner", "BundleBasedDirectRunner"])
def test_another_runner_is_taken_by_its_name(name: str) -> None:
    assert make_runner(beam_options([f"--runner={name}"])) == name


@pytest.mark.parametrize("name", ["FnApiRunner", "fnapirunner", "fnapi"])
def test_the_in_process_runner_has_several_names(name: str) -> None:
    assert isinstance(make_runner(beam_options(["--runner", name])), fn_runner.FnApiRunner)


def test_beams_options_are_passed_on() -> None:
    options = beam_options(["--direct_running_mode=multi_processing", "--direct_num_workers", "3"])
    assert options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    assert options.view_as(DirectOptions).direct_num_workers == 3


@pytest.mark.parametrize(
    "form", [["--direct_running_mode=multi_threading"], ["--direct_running_mode", "multi_threading"]]
)
@pytest.mark.parametrize("runner", [[], ["--runner=DirectRunner"]])
def test_the_mode_that_loses_data_is_refused(form: list[str], runner: list[str]) -> None:
    with pytest.raises(UsageError, match=r"multi_threading is refused: .* loses elements .* Use multi_processing"):
        beam_options([*runner, *form])


@pytest.mark.parametrize("arguments", [["--no_such_option"], ["--direct_num=2"], ["--text_feild=a"], ["stray"]])
@pytest.mark.parametrize("runner", [[], ["--runner=DirectRunner"], ["--runner=DataflowRunner"]])
def test_an_option_that_nobody_knows_is_refused(arguments: list[str], runner: list[str]) -> None:
    with pytest.raises(UsageError, match=f"unknown option {arguments[0].partition('=')[0]}: neither"):
        beam_options([*runner, *arguments])


def test_a_secret_behind_a_misspelt_option_is_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        beam_options(["--tokn=hf_secret"])
    assert "hf_secret" not in str(refused.value)


def test_a_job_server_is_asked_for_the_options_that_it_knows() -> None:
    beam_options(["--runner=FlinkRunner", "--flink_master=localhost:8081", "--parallelism=2", "--only_flink_knows=1"])


def test_the_main_session_is_never_pickled() -> None:
    assert beam_options(["--save_main_session"]).view_as(SetupOptions).save_main_session is False


def reach(
    inputs: tuple[str, ...] = ("gs://b/in/*",), output: str = "gs://b/out", urls: tuple[str, ...] = ("http://tei",)
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    return inputs, output, urls


def test_options_that_beams_validator_refuses_are_wrong_usage() -> None:
    options = beam_options(["--environment_type=PROCESS"])
    with pytest.raises(UsageError, match="Beam refuses these options: "):
        run_pipeline(options, lambda _: None, print)


def test_dataflow_is_given_what_it_can_reach() -> None:
    require_reach(beam_options(["--runner=DataflowRunner"]), *reach())
    image = beam_options(["--runner=DataflowRunner", "--sdk_container_image=with_boto3"])
    require_reach(image, *reach(output="s3://b/out"))
    for runner in ("FnApiRunner", "FlinkRunner"):
        require_reach(beam_options([f"--runner={runner}"]), *reach(inputs=("/here",), output="/here"))


@pytest.mark.parametrize("runner", ["DataflowRunner", "dataflow"])
@pytest.mark.parametrize(
    ("different", "message"),
    [
        (
            {"inputs": ("gs://b/in", "/here/*")},
            "--input /here/* is on this machine, which Dataflow's workers cannot see",
        ),
        ({"output": "/here"}, "--output /here is on this machine"),
        ({"output": "s3://b/out"}, "--output s3://b/out cannot be read by Dataflow's workers"),
        ({"urls": ()}, "Give the address of a server"),
    ],
)
def test_what_dataflow_cannot_reach_is_refused(runner: str, different: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        require_reach(beam_options([f"--runner={runner}"]), *reach(**different))


def test_a_pipeline_runs_on_what_is_made() -> None:
    options = beam_options([])
    with beam.Pipeline(make_runner(options), options=options) as pipeline:
        assert_that(pipeline | beam.Create([1, 2]), equal_to([1, 2]))


def test_worker_processes_get_the_options_and_find_the_packages(tmp_path: Path) -> None:
    program = (
        "import apache_beam as beam, os\n"
        "from pipeline.runners.runner import beam_options, make_runner\n"
        "def told(_):\n"
        "    import transforms.elements\n"
        "    from apache_beam.io.filesystems import FileSystems\n"
        "    options = FileSystems._pipeline_options\n"
        "    with open(f'told-{os.getpid()}', 'w') as file:\n"
        "        file.write(str((options.get_all_options() if options else {}).get('s3_region_name')))\n"
        "options = beam_options(['--direct_running_mode=multi_processing', '--direct_num_workers=1',\n"
        "    '--s3_region_name=nowhere'])\n"
        "with beam.Pipeline(make_runner(options), options=options) as pipeline:\n"
        "    _ = pipeline | beam.Create([1]) | beam.Map(told) | beam.Reshuffle()\n"
        "print(os.getpid())\n"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    setup = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
    finished = subprocess.run(
        [sys.executable, "-c", setup + program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (told,) = tmp_path.glob("told-*")
    assert told.name != f"told-{finished.stdout.strip()}"
    assert told.read_text() == "nowhere"


@pytest.mark.parametrize("found", [None, "/a", f"/a{os.pathsep}/b"])
def test_worker_processes_look_for_the_packages_where_they_are(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    monkeypatch.setenv("PYTHONPATH", found or "")
    for _ in range(2):
        make_runner(beam_options([]))
    here = str(Path(__file__).parents[3])
    assert os.environ["PYTHONPATH"] == (here if found is None else f"{here}{os.pathsep}{found}")


@pytest.mark.parametrize("kind", ENDPOINT_ERRORS)
def test_an_endpoints_error_is_found_behind_what_a_runner_makes_of_it(kind: type[errors.EndpointError]) -> None:
    original = kind("mend this [while running 'EmbedShards/ParDo(_EmbedShard)']")
    wrapped = RuntimeError("a runner's own words")
    wrapped.__cause__ = ValueError("in between")
    wrapped.__cause__.__context__ = original
    for error in (original, wrapped):
        found = meaning_of(error)
        assert (type(found), str(found)) == (kind, "mend this")


@pytest.mark.parametrize("kind", ENDPOINT_ERRORS)
def test_an_endpoints_error_is_found_in_a_workers_traceback(kind: type[errors.EndpointError]) -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "x.py", line 1, in <module>\n'
        f"transforms.tei.errors.{kind.__name__}: mend this\n\nDuring handling of the above exception:\n"
        f"transforms.tei.errors.{kind.__name__}: mend this [while running 'EmbedShards/ParDo'] [while running 'b']\n"
    )
    meaning = meaning_of(RuntimeError(text))
    assert type(meaning) is kind
    assert str(meaning) == "mend this"


def test_what_is_wrong_with_a_source_is_said_in_its_own_words() -> None:
    wrapped = RuntimeError("a runner's own words")
    wrapped.__cause__ = SourceChanged("/in/a.ndjson changed")
    meaning = meaning_of(wrapped)
    assert isinstance(meaning, PipelineFailed)
    assert str(meaning) == "/in/a.ndjson changed"


def test_too_many_dead_letters_have_an_exit_code_of_their_own() -> None:
    for error in (TooManyDeadLetters("7 of 9"), RuntimeError("Traceback\ntransforms.embed.TooManyDeadLetters: 7 of 9")):
        meaning = meaning_of(error)
        assert isinstance(meaning, PipelineFailed)
        assert (str(meaning), meaning.code) == ("7 of 9", ExitCode.TOO_MANY_DEAD_LETTERS)


def test_what_only_looks_like_an_error_of_ours_is_none() -> None:
    meaning = meaning_of(RuntimeError("Traceback\ntransforms.records.Nonsense: no"))
    assert isinstance(meaning, PipelineFailed)
    assert meaning.code is ExitCode.FAILED


def test_an_interruption_stays_one() -> None:
    interruption = KeyboardInterrupt()
    wrapped = RuntimeError("x")
    wrapped.__cause__ = interruption
    assert meaning_of(wrapped) is interruption


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no room left", "no room left"),
        ("", "RuntimeError"),
        ("no room left [while running 'WriteEmbedded/ParDo']", "no room left"),
        ("Traceback (most recent call last):\n  File x\nbuiltins.OSError: no room left\n", "OSError: no room left"),
        (
            "Traceback (most recent call last):\na.b.Bad: worse [while running 'x'] [while running 'y']\n\n",
            "Bad: worse",
        ),
    ],
)
def test_any_other_failure_is_its_last_line(text: str, line: str) -> None:
    meaning = meaning_of(RuntimeError(text))
    assert isinstance(meaning, PipelineFailed)
    assert str(meaning) == f"{line} (the traceback is above)"


@pytest.mark.parametrize("kind", [*ENDPOINT_ERRORS, SourceChanged, TooManyDeadLetters])
def test_errors_cross_processes(kind: type[Exception]) -> None:
    back = pickle.loads(pickle.dumps(kind("mend this")))
    assert (type(back), str(back)) == (kind, "mend this")
