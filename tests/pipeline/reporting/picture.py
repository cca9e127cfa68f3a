"""Draw the picture of a report that README.md shows: python -m tests.pipeline.reporting.picture OUTPUT.

OUTPUT is the output folder of a finished job that was planned and verified. Needs Chromium and chromedriver.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PICTURE = Path(__file__).parents[3] / "pipeline" / "reporting" / "report.png"
_WIDTH = 1000  # pixels, as is the height, which ends behind the charts of speed and queue
_END = "return document.querySelectorAll('.charts > figure')[1].getBoundingClientRect().bottom"
_COLOURS = 64  # the page has few


def draw(output: Path, picture: Path = PICTURE) -> None:
    """Save the upper part of the page of a job in its light theme."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    for switch in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        metrics = {"width": _WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        light = [{"name": "prefers-color-scheme", "value": "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": light})
        browser.get((output / "_job/report.html").resolve().as_uri())
        end = browser.execute_script(_END)
        clip = {"x": 0, "y": 0, "width": _WIDTH, "height": round(end) + 8, "scale": 1}
        shot = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
    finally:
        browser.quit()
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(_COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
