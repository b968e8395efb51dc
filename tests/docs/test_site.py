"""The site that `make docs` built, in headless Chromium: where these and Playwright are there."""

import shutil

import pytest

from tests.helpers import ROOT

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
SITE = ROOT / "build" / "site"
pytestmark = [
    pytest.mark.one_backend,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not SITE.exists(), reason="`make docs` was not run"),
]
# What sticks out on the right, but for what can be scrolled there.
OUTSIDE = """() => [...document.querySelectorAll('.md-content *')].filter(element => {
    const box = element.getBoundingClientRect()
    if (!box.width || box.right <= innerWidth + 1) return false
    for (let part = element; part; part = part.parentElement)
        if (getComputedStyle(part).overflowX != 'visible') return false
    return true
}).map(element => element.textContent.slice(0, 80))"""


def test_no_page_is_wider_than_a_phone():
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        for path in sorted(SITE.rglob("*.html")):
            tab.goto(path.as_uri())
            name = path.relative_to(SITE)
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert tab.evaluate(OUTSIDE) == [], name
            pictures = "[...document.images].every(image => !image.complete || image.naturalWidth)"
            assert tab.evaluate(pictures), f"{name}: a picture is not there"
        browser.close()


def test_the_reference_shows_members():
    """A module's functions have examples and links of their own on its page."""
    text = (SITE / "api" / "reports.html").read_text()
    for name in ("report.summary", "plots.weight_histograms", "config.explain"):
        assert f'id="keras_qareg.{name}"' in text
    assert 'See also: <a href="../concepts.html#basins">concepts: basins</a>' in text
