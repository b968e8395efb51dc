"""The page in headless Chromium, where that and Playwright are installed."""

import shutil

import pytest

import keras_qareg as qareg
from tests.helpers import small_cnn
from tests.report.test_page import plan_for, report_for

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.one_backend,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with all that it can have, and names that would do harm."""
    folder = tmp_path_factory.mktemp("page")
    model = small_cnn()
    shared = qareg.share_weights(model, levels=4)
    report = report_for(shared, folder / "<script>alert(1);<b>.tflite")
    return qareg.report.html(
        shared, folder / "r.html", model, export_report=report, plan=plan_for(shared)
    )


@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    with playwright.sync_playwright() as tools:
        chromium = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, page):
    """The page in a window of some width and scheme; nothing may go wrong or be loaded."""
    wrong, tabs = [], []

    def start(width=1280, scheme="light", **options):
        size = {"width": width, "height": 800}
        tab = browser.new_page(viewport=size, color_scheme=scheme, **options)
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: wrong.append(dialog.message))
        tab.on("request", lambda request: wrong.append(request.url) if tabs else None)
        tab.goto(page.as_uri())
        tabs.append(tab)
        return tab

    yield start
    assert wrong == []
    for tab in tabs:
        tab.close()


def kernels(tab):
    """The names of the kernels, in the order in which they are shown."""
    return tab.locator("#kernel-table > tbody > tr:first-child > th").all_inner_texts()


def test_columns_sort_by_clicks_and_keys(opened):
    tab = opened()
    head = tab.locator("#kernel-table > thead th", has_text="Bytes packed")
    assert kernels(tab) == ["cnn/conv/kernel", "cnn/fc/kernel", "cnn/out/kernel"]
    head.locator("button").click()
    assert kernels(tab) == ["cnn/fc/kernel", "cnn/out/kernel", "cnn/conv/kernel"]
    assert head.get_attribute("aria-sort") == "descending"
    assert tab.locator("#told").inner_text() == "Sorted by Bytes packed, descending"
    head.locator("button").press("Enter")
    assert kernels(tab) == ["cnn/conv/kernel", "cnn/out/kernel", "cnn/fc/kernel"]
    tab.locator("#kernel-table > thead th button").first.press(" ")
    assert kernels(tab)[0] == "cnn/conv/kernel" and head.get_attribute("aria-sort") is None
    # What has no number stays last.
    head = tab.locator("#layer-table > thead th", has_text="Decibels")
    head.locator("button").click()
    rows = tab.locator("#layer-table > tbody th").all_inner_texts()
    assert rows == ["conv", "fc"]


def test_a_kernel_opens(opened):
    tab = opened()
    button = tab.locator("button.opener").nth(1)
    picture = tab.get_by_role("img", name="Distribution of the 864 weights of cnn/fc/kernel")
    assert not picture.is_visible() and button.get_attribute("aria-expanded") == "false"
    button.press("Enter")
    assert picture.is_visible() and button.get_attribute("aria-expanded") == "true"
    tab.locator("summary", has_text="The 4").locator("visible=true").click()
    assert tab.get_by_role("cell", name="864").first.is_visible()
    button.click()
    assert not picture.is_visible()
    tab.locator("ol.bytes a").first.click()  # the largest, which is the same
    assert picture.is_visible()
    tab.get_by_role("button", name="Open all").click()
    assert tab.locator("#kernel-table svg.figure").locator("visible=true").count() == 3
    tab.get_by_role("button", name="Close all").click()
    assert tab.locator("#kernel-table svg.figure").locator("visible=true").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(opened, width):
    tab = opened(width)
    tab.get_by_role("button", name="Open all").click()
    for fold in tab.locator("summary").locator("visible=true").all():
        fold.click()
    wide = (
        "[...document.querySelectorAll('html, .scroll')].map((e) => e.scrollWidth - e.clientWidth)"
    )
    assert set(tab.evaluate(wide)) == {0}
    small = "(e) => [e.getBoundingClientRect().width, e.getBoundingClientRect().height]"
    for button in tab.locator("button").locator("visible=true").all():
        assert min(button.evaluate(small)) >= 24


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(opened, scheme):
    """A contrast of 4.5 to 1, as WCAG 2 asks for, of texts; of 3 to 1 of figures."""
    tab = opened(scheme=scheme)
    contrast = """
    () => {
      const style = getComputedStyle(document.documentElement);
      const light = (name) => {
        const hex = style.getPropertyValue(name).trim();
        const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
        const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      return Object.fromEntries(["--text", "--quiet", "--link", "--before", "--after", "--dot"].map(
        (name) => [name, Math.min(...["--ground", "--raised"].map((g) => ratio(light(name), light(g))))]
      ));
    }"""
    found = tab.evaluate(contrast)
    assert all(found[name] >= 4.5 for name in ("--text", "--quiet", "--link"))
    assert all(ratio >= 3 for ratio in found.values())


def test_without_scripts_all_is_open(opened):
    tab = opened(java_script_enabled=False)
    assert tab.locator("#kernel-table svg.figure").locator("visible=true").count() == 3
    assert not tab.get_by_role("button", name="Open all").is_visible()
