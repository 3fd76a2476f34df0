"""The page of `aem report` in a real browser, at the width of a phone and of a desktop."""

from __future__ import annotations

import re
import shutil
import tempfile

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver

from recipe.aem.tools.report.page import colour
from tests.recipe.tools.test_cli_report import AEM, GRPO, SCRIPT, make_run, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with chromedriver (apt-get install chromium chromium-driver)"
)
WIDTHS = (390, 1440)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two runs, with a long word and an element in the text of the episodes."""
    from recipe.aem.tools.report import build

    folder = tmp_path_factory.mktemp("browser")
    runs = [make_run(folder / name / "seed", of) for name, of in (("aem", AEM), ("grpo", GRPO))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_tokenizer", lambda place: lambda ids: f"{SCRIPT} {'w' * 300} {len(ids)}")
        report(*runs, "--names", "a-name-that-is-rather-long,grpo", "--out", folder / "out")
    return folder / "out/report.html"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield opened
        opened.quit()


@pytest.fixture(params=WIDTHS)
def opened(request, browser, page):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what was before
    browser.get(page.as_uri())
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    return browser, request.param


def test_it_fits_the_window_and_its_charts_are_there(opened):
    browser, width = opened
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # nothing reaches out of the window but what scrolls in a box of its own
    outside = browser.execute_script(
        """return [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg')
        && one.getBoundingClientRect().right > window.innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(one => {"
        "const box = one.getBoundingClientRect(); return [box.width, box.height, one.querySelectorAll('path').length]})"
    )
    assert len(sizes) > 15 and all(wide > 250 and high > 80 and paths > 5 for wide, high, paths in sizes)


def test_nothing_is_asked_for_and_nothing_complained_of(opened):
    browser, _ = opened
    assert browser.get_log("browser") == []
    sent = [
        entry["message"] for entry in browser.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    asked = {url for message in sent for url in re.findall(r'"url":"([^"]+)"', message)}
    assert asked and all(url.startswith("data:") or url.endswith("/report.html") for url in asked), asked


def test_details_open_on_a_click(opened):
    browser, _ = opened
    browser.refresh()
    found = "document.querySelector('.trajectory[open] .turn details')"
    shown = f"return {found}.querySelector('.observation').checkVisibility()"
    assert not browser.execute_script(shown)
    browser.execute_script(f"{found}.querySelector('summary').click()")
    assert browser.execute_script(shown)
    assert SCRIPT in browser.execute_script(f"return {found}.textContent")
    assert browser.execute_script("return document.scripts.length") == 0


def test_text_on_every_colour_is_readable(opened):
    browser, _ = opened
    pairs = browser.execute_script(
        """return [...document.querySelectorAll('.response, .scale span')].map(one => {
        const style = getComputedStyle(one); return [style.color, style.backgroundColor]})"""
    )
    assert len({background for _, background in pairs}) > 5
    assert min(contrast(*pair) for pair in pairs) >= 7  # WCAG's AAA


def test_the_deepest_colours_are_readable():
    ink = "#1a1a1a"
    assert min(contrast(ink, colour(weight)) for weight in (1e-3, 0.37, 1.0, 2.7, 1e3)) >= 7
    assert colour(0.5) != colour(2.0)


def contrast(one, two):
    """WCAG's contrast ratio of two colours."""
    lights = sorted(map(luminance, (one, two)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(text):
    parts = (
        [int(text[place : place + 2], 16) for place in (1, 3, 5)]
        if text.startswith("#")
        else [float(part) for part in re.findall(r"[\d.]+", text)[:3]]
    )
    linear = [part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
