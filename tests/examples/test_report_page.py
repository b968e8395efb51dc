"""The page of the digits."""

import pytest

from tests.helpers import run, tensorflow_only
from tests.report.pages import Page, check


@tensorflow_only
@pytest.mark.slow
def test_the_page_of_the_digits(tmp_path):
    printed = run("-m", "examples.report_page", "--epochs", 1, "--out", tmp_path)
    page = tmp_path / "report.html"
    assert printed.endswith(f"{page}: {page.stat().st_size:,} bytes. Open it in a browser\n")
    check(Page(page))
    assert len(Page(page).tables["What the plan expects of each kernel"]) == 5
