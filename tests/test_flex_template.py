"""The Flex Template, as far as it can be held without the cloud: its parameters, its image's files, its launcher."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.options.declare import declarations
from pipeline.commands.options.run import RunOptions
from run_scripts.flex_template.launch import to_arguments
from run_scripts.flex_template.make_metadata import metadata
from tests.commands import ROOT

FOLDER = ROOT / "run_scripts/flex_template"
METADATA = json.loads((FOLDER / "metadata.json").read_text(encoding="utf-8"))
PARAMETERS = METADATA["parameters"]
# Of Dataflow's ParameterMetadata and ParameterType, those that a template of ours may use.
KEYS = {"name", "label", "helpText", "isOptional", "regexes", "paramType", "defaultValue", "enumOptions"}
TYPES = {"TEXT", "GCS_READ_FILE", "GCS_READ_FOLDER", "GCS_WRITE_FOLDER", "BOOLEAN", "ENUM", "NUMBER"}


def instructions(word: str) -> list[list[str]]:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{word} ")]


def copied() -> list[tuple[str, str]]:
    """What comes into the image from here: its path in the repository, and in the image."""
    return [
        (source, f"{target}{source}" if target.endswith("/") else target)
        for *sources, target in instructions("COPY")
        if not sources[0].startswith("--from=")
        for source in sources
    ]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The image's folder, filled as the Dockerfile says."""
    for source, target in copied():
        path = tmp_path / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, path)
    return tmp_path / "template"


def launch(template: Path, *parameters: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(template / "launch.py"), *parameters]
    return subprocess.run(command, cwd=template.parent, env=clean, capture_output=True, text=True, check=False)


def test_the_parameters_are_the_options_of_run() -> None:
    assert metadata() == METADATA, "python -m run_scripts.flex_template.make_metadata"
    options = {option.flag[2:] for option in declarations(RunOptions)}
    assert {parameter["name"] for parameter in PARAMETERS} == options | {"sdk_container_image"}
    assert len(options) > 15


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter["name"])
def test_a_parameter_keeps_the_published_rules(parameter: dict[str, Any]) -> None:
    assert parameter.keys() <= KEYS
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", parameter["name"])
    assert parameter["label"]
    assert re.fullmatch(r"[^%]+\.", parameter["helpText"])  # no placeholder of argparse is left
    assert type(parameter["isOptional"]) is bool
    assert parameter["paramType"] in TYPES
    assert ("enumOptions" in parameter) == (parameter["paramType"] == "ENUM")
    default = parameter.get("defaultValue")
    for expression in parameter.get("regexes", []):
        assert default is None or re.fullmatch(expression, default)
    assert default is None or default in [
        option["value"] for option in parameter.get("enumOptions", [{"value": default}])
    ]
    assert parameter["isOptional"] or default is None


def test_names_are_there_once() -> None:
    names = [parameter["name"] for parameter in PARAMETERS]
    assert len(names) == len(set(names))
    assert [parameter["name"] for parameter in PARAMETERS if not parameter["isOptional"]] == [
        "input",
        "output",
        "endpoint",
    ]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("input", "gs://b/wiki/*.ndjson gs://b/x", "/local/*.ndjson"),
        ("input", "gs://b/wiki/*.ndjson", "s3://b/x"),
        ("output", "gs://b/out", "out"),
        ("output", "gs://b", "gs:///out"),
        ("endpoint", "http://10.0.0.5:8080 https://x.endpoints.huggingface.cloud", "10.0.0.5:8080"),
        ("token", "gsm:projects/p/secrets/n/versions/latest", "hf_secret"),
        ("header", "x-api-key: env:KEY", "x-api-key: hf_secret"),
        ("header", "X-HF-Bill-To:literal:my org x-api-key: file:/run/key", "literal:my org"),
        ("dimensions", "256", "all"),
        ("shard_bytes", "1000", "16MB"),
        ("request_timeout", "5.5", "soon"),
    ],
)
def test_what_a_parameter_may_be(name: str, good: str, bad: str) -> None:
    (expressions,) = [parameter["regexes"] for parameter in PARAMETERS if parameter["name"] == name]
    assert all(re.fullmatch(expression, good) for expression in expressions)
    assert not any(re.fullmatch(expression, bad) for expression in expressions)


def test_everything_that_the_image_takes_is_here() -> None:
    sources = {source for source, _ in copied()}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert sources >= {"setup.py", "pyproject.toml", "README.md", "pipeline", "transforms"}  # what setup.py needs
    (program,) = [value for [setting] in instructions("ENV") for name, _, value in [setting.partition("=")]]
    assert program in {target for _, target in copied()}


def test_the_image_has_the_beam_that_is_tested() -> None:
    version = re.search(r"^beam=(.*)$", (ROOT / ".ci/tools").read_text(), re.MULTILINE)
    assert version is not None
    assert ["apache/beam_python3.11_sdk:" + version[1]] in instructions("FROM")


def test_the_launcher_knows_the_options(template: Path) -> None:
    finished = launch(template, "--help")
    assert finished.returncode == 0, finished.stderr
    assert [name for name in (p["name"] for p in PARAMETERS[:-1]) if f"--{name}" not in finished.stdout] == []


def test_the_launcher_says_what_is_wrong(template: Path) -> None:
    where = ("--runner=DataflowRunner", "--input=gs://b/in/*", "--output=gs://b/out")
    finished = launch(template, *where, "--endpoint=")
    assert finished.returncode == 2
    assert "Give the address of a server" in finished.stderr
    assert "overwrite is maybe" in launch(template, *where, "--overwrite=maybe").stderr


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        (["--input=gs://b/a b/*.ndjson gs://b/c"], ["--input=gs://b/a b/*.ndjson", "--input=gs://b/c"]),
        (["--endpoint=http://a:1  http://b:2"], ["--endpoint=http://a:1", "--endpoint=http://b:2"]),
        (["--header=x-api-key: env:KEY"], ["--header=x-api-key: env:KEY"]),
        (
            ["--header=x-api-key: env:KEY X-HF-Bill-To:literal:my org  Cookie: gsm:projects/p/secrets/s/versions/1"],
            [
                "--header=x-api-key: env:KEY",
                "--header=X-HF-Bill-To:literal:my org",
                "--header=Cookie: gsm:projects/p/secrets/s/versions/1",
            ],
        ),
        (["--overwrite=true", "--no_normalize=False"], ["--overwrite"]),
        (["--token=", "--prompt_name= "], []),
        (["--text_field=a=b", "--streaming"], ["--text_field=a=b", "--streaming"]),
    ],
)
def test_parameters_become_arguments(parameters: list[str], arguments: list[str]) -> None:
    setup = f"--setup_file={FOLDER / 'setup.py'}"
    assert list(to_arguments(parameters)) == [*arguments, setup]


def test_workers_with_an_image_of_their_own_install_nothing() -> None:
    assert list(to_arguments(["--sdk_container_image=image"])) == ["--sdk_container_image=image"]
    assert len(list(to_arguments(["--sdk_container_image="]))) == 1
