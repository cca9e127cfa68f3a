"""What the README files show: the Python and the screens of `pipeline/README.md`, and that links and scripts exist."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pipeline.job.run_marker import RunMarker
from pipeline.job.spec import JobSpec
from tests.commands import tayyar_here
from tests.documents import documents, write_ndjson
from tests.scripts import made_environment
from tests.tei_simulator.process import TeiSimulator
from transforms.elements import RequestStatistics
from transforms.output.receipts import Provenance, Receipt

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in ROOT.glob("**/README.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)")
ANSWERS = {
    "لماذا نرى البرق قبل أن نسمع الرعد؟": "البرق والرعد",
    "ما أكبر حيوان عاش على الأرض؟": "The blue whale",
    "How many players are in a football team?": "كرة القدم",
}
SCRIPT = re.compile(r"\b(?:run_scripts|\.ci)/[\w/.]*\w")


def test_python_of_the_readme_runs_as_it_stands(hash_tei: str) -> None:
    page = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## From Python\n")
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    program = "".join(blocks).replace("http://127.0.0.1:8080", hash_tei)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[:2] == ["(2, 384)", "{}"]
    texts, items, shards = printed[2:4], printed[4:6], printed[6:]
    assert sorted(texts) == ["nile float32 (384,)", "nobody the text is empty"]
    assert sorted(items) == ["nile 384", "photo NotEmbedded('missing_text: the text is missing or null')"]
    assert sorted(shards) == ["Reason.EMPTY_TEXT", "The Nile is long. (1, 384)"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_prints_the_vector_of_the_readme_and_answers_its_questions(tmp_path: Path) -> None:
    variables = os.environ | made_environment(tmp_path / "venv")
    demo = subprocess.run([ROOT / "run_scripts/demo.sh"], env=variables, capture_output=True, text=True, timeout=380)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "verified: 60 records in 2 files = 60 embedded" in demo.stdout
    assert "2 of 2 shards loaded; the table has 60 rows\n" in demo.stdout
    # The line that the README begins with, of which it leaves out the middle of the text, too.
    vector = re.compile(r'"embedding":\[(.*?), …,(.*?)\]}')
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    shown, printed = vector.search(page), vector.search(demo.stdout)
    assert shown is not None
    assert printed is not None
    assert page[: shown.start()].splitlines()[-1].partition(" …")[0] in demo.stdout
    numbers = [[float(number) for part in found.groups() for number in part.split(",")] for found in (shown, printed)]
    assert numbers[1] == pytest.approx(numbers[0], abs=1e-3)  # other processors may round otherwise
    _, _, answers = demo.stdout.partition(
        "== Three questions to the database: one in Arabic, two across the languages\n"
    )
    for question, title in ANSWERS.items():
        assert question in (ROOT / "run_scripts/demo.sh").read_text(encoding="utf-8")
        assert re.search(rf"{re.escape(question)}\n  0\.\d{{3}}  \w+-00000\n    {title}\n", answers), answers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_scripts_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}{anchor}"
    for script in SCRIPT.findall(text):
        assert (ROOT / script).exists(), script


_SHAPES = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "WHEN"),
    (r"process \d+ on \S+,", "process # on HOST,"),
    (r"<?\d[\d.,]*( [dh]| min| s)( \d\d( h| min| s))?(?=$|[ ,;])", "TIME"),
    (r"\d[\d.,]* (bytes?|[kMG]B)", "SIZE"),
    (r"<?\d[\d,]*(\.\d+)?", "#"),
    (r" +# texts in flight: ", " # texts in flight: "),
)


def shape(line: str) -> str:
    """A line without its numbers."""
    for pattern, name in _SHAPES:
        line = re.sub(pattern, name, line)
    return line


def marker_of(pid: int, seconds_ago: float) -> RunMarker:
    since = datetime.now(timezone.utc) - timedelta(seconds=seconds_ago)
    return RunMarker(socket.gethostname(), pid, since.isoformat(timespec="seconds"))


def test_every_field_of_the_folder_s_files_is_in_the_readme() -> None:
    page = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
    job, receipt = page.partition("\n**job.json**")[2].split("\n**A receipt**")
    receipt = receipt.partition("\n**A dead letter**")[0]
    of_receipts = {
        field.name for each in (Receipt, Provenance, RequestStatistics) for field in dataclasses.fields(each)
    } - {"provenance", "statistics"}
    for part, names in ((job, {field.name for field in dataclasses.fields(JobSpec)}), (receipt, of_receipts)):
        assert names - set(re.findall(r"`(\w+)`", part)) == set()


def test_screens_of_the_readme_are_what_the_commands_print(tmp_path: Path) -> None:
    """The job of `pipeline/README.md` in small: planned, stopped, looked at, continued and verified."""
    for number in range(4):
        lines = [{**one, "filler": "x" * 4000} for one in documents(250, seed=number)]
        write_ndjson(tmp_path / f"wiki/wiki_{number:02d}.ndjson", lines)
    out = tmp_path / "embedded"
    printed: list[str] = []

    def carry_out(*arguments: object, code: int = 0) -> None:
        done = tayyar_here(*arguments, code=code)
        printed.extend(f"{done.stdout}\n{done.stderr}".replace(str(tmp_path), "/data").splitlines())

    with TeiSimulator(["--texts_per_second", "300", "--max_batch_requests", "8"]) as server:
        endpoint = ("--endpoint", server.url, "--price_per_hour", 1.3)
        work = ("run", "--input", tmp_path / "wiki", "--output", out, "--shard_bytes", 100_000, *endpoint)
        carry_out("plan", "--input", tmp_path / "wiki", "--output", out, *endpoint)
        with (tmp_path / "wiki/wiki_03.ndjson").open("a") as file:  # the plan's sample has no broken line
            file.write('{"content": "unfini\n')
        carry_out(*work)
        for receipt in sorted((out / "_job/receipts").iterdir())[15:]:
            receipt.unlink()
        ended = subprocess.Popen(["true"])
        ended.wait()
        for marker in (marker_of(os.getpid(), 60), marker_of(ended.pid, 60)):
            (out / marker.name).parent.mkdir(exist_ok=True)
            (out / marker.name).write_text(json.dumps(dataclasses.asdict(marker)))
            carry_out("status", "--output", out)
            (out / marker.name).unlink()
        carry_out("report", "--output", out, code=1)
        carry_out(*work)
    carry_out("verify", "--output", out)
    (out / "data/mine.txt").touch()
    carry_out("verify", "--output", out, code=5)

    page = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
    shown = [
        line
        for section in ("plan", "status", "report", "verify")
        for block in re.findall(
            r"```text\n(.*?)```", page.partition(f"\n## {section}\n")[2].partition("\n## ")[0], re.DOTALL
        )
        for line in block.splitlines()
        if not line.startswith(("$ ", "…"))
    ]
    assert len(shown) > 30
    assert {shape(line) for line in shown} - {shape(line) for line in printed} == set()
