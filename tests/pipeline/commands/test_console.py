from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.escaping import escaped, escaped_line
from tests.commands import ROOT, tayyar_here


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("verified\rfailed", "verified\\rfailed"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("\x9b31m", "\\x9b31m"),
        ("two\nlines\tof ويكي", "two\nlines\tof ويكي"),
    ],
)
def test_a_terminal_obeys_nothing_that_is_printed(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped_line(text) == shown.replace("\n", "\\n").replace("\t", "\\t")


def test_filters_hold_for_what_other_loggers_log() -> None:
    program = (
        "import logging; from pipeline.logs import configure_logging; configure_logging(); "
        "beam = logging.getLogger('apache_beam.anything'); beam.warning('apitools not found'); "
        "beam.error('Traceback (most recent call last): x'); beam.warning('kept \\x1b[1m')"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stderr == "WARNING: kept \\x1b[1m\n"


def test_what_is_logged_stands_above_a_bar_and_not_in_it() -> None:
    program = (
        "import logging; from tqdm import tqdm; from pipeline.logs import configure_logging; configure_logging(); "
        "bar = tqdm(bar_format='{desc}', desc='12 documents'); logging.warning('the endpoint is slow'); bar.close()"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    lines = [line.rpartition("\r")[2] for line in shown.stderr.decode().split("\n")]
    assert lines == ["WARNING: the endpoint is slow", "12 documents", ""]


def test_the_command_line_helps() -> None:
    assert tayyar_here("--version").stdout.startswith("tayyar 0.")
    assert "COMMAND" in tayyar_here().stdout
    for given, meant in (("--text-field", "--text_field"), ("--endpiont", "--endpoint")):
        options = ("run", "--input", "a", "--output", "b", given, "x")
        assert f"unknown option {given}: did you mean {meant}?" in tayyar_here(*options, code=2).stderr
