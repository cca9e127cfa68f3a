"""The report's page: as text, and as a real Chromium shows it."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

from pipeline.job.ledger import Ledger
from pipeline.job.sharding import Plan
from pipeline.reporting.charts import endpoint_chart, latency_chart, rate_chart
from pipeline.reporting.page import render
from pipeline.reporting.report import make_report
from pipeline.reporting.schema import LastRun, Verified
from pipeline.reporting.timeline import bottleneck
from tests.pipeline.job.test_spec import JOB
from tests.pipeline.reporting.reports import ARABIC, ESTIMATE, SCRIPT, grown_report, nasty_report, unfinished_report
from transforms.elements import RequestStatistics

_CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
_SWITCHES = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
_CONTRAST = """
const parse = colour => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = e => { for (; e; e = e.parentElement) {
  const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
const worst = {};
for (const e of document.querySelectorAll('main *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  const colour = e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color;
  const [a, b] = [light(parse(colour)), light(ground(e.closest('figure') || e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  worst[e.tagName + ' ' + e.textContent.trim().slice(0, 20)] = ratio;
}
return worst;
"""


class Tags(HTMLParser):
    """Every tag with its attributes, as a parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_what_documents_hold_is_text_and_never_markup() -> None:
    page = render(nasty_report())
    assert page.count("&lt;script&gt;") >= 6
    names = {tag for tag, _ in Tags(page).found}
    assert names.isdisjoint({"script", "img", "iframe", "link", "object"})


def test_what_hides_or_reorders_text_is_shown_as_an_escape() -> None:
    unsafe = "a\x1b[2J\u202eb"
    report = nasty_report()
    model = dataclasses.replace(report.job.model, model_id=unsafe, sha=unsafe)
    example = dataclasses.replace(
        report.dead_letters[0].examples[0], text=unsafe, detail=unsafe, source=f"/in/{unsafe}"
    )
    report = dataclasses.replace(
        report,
        output=unsafe,
        job=dataclasses.replace(report.job, model=model),
        dead_letters=(dataclasses.replace(report.dead_letters[0], examples=(example,)),),
        sources=(dataclasses.replace(report.sources[0], path=f"/in/{unsafe}"),),
    )
    page = render(report)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert page.count("a\\x1b[2J\\u202eb") >= 8


def test_the_page_needs_nothing_else() -> None:
    for tag, attributes in Tags(render(nasty_report())).found:
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "data", "action"}:
                assert (value or "").startswith("#"), f"{tag} has {name}={value}"
    style = re.sub(r"url\(#", "", render(nasty_report()))
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_shows_what_the_report_holds() -> None:
    page = render(nasty_report())
    for words in (
        "228 documents embedded",
        "at $1.30 an hour",
        "The endpoint: its device was busy for 98% of the time",
        "about 64 ms (p50)",
    ):
        assert words in page
    assert "overlong_text: 8" in page
    assert "Plan and what happened" in page
    assert "Verified</span> on 2026-01-02 03:04 UTC" in page
    assert "2 min 00 s from start to end" in page
    assert "device busy 98% of the time" in page
    assert "<dt>Texts in flight</dt><dd>3.71 on average, 2.57 of them in the queue</dd>" in page


def test_where_documents_come_from_is_shown_by_file_where_any_was_not_simply_sent() -> None:
    def table(page: str) -> str:
        return page[page.index('<table class="files">') :].partition("</table>")[0]

    plain = table(render(unfinished_report()))
    assert not [label for label in ("reused", "equal texts", "truncated") if label in plain]
    grown = table(render(grown_report()))
    headings = re.findall("<th>([^<]*)</th>", grown)
    assert headings == [
        "file", "records", "embedded", "reused", "equal texts", "truncated", "dead letters", "shards", "size",
    ]  # fmt: skip
    rows = [re.findall('<td data-label="[^"]*">(?:<span>)?([^<]*)', row) for row in grown.split("</tr>")[1:3]]
    assert rows[0][:6] == ["4,094,596", "4,093,362", "2,040,686", "1,022,333", "1,001,234", "1,234"]
    assert rows[1][:6] == ["3", "3", "0", "0", "0", "0"]


def test_the_page_shows_the_space_and_former_names_of_the_model() -> None:
    page, report = render(nasty_report()), nasty_report()
    assert f"<dt>Vector space</dt><dd>{report.job.space}</dd>" in page
    assert "2026-01-02 00:00 UTC: intfloat/<wbr>multilingual-e5-small, revision abc, float32, TEI" in page
    assert "Names so far" not in render(unfinished_report())


def test_several_text_fields_are_all_named() -> None:
    job = dataclasses.replace(JOB, text_field=("title", "body"))
    page = render(make_report(Ledger(Plan((), 100), ()), job, "/out", None))
    assert "<dd>text from title, body, vector in embedding</dd>" in page


def test_an_endpoint_without_times_has_no_figures_of_its_device() -> None:
    report = nasty_report()
    silent = dataclasses.replace(
        report,
        bottleneck=bottleneck(RequestStatistics(flight_ms=52_000, slot_ms=12_000), 228, 14.0),
        timeline=dataclasses.replace(report.timeline, device_busy=(None, None)),
    )
    page = render(silent)
    assert "is not known" in page
    assert "device busy" not in page.lower()
    assert "<dt>Texts in flight</dt><dd>3.71 on average</dd>" in page
    assert page.count("<svg") == 3
    assert "100%" not in labels_of(page)


def test_the_chart_of_the_endpoint_has_a_strip_for_its_device() -> None:
    svg = endpoint_chart([64.0, 60.0, 62.0], [31.0, 30.0, 29.0], [0.98, None, 0.5], [], 9.0)
    assert {"20", "40", "60", "100%", "seconds of work"} <= set(labels_of(svg))
    assert labels_of(svg).count("seconds of work") == 1
    assert "nan" not in svg.lower()


def test_the_page_of_an_unfinished_job_says_what_is_missing() -> None:
    page = render(unfinished_report())
    assert "Not complete:</span> 15 of 19 shards, 1 of 2 files" in page
    assert "of about 57 records" in page
    assert "15 of 19 shards are done (78% of about 57 records); /in/a.ndjson lacks shards" in page
    assert '<span class="bad">11 of 15</span>' in page
    assert page.index("a.ndjson</td>") < page.index("b.ndjson</td>")


def test_the_page_shows_a_verification_that_is_not_current() -> None:
    failed = Verified("2026-01-02T03:04:05+00:00", passed=False, findings=1, current=False)
    page = render(unfinished_report(verified=failed))
    assert "Verification failed</span> on 2026-01-02 03:04 UTC with 1 finding; shards have been finished since" in page
    assert "tayyar verify had 1 finding: run it again to see it." in page
    assert "Not verified yet" in render(unfinished_report())


def test_a_report_of_nothing_is_a_page_too() -> None:
    report = make_report(Ledger(Plan((), 100), ()), JOB, "/out", None)
    page = render(report)
    assert "<svg" not in page
    assert "Plan and what happened" not in page
    assert "unknown" not in page.replace("an unknown format", "")


def test_a_plan_without_a_price_has_no_ratio() -> None:
    assert "<td>cost</td>\n<td>–</td>\n<td>–</td>\n<td>–</td>" in render(unfinished_report(estimate=ESTIMATE))


def test_names_are_broken_behind_their_separators_alone() -> None:
    page = render(unfinished_report())
    assert "intfloat/<wbr>multilingual-e5-small" in page
    assert "word-break" not in page
    assert "anywhere" not in page
    path = "/data/articles_of_2026/a_name_that_is_much_too_long_for_one_line.ndjson"
    run = LastRun(f"tayyar run --price_per_hour 1.30 --input {path}", ("127.0.0.1",), 0.0, 1.0, 1.0, 2, 2, 0, 0)
    page = render(dataclasses.replace(unfinished_report(), last_run=run))
    assert '<span class="option">--price_per_hour</span> 1.30 ' in page
    assert "/<wbr>data/<wbr>articles_of_2026/<wbr>a_<wbr>name_<wbr>that_" in page


def labels_of(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_a_count_has_whole_steps_and_no_nought_in_the_corner() -> None:
    labels = labels_of(latency_chart({10: 1, 12: 2, 14: 1}, {"p50": 12, "p95": 14, "p99": 14}))
    assert {"p50", "p95 p99", "1", "2"} <= set(labels)
    assert "0" not in labels
    assert not any("." in label for label in labels)
    assert "0" not in labels_of(rate_chart([3.0, 4.0, 2.0, 5.0], [], 8.0))


def test_a_histogram_is_one_outline() -> None:
    svg = latency_chart(dict.fromkeys((10, 12, 14, 16, 19), 5), {})
    assert svg.count("fill-opacity") + svg.count("opacity: 0.75") == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    if _CHROMIUM is None or _DRIVER is None:
        pytest.skip("there is no chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for switch in (*_SWITCHES, "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{switch}")
    driver = webdriver.Chrome(options, Service(_DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(nasty_report()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "unfinished.html"
    large = {"records": 2_000_000, "tokens": 340_000_000, "requests": 64_516, "output_bytes": 10**10, "seconds": 1467.0}
    report = unfinished_report(estimate=large)
    assert report.plan is not None
    tokens = dataclasses.replace(report.plan.tokens, actual=359_928_000)
    report = dataclasses.replace(report, plan=dataclasses.replace(report.plan, tokens=tokens))
    path.write_text(render(report), encoding="utf-8")
    return path


def show(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize(("grown", "columns"), [(False, 6), (True, 9)])
def test_every_figure_of_a_file_is_on_the_screen(
    browser: WebDriver, unfinished: Path, tmp_path: Path, width: int, grown: bool, columns: int
) -> None:
    path = tmp_path / "grown.html"
    path.write_text(render(grown_report()), encoding="utf-8")
    show(browser, path if grown else unfinished, width)
    card = browser.execute_script("return document.querySelector('.files').parentElement.getBoundingClientRect()")
    rows = browser.execute_script(
        "return [...document.querySelectorAll('.files tr')].map(row => [...row.children].map(e => {"
        "const r = document.createRange(); r.selectNodeContents(e); return r.getBoundingClientRect(); }))"
    )
    shown = [row for row in rows if any(box["width"] for box in row)]
    assert [len(row) for row in shown] == [columns] * (2 if width == 390 or (grown and width == 768) else 3)
    for row in shown:
        assert all(card["left"] <= box["left"] < box["right"] <= card["right"] for box in row)
        for one, other in itertools.pairwise(row):  # side by side, or below
            assert one["right"] < other["left"] or one["bottom"] <= other["top"] + 1


@pytest.mark.parametrize(("width", "rows"), [(390, 2), (1280, 1)])
def test_tiles_leave_no_orphan(browser: WebDriver, unfinished: Path, width: int, rows: int) -> None:
    show(browser, unfinished, width)
    tops = browser.execute_script(
        "return [...document.querySelectorAll('.tile')].map(e => e.getBoundingClientRect().top)"
    )
    assert len(tops) == 4
    assert len(set(tops)) == rows


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("finished", [True, False])
def test_nothing_is_wider_than_the_screen(
    browser: WebDriver, page: Path, unfinished: Path, width: int, finished: bool
) -> None:
    show(browser, page if finished else unfinished, width)
    assert (
        browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        == 0
    )
    wide = browser.execute_script(
        "return [...document.querySelectorAll('main > *, figure svg, .card, .plan')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0
    assert browser.execute_script("return document.querySelectorAll('figure svg').length") == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(browser: WebDriver, page: Path, scheme: str) -> None:
    show(browser, page, 1280, scheme)
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", light)[0]) > 128) is (scheme == "light")
    contrasts = browser.execute_script(_CONTRAST)
    assert len(contrasts) > 50
    assert any(name.startswith("text ") for name in contrasts)  # in the charts too
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}


def test_arabic_runs_from_right_to_left_and_the_rest_does_not(browser: WebDriver, page: Path) -> None:
    show(browser, page, 1280)
    directions = browser.execute_script(
        "return [...document.querySelectorAll('.text')].map(e => [e.textContent, getComputedStyle(e).direction])"
    )
    found = dict(directions)
    assert found[ARABIC] == "rtl"
    assert found[SCRIPT] == "ltr"
    sides = browser.execute_script(
        "const e = [...document.querySelectorAll('.text')].find(e => getComputedStyle(e).direction === 'rtl');"
        "const r = document.createRange(); r.setStart(e.firstChild, 0); r.setEnd(e.firstChild, 1);"
        "return [r.getBoundingClientRect().left, e.getBoundingClientRect()]"
    )
    assert sides[0] > (sides[1]["left"] + sides[1]["right"]) / 2  # the first letter stands in the right half


def test_nothing_that_a_document_holds_is_run(browser: WebDriver, page: Path) -> None:
    show(browser, page, 1280)
    assert "injected" not in browser.title.replace(SCRIPT, "")
    assert browser.execute_script("return document.scripts.length + document.images.length") == 0
