from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.options.check import CheckOptions
from pipeline.commands.options.declare import declarations
from pipeline.commands.options.parser import COMMANDS, parse
from pipeline.commands.options.plan import PlanOptions
from pipeline.commands.options.redrive import RedriveOptions
from pipeline.commands.options.run import RunOptions
from pipeline.commands.options.shared import absolute, output_folder
from pipeline.commands.options.verify import VerifyOptions
from pipeline.errors import UsageError
from tests.commands import parsed, tayyar, tayyar_here
from transforms.tei.settings import Overlong

ROOT = Path(__file__).parents[3]
SECRET = "hf_thisIsASecret"


def given(*arguments: str) -> RunOptions:
    return parsed(RunOptions, "run", "--input", "/in", "--output", "/out", *arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message with which a command line is refused, by argparse or by us."""
    with pytest.raises((UsageError, SystemExit)) as ended:
        given(*arguments)
    if isinstance(ended.value, UsageError):
        assert ended.value.__cause__ is None  # a cause could hold what the message leaves out
        return str(ended.value)
    assert isinstance(ended.value, SystemExit)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_what_is_not_given_has_its_documented_default() -> None:
    options = given()
    endpoint = options.endpoint
    assert (options.inputs, options.output) == (("/in",), "/out")
    assert (options.text_field, options.embedding_field) == ("content", "embedding")
    assert (options.shard_bytes, options.max_dead_letter_ratio) == (16 << 20, 0.01)
    assert (options.expected_dimensions, options.price_per_hour, options.overwrite) == (None, None, False)
    assert (endpoint.urls, endpoint.token, endpoint.prompt_name, endpoint.max_in_flight) == ((), None, None, None)
    assert (endpoint.headers, endpoint.dimensions) == ((), None)
    assert (endpoint.normalize, endpoint.overlong) == (True, Overlong.TRUNCATE)
    assert (endpoint.request_timeout, endpoint.give_up_after) == (60.0, 600.0)
    assert options.beam == ()


def test_everything_that_is_given_arrives() -> None:
    options = given(
        *["--input", "/more/*.ndjson", "--text_field", "meta.body", "--embedding_field", "vector"],
        *["--endpoint", "http://a:1/", "--endpoint", "https://b/tei/", "--token", "env:TOKEN"],
        *["--expected_dimensions", "384", "--overlong", "dead_letter", "--prompt_name", "query", "--no_normalize"],
        *["--header", "x-api-key: env:KEY", "--header", "X-HF-Bill-To:literal:my org", "--dimensions", "384"],
        *["--shard_bytes", "1000", "--max_in_flight", "64", "--request_timeout", "5.5", "--give_up_after", "0"],
        *["--max_dead_letter_ratio", "0", "--price_per_hour", "1.3", "--overwrite", "--direct_num_workers=2"],
    )
    endpoint = options.endpoint
    assert options.inputs == ("/in", "/more/*.ndjson")
    assert (options.text_field, options.embedding_field) == ("meta.body", "vector")
    assert (endpoint.urls, endpoint.token) == (("http://a:1", "https://b/tei"), "env:TOKEN")
    assert endpoint.headers == (("x-api-key", "env:KEY"), ("X-HF-Bill-To", "literal:my org"))
    assert endpoint.dimensions == 384
    assert (options.expected_dimensions, endpoint.overlong) == (384, Overlong.DEAD_LETTER)
    assert (endpoint.prompt_name, endpoint.normalize) == ("query", False)
    assert (options.shard_bytes, endpoint.max_in_flight) == (1000, 64)
    assert (endpoint.request_timeout, endpoint.give_up_after) == (5.5, 0.0)
    assert (options.max_dead_letter_ratio, options.price_per_hour, options.overwrite) == (0.0, 1.3, True)
    assert options.beam == ("--direct_num_workers=2",)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--shard_bytes", "0", "0 is not from 1 to 1099511627776"),
        ("--shard_bytes", "16M", "invalid int value: '16M'"),
        ("--expected_dimensions", "0", "0 is not at least 1"),
        ("--dimensions", "0", "0 is not at least 1"),
        ("--dimensions", "all", "invalid int value: 'all'"),
        ("--header", "x-api-key", "a header is given as 'NAME: REFERENCE'"),
        ("--header", "", "a header is given as 'NAME: REFERENCE'"),
        ("--header", ": env:KEY", "a header is given as 'NAME: REFERENCE'"),
        ("--header", "x api key: env:KEY", "a header is given as 'NAME: REFERENCE'"),
        ("--header", "x-api-key\r\nHost: env:KEY", "a header is given as 'NAME: REFERENCE'"),
        ("--header", "x-api-key:", "the value of the header x-api-key must be named"),
        ("--header", "x-api-key: env:", "the value of the header x-api-key must be named"),
        ("--header", "x-api-key: vault:KEY", "the value of the header x-api-key must be named"),
        ("--header", "Host: env:HOST", "the header Host is the client's own"),
        ("--header", "X-HF-Bill-To: literal:", "the value of the header X-HF-Bill-To may be a secret"),
        ("--header", "X-HF-Bill-To: literal:a\nb", "the value of the header X-HF-Bill-To may be a secret"),
        ("--max_in_flight", "0", "0 is not at least 1"),
        ("--max_in_flight", "-5", "-5 is not at least 1"),
        ("--request_timeout", "0", "0 is not from 0.001 to 86400"),
        ("--shard_bytes", "2000000000000", "2000000000000 is not from 1 to 1099511627776"),
        ("--request_timeout", "inf", "inf is not from 0.001 to 86400"),
        ("--request_timeout", "1e11", "1e11 is not from 0.001 to 86400"),
        ("--give_up_after", "-1", "-1 is not from 0 to 2592000"),
        ("--give_up_after", "nan", "nan is not from 0 to 2592000"),
        ("--max_dead_letter_ratio", "1.1", "1.1 is not from 0 to 1"),
        ("--max_dead_letter_ratio", "nan", "nan is not from 0 to 1"),
        ("--max_dead_letter_ratio", "1%", "invalid float value: '1%'"),
        ("--price_per_hour", "-1", "-1 is not at least 0"),
        ("--price_per_hour", "inf", "inf is not at least 0"),
        ("--overlong", "split", "invalid choice: 'split'"),
        ("--text_field", "", "--text_field ''"),
        ("--text_field", "meta..body", "--text_field 'meta..body'"),
        ("--text_field", ".body", "has an empty part"),
        ("--embedding_field", "", "--embedding_field ''"),
        ("--embedding_field", 'a"b', "Use a plain name"),
        ("--embedding_field", "a\\b", "Use a plain name"),
        ("--embedding_field", "a/b", "Use a plain name"),
        ("--embedding_field", "a\nb", "Use a plain name"),
        ("--text_field", "\udcff", "is not UTF-8"),
        ("--output", "/out/\udcff", "is not UTF-8"),
        ("--embedding_field", "content", "would overwrite the text, which is in --text_field content"),
        ("--output", "", "names no folder"),
        ("--output", "/", "names no folder"),
        ("--endpoint", "localhost:8080", "'localhost:8080' is not a URL of the form http://HOST:PORT"),
        ("--endpoint", "ftp://host", "'ftp://host' is not a URL"),
        ("--endpoint", "http://", "'http:' is not a URL"),
        ("--endpoint", "", "'' is not a URL"),
        ("--endpoint", "http://host:port", "'http://host:port' is not a URL"),
        ("--endpoint", "http://[::1", "'http://[::1' is not a URL"),
        ("--endpoint", "http://host/embed", "without /embed"),
        ("--endpoint", "http://host/v1/embeddings/", "without /v1/embeddings/"),
        ("--endpoint", "http://host/?a=b", "http://host/ must end before its '?'"),
        ("--endpoint", "http://host#a", "http://host must end before its '#'"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], option: str, value: str, words: str
) -> None:
    message = refused(capsys, f"{option}={value}")
    assert option in message
    assert words in message


def test_the_text_may_not_be_inside_the_field_that_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--text_field=embedding.text")
    assert "--embedding_field embedding would overwrite the text" in message
    assert given("--text_field=a.embedding").text_field == "a.embedding"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", SECRET],
        ["--token", f"Bearer {SECRET}"],
        ["--token", "env:"],
        ["--token", "file:"],
        ["--header", f"x-api-key: {SECRET}"],
        ["--header", f"x-api-key: Bearer {SECRET}"],
        ["--header", f"x-api-key: literal:{SECRET}"],
        ["--header", f"X-HF-Bill-To: literal:{SECRET * 3}"],
        ["--header", f"x-api-key={SECRET}"],
        ["--header", f"x-api-key {SECRET}"],
        ["--header", SECRET],
        ["--header", f"Bearer {SECRET}: env:KEY"],
        ["--header", f"Host: {SECRET}"],
        ["--header", "x-api-key: env:KEY", "--header", f"x-org: {SECRET}"],
        ["--endpoint", f"http://user:{SECRET}@host"],
        ["--endpoint", f"http://user:{SECRET}@host/embed"],
        ["--endpoint", f"http://{SECRET}@host"],
        ["--endpoint", f"ftp://user:{SECRET}@host"],
        ["--endpoint", f"user:{SECRET}@host:8080"],
        ["--endpoint", f"http://host/?token={SECRET}"],
        ["--endpoint", f"http://host/embed?token={SECRET}"],
        ["--endpoint", f"host?token={SECRET}"],
        ["--endpoint", f"http://host#{SECRET}"],
    ],
)
def test_a_secret_is_refused_and_never_repeated(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    message = refused(capsys, *arguments)
    assert SECRET not in message
    assert "--endpoint" in message or "--token" in message or "--header" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--header", "x-api-key:", SECRET],
        ["check", "--header=x-api-key:", SECRET],
        ["check", "--header", "x-api-key:", f"-{SECRET}"],
        ["check", "--token", "Bearer", SECRET],
        ["check", "--direct_num_workers", "2", "--token", "Bearer", SECRET],
        ["check", "--headers", f"x-api-key: {SECRET}"],
        ["check", f"--header:x-api-key={SECRET}"],
        ["verify", "--output", "/out", "--token=Bearer", SECRET, "--sample", "2"],
        ["redrive", "--output", "/out", "--header", f"x-api-key: {SECRET}"],
        ["plan", "--input", "/in", "--header", f"x-api-key: {SECRET}"],
        ["--header", f"x-api-key: {SECRET}", "check"],
        ["--token", SECRET, "run"],
    ],
)
def test_no_command_repeats_a_secret(arguments: list[str]) -> None:
    refusal = tayyar_here(*arguments, code=2)
    assert SECRET not in refusal.stdout + refusal.stderr
    assert "header" in refusal.stderr or "--token" in refusal.stderr or "the command comes first" in refusal.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--header", "x-api-key: env:A", "--header", "X-API-Key: env:B"], "the header X-API-Key is already set; give"),
        (["--token", "env:A", "--header", "authorization: env:B"], "authorization is already set by --token"),
        (["--dimensions", "256", "--expected_dimensions", "384"], "--expected_dimensions 384 contradicts --dimensions"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refused(capsys, *arguments)


@pytest.mark.parametrize("command", [["verify", "--output", "/out"], ["redrive", "--output", "/out"]])
def test_dimensions_of_a_job_that_exists_are_in_its_folder(command: list[str]) -> None:
    assert "unknown option --dimensions" in tayyar_here(*command, "--dimensions", 256, code=2).stderr


def test_every_command_that_embeds_takes_headers() -> None:
    header, key = ("--header", "x-api-key: env:KEY"), (("x-api-key", "env:KEY"),)
    check = parsed(CheckOptions, "check", *header, "--dimensions", 256).endpoint
    assert (check.headers, check.dimensions) == (key, 256)
    plan = parsed(PlanOptions, "plan", "--input", "/in", *header, "--dimensions", 256).endpoint
    assert (plan.headers, plan.dimensions) == (key, 256)
    assert parsed(RedriveOptions, "redrive", "--output", "/out", *header).endpoint.headers == key
    assert parsed(VerifyOptions, "verify", "--output", "/out", *header).endpoint.headers == key


def test_check_takes_every_option_of_run_and_passes_none_of_them_to_beam() -> None:
    ignored = ["--input", "/in", "--prune", "--overwrite", "--reuse", "/old", "--shard_bytes", 5, "--price_per_hour", 1]
    assert parsed(CheckOptions, "check", *ignored, "--direct_num_workers=2").beam == ("--direct_num_workers=2",)


@pytest.mark.parametrize(
    "arguments",
    [["run", "--endpiont", "http://h:1"], ["run", "--endpiont=http://h:1"], ["verify", "--endpiont", "http://h:1"]],
)
def test_a_misspelt_option_is_found_although_required_ones_are_missing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "unknown option --endpiont: did you mean --endpoint?" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "meant"), [("runn", "run"), ("stauts", "status"), ("serv", "serve")])
def test_a_misspelt_command_is_found(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([word, "--output", "out"])
    assert f"unknown command {word}: did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["--input", "--output"])
def test_input_and_output_are_required(capsys: pytest.CaptureFixture[str], missing: str) -> None:
    arguments = {"--input": "/in", "--output": "/out"}
    del arguments[missing]
    with pytest.raises(SystemExit):
        parse(["run", *(word for pair in arguments.items() for word in pair)])
    assert f"required: {missing}" in capsys.readouterr().err


@pytest.mark.parametrize("abbreviation", ["--shard=5", "--tok=env:A", "--over", "--no_norm", "--price=1"])
def test_no_option_may_be_abbreviated(abbreviation: str) -> None:
    # What is left over goes to Beam, which does not know it either.
    assert given(abbreviation).beam == (abbreviation,)


@pytest.mark.parametrize("arguments", [["embed"], ["--output", "run"]])
def test_a_command_is_required(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_paths_are_made_absolute_where_they_are_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("a/*.ndjson") == f"{tmp_path}/a/*.ndjson"
    assert absolute("./a/../b") == f"{tmp_path}/b"
    assert absolute("a/") == f"{tmp_path}/a/"
    assert absolute("~/a") == "/home/somebody/a"
    assert absolute("/a/**/b") == "/a/**/b"
    assert absolute("gs://bucket/../a/*") == "gs://bucket/../a/*"
    assert output_folder("out/") == f"{tmp_path}/out"
    assert output_folder(".") == str(tmp_path)
    assert output_folder("s3://bucket/out//") == "s3://bucket/out"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_with_its_meaning(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([command, "--help"])
    assert ended.value.code == 0
    shown = "".join(capsys.readouterr().out.split())  # lines are wrapped anywhere
    for option in declarations(COMMANDS[command]):
        assert option.flag in shown
        assert option.meaning.replace(" ", "") in shown


def test_the_command_line_is_there_before_anything_heavy() -> None:
    program = (
        "import sys, pipeline.__main__; "
        "print([name for name in ('apache_beam', 'numpy', 'requests') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_pattern_without_quotes_is_told_from_an_unknown_option(tmp_path: Path) -> None:
    said = tayyar("run", "--input", "a.ndjson", "b.ndjson", "--output", tmp_path, "--setup_file", "./setup.py", code=2)
    assert "b.ndjson belongs to no option: put quotes" in said.stderr
    said = tayyar_here("run", "--input", "a.ndjson", "--output", tmp_path, "--setup_file", "./setup.py", code=2)
    assert "belongs to no option" not in said.stderr
