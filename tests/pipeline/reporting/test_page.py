"""The report's page: as text, and as a real Chromium shows it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

from pipeline.reporting.page import render
from tests.pipeline.reporting.reports import ARABIC, ESTIMATE, SCRIPT, nasty_report

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


def test_the_page_needs_nothing_else() -> None:
    for tag, attributes in Tags(render(nasty_report())).found:
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "data", "action"}:
                assert (value or "").startswith("#"), f"{tag} has {name}={value}"
    style = re.sub(r"url\(#", "", render(nasty_report()))
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_says_what_the_report_says() -> None:
    page = render(nasty_report())
    for words in ("228 documents embedded", "$1.30", "The endpoint&#39;s device was the limit", "p95 91 ms"):
        assert words in page
    assert "overlong_text: 8" in page
    assert "Plan and what happened" in page


def test_a_report_of_nothing_is_a_page_too() -> None:
    report = nasty_report(estimate=None)
    report |= {"timeline": {"bucket_seconds": 0.1, "documents_per_second": [], "pauses_at": []}, "dead_letters": []}
    report["latency_ms"] = {"p50": None, "p95": None, "p99": None, "histogram": {}}
    page = render(report)
    assert "<svg" not in page
    assert "Plan and what happened" not in page


def test_a_plan_without_a_price_has_no_ratio() -> None:
    report = nasty_report(estimate=ESTIMATE | {"dollars": None})
    assert "<td>cost</td>\n<td>–</td>" in render(report)


Look = Callable[..., WebDriver]


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


def show(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser: WebDriver, page: Path, width: int) -> None:
    show(browser, page, width)
    assert (
        browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        == 0
    )
    wide = browser.execute_script(
        "return [...document.querySelectorAll('main > *, figure svg')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0
    assert browser.execute_script("return document.querySelectorAll('figure svg').length") == 2


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
