"""What the scripts decide before they call `tayyar`: which Python, which extra, which tools are new enough."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.scripts import executable, made_environment, only

PROGRAMS = ("basename", "bash", "cat", "cksum", "dirname", "mkdir", "mktemp", "rm", "sed")


def bash(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run some lines after what all scripts begin with."""
    lines = f'set -euo pipefail\n. "{ROOT}/run_scripts/environment.sh"\n{program}'
    return subprocess.run(
        ["bash", "-c", lines], env=os.environ | variables, capture_output=True, text=True, check=False
    )


def test_a_python_may_have_a_space_in_its_path(tmp_path: Path) -> None:
    python = executable(tmp_path / "my python", f'exec {sys.executable} "$@"')
    assert bash("find_python", TAYYAR_PYTHON=str(python)).stdout == f"{python}\n"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("--input a --output b", "local"),
        ("--input s3://b/in --output b", "local,aws"),
        ("check --output=s3://b/out", "local,aws"),
        ("--input gs://b/s3://x", "local"),
    ],
)
def test_files_in_s3_need_their_library(arguments: str, extra: str) -> None:
    assert bash(f"extra_for {arguments}").stdout == f"{extra}\n"


@pytest.mark.parametrize(
    ("there", "wanted", "enough"),
    [
        ("local", "local", True),
        ("local,aws", "local", True),
        ("dev", "local", True),
        ("dev", "local,aws", True),
        ("local,load", "local", True),
        ("dev", "local,load", True),
        ("local", "local,load", False),
        ("gcp", "gcp", True),
        ("local", "local,aws", False),
        ("local", "dev", False),
        ("dev", "gcp", False),
    ],
)
def test_what_another_extra_holds_is_not_installed_again(tmp_path: Path, there: str, wanted: str, enough: bool) -> None:
    variables = made_environment(tmp_path / "venv", there)
    executable(tmp_path / "venv/bin/python", '[ "$1" = -c ] || echo "$@" | tee /dev/stderr')
    said = bash(f"use_environment {wanted}", **variables).stderr  # pip's output is for terminals alone
    assert (f"{ROOT}[{wanted}]" in said) == (not enough)


@pytest.mark.parametrize("script", sorted((ROOT / "run_scripts").glob("*.sh")), ids=lambda path: path.name)
def test_programs_of_sed_are_such_as_macos_takes(script: Path) -> None:
    for line in script.read_text(encoding="utf-8").splitlines():
        if "sed " in line:
            assert not re.search(r"[^;{}\s]\s*\}'", line), "BSD's sed wants a semicolon before a closing brace"


@pytest.mark.parametrize("script", ["flink.sh", "dataflow.sh"])
def test_help_installs_nothing(tmp_path: Path, script: str) -> None:
    only(tmp_path / "bin", PROGRAMS)
    finished = subprocess.run(
        [f"{tmp_path}/bin/bash", f"{ROOT}/run_scripts/{script}", "--help"],
        env={"PATH": f"{tmp_path}/bin", "TAYYAR_VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"run_scripts/{script} check" in finished.stdout
    assert "WARNING: the pool listens on every address" in finished.stdout or script == "dataflow.sh"
    assert not (tmp_path / "venv").exists()


def test_a_flink_that_does_not_answer_is_told(tmp_path: Path) -> None:
    executable(tmp_path / "bin/java", "exit 0")
    variables = made_environment(tmp_path / "venv") | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    finished = subprocess.run(
        [f"{ROOT}/run_scripts/flink.sh", "--flink_master", "127.0.0.1:1"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert "no Flink answers at 127.0.0.1:1; give its REST address" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_pool_of_workers_warns_of_its_port(tmp_path: Path) -> None:
    variables = made_environment(tmp_path / "venv")
    executable(tmp_path / "venv/bin/python", '[ "$1" = -c ] || echo "$@" | tee /dev/stderr')
    script = [f"{ROOT}/run_scripts/flink.sh", "workers", "50123"]
    finished = subprocess.run(script, env=os.environ | variables, capture_output=True, text=True, check=True)
    assert finished.stdout == "-m apache_beam.runners.worker.worker_pool_main --service_port=50123\n"
    assert "Workers wait at port 50123, on every address of this machine" in finished.stderr


def test_a_worker_installs_nothing_and_says_what_does(tmp_path: Path) -> None:
    venv, worker = tmp_path / "venv", f"{ROOT}/run_scripts/flink_worker.sh"
    variables = os.environ | {"TAYYAR_VENV": str(venv)}
    finished = subprocess.run([worker, "--id=1-1"], env=variables, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert f"Tayyar is not installed in {venv}. Call this once on this machine: {worker} install" in finished.stderr
    assert not venv.exists()
    made_environment(venv, "local")  # which is not enough
    executable(venv / "bin/python", '[ "$1" = -c ] || echo "$@" | tee /dev/stderr')
    assert subprocess.run([worker, "--id=1-1"], env=variables, capture_output=True, check=False).returncode == 1
    installed = subprocess.run([worker, "install"], env=variables, capture_output=True, text=True, check=True).stderr
    assert f"--editable {ROOT}[local,aws]" in installed
    assert "flink_worker.py" not in installed
    started = subprocess.run([worker, "--id=1-1"], env=variables, capture_output=True, text=True, check=True).stdout
    assert started == f"{ROOT}/run_scripts/flink_worker.py --id=1-1\n"


def test_a_tool_of_another_version_is_fetched_again(tmp_path: Path) -> None:
    """By the function alone that decides it: the tools themselves take minutes."""
    text = (ROOT / ".ci/tools").read_text(encoding="utf-8")
    provide = text[text.index("provide() {") : text.index("\n}\n", text.index("provide() {")) + 3]
    path = tmp_path / "tool"
    made = f'make() {{ [ ! -e "$1" ] && echo made >"$1" && echo made; }}\n{provide}\nprovide "{path}"'
    assert "made" in bash(f"{made} 1.0 make true").stdout
    assert bash(f"{made} 1.0 make true").stdout == ""
    assert "no tool" in bash(f"{made} 1.1 make false").stdout
    assert path.exists()
    assert "made" in bash(f"{made} 1.1 make true").stdout
    assert bash(f"{made} 1.1 make true").stdout == ""


def test_an_installation_that_fails_ends_the_script(tmp_path: Path) -> None:
    variables = made_environment(tmp_path / "venv", "local")
    executable(tmp_path / "venv/bin/python", '[ "$1" = -c ] || exit 7')
    failed = bash("use_environment gcp; echo done", **variables)
    assert failed.returncode == 7
    assert "done" not in failed.stdout
    assert not (tmp_path / "venv/tayyar-gcp").exists()
