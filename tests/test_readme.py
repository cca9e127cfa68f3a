"""What the README files show: the Python of `pipeline/README.md` runs, and every link and script is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in ROOT.glob("**/README.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)")
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
