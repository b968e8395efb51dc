"""The page of a small CNN of scikit-learn's digits: planned for a size, shared, tuned and exported.

    python examples/report_page.py                       # output/report.html: a minute
    python examples/report_page.py --screenshot docs/figures/report.png

A screenshot needs Playwright and a Chromium.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras

import keras_qareg as qareg
from examples.study import at_least
from examples.training import digits, train

WIDTH = 1280


def page(folder: Path, epochs: int, share: float) -> Path:
    """Trains, plans, shares and exports, and writes the page of all that.

    Args:
        folder: Where the file and the page go.
        epochs: Of training; a third of them are tuning.
        share: The size of the file, in that of the float file.
    """
    (images, labels), _ = digits()
    model = train((images, labels), seed=0, epochs=epochs)
    plan = qareg.allocate(model, data=images[:256], target_ratio=share, weights="smallest")
    shared = qareg.share_weights(model, levels=plan)
    shared.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    shared.fit(images, labels, epochs=max(1, epochs // 3), batch_size=64, verbose=0)
    report = qareg.export.litert(shared, folder / "digits.tflite", plan.weights)
    print(report)
    return qareg.report.html(shared, folder / "report.html", model, export_report=report, plan=plan)


def screenshot(page: Path, picture: Path) -> None:
    """The top of a page, with its second kernel open, as Chromium shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.locator("#kernel-table button.opener").nth(1).click()
        tab.mouse.move(0, 0)
        height = tab.evaluate(
            "document.querySelector('#plan figure').getBoundingClientRect().bottom + scrollY + 24"
        )
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
        tab.screenshot(path=picture, full_page=True, clip=clip)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=at_least(1), default=15, help="default: 15")
    parser.add_argument("--share", type=float, default=0.15, help="default: 0.15 of the float file")
    parser.add_argument("--out", type=Path, default=Path("output"), help="default: output")
    parser.add_argument("--screenshot", type=Path, metavar="FILE.png", help="also draw the page")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = page(arguments.out, arguments.epochs, arguments.share)
    print(f"{written}: {written.stat().st_size:,} bytes. Open it in a browser")
    if arguments.screenshot is not None:
        screenshot(written, arguments.screenshot)


if __name__ == "__main__":
    main()
