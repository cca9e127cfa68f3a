from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pipeline.commands.console import say
from pipeline.commands.options.parser import COMMANDS, SERVE
from pipeline.escaping import escaped, escaped_line
from tests.commands import ROOT, tayyar, tayyar_here


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


def test_a_line_stays_one_whatever_is_in_it() -> None:
    stream = io.StringIO()
    say("in/a\nverified: 3 records", stream)
    assert stream.getvalue() == "in/a\\nverified: 3 records\n"


def test_a_log_record_stays_one_line_and_its_traceback_stands_below_it() -> None:
    program = (
        "import logging; from pipeline.logs import configure_logging; configure_logging()\n"
        "logger = logging.getLogger('pipeline')\n"
        "logger.warning('%s', 'in/a\\nverified: 3 records')\n"
        "try:\n    raise ValueError('b\\nverified: 4 records')\n"
        "except ValueError as error:\n    logger.error('it failed', exc_info=error)"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, *traceback = shown.stderr.splitlines()
    assert (first, second) == ("WARNING: in/a\\nverified: 3 records", "ERROR: it failed")
    assert traceback[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in traceback)


def test_names_from_outside_print_no_line_of_their_own(tmp_path: Path, hash_tei: str) -> None:
    name = "a\nverified: 9 records"
    source, out = tmp_path / "in" / f"{name}.ndjson", tmp_path / "out"
    source.parent.mkdir()
    source.write_text('{"content": "one"}\n')
    where = ("--input", source.parent, "--output", out)
    shown = [tayyar_here("run", *where, "--endpoint", hash_tei)]
    shown.append(tayyar_here("report", "--output", out))
    source.write_text('{"content": "another one"}\n')
    source.rename(source.parent / f"b{name}.ndjson")
    shown.append(tayyar_here("verify", "--output", out, code=5))
    shown.append(tayyar_here("run", *where, "--endpoint", hash_tei))
    (source.parent / f"c{name}.ndjson").write_text("[1]\n")
    shown.append(tayyar_here("run", *where, "--endpoint", hash_tei, code=2))
    lines = [line for each in shown for line in (each.stdout + each.stderr).splitlines()]
    assert sum("\\nverified: 9" in line for line in lines) >= 4
    assert not [line for line in lines if line.startswith("verified: 9")]


def test_an_error_of_several_lines_prints_them_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("prose")
    (tmp_path / "b.txt").write_text("prose")
    inputs = ("--input", tmp_path / "a.txt", "--input", tmp_path / "b.txt")
    shown = tayyar_here("run", *inputs, "--output", tmp_path / "out", code=2).stderr.splitlines()
    assert [line.partition(" looks like")[0] for line in shown[:2]] == [
        f"tayyar: {tmp_path}/a.txt",
        f"{tmp_path}/b.txt",
    ]
    assert shown[2:] == ["Leave files out with --exclude PATTERN."]


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


def shown_in_a_terminal(program: str, columns: int) -> list[str]:
    """Return the lines that a Python program prints in a terminal of so many columns, both streams together."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=inside, stderr=inside) as process:
        os.close(inside)
        printed = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while chunk := os.read(terminal, 65536):
                printed += chunk
    os.close(terminal)
    assert process.returncode == 0
    return printed.decode().splitlines()


def test_a_terminal_gets_long_lines_broken_at_blanks() -> None:
    program = (
        "import logging, sys; from pipeline.commands.console import say; from pipeline.logs import configure_logging\n"
        "configure_logging(); say('short'); say('  two words of /a/path/that/is/wider/than/the-terminal'); "
        "say('a\\nb ' + 'c ' * 12, sys.stderr); logging.warning('the endpoint is away')"
    )
    assert shown_in_a_terminal(program, 20) == [
        "short",
        "  two words of",
        "    /a/path/that/is/wider/than/the-terminal",
        "a\\nb c c c c c c c c",
        "  c c c c",
        "WARNING: the",
        "  endpoint is away",
    ]


@pytest.mark.parametrize("command", [(), *((name,) for name in [*COMMANDS, SERVE])])
def test_help_fits_a_terminal_of_80_columns(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = tayyar(*command, "--help").stdout
    assert "--help" in shown
    assert not [line for line in shown.splitlines() if len(line) > 80]
