"""The page that the command writes."""

import keras
import pytest

import keras_qareg as qareg
from tests.helpers import BACKEND, small_cnn
from tests.report.pages import Page, check
from tests.report.test_page import KERNELS, plan_for


@pytest.fixture
def shared(saved):
    """A shared model, beside the one before."""
    qareg.share_weights(small_cnn(), levels=4).save(saved / "shared.keras")
    return saved / "shared.keras"


def test_pages_of_models_and_files(saved, shared, run):
    plan_for(small_cnn()).save(saved / "plan.yaml")
    out = saved / "r.html"
    words = ("--reference", saved / "model.keras", "--plan", saved / "plan.yaml")
    status, printed, errors = run("report", shared, "--out", out, *words)
    assert (status, errors) == (0, "")
    assert printed == f"{out}: {out.stat().st_size:,} bytes. Open it in a browser\n"
    page = Page(out)
    check(page)
    errors = [row[6] for row in page.tables[KERNELS] if len(row) == 10][1:]
    assert all(float(error) > 0 for error in errors)
    model = keras.saving.load_model(shared)
    files = [qareg.export.save_archive(model, saved / "m.qareg")]
    if BACKEND == "tensorflow":
        files.append(qareg.export.litert(model, saved / "m.tflite").path)
    for file in files:
        assert run("report", file, "--out", out, "--force")[0] == 0
        check(Page(out))


def test_what_is_refused(saved, shared, refused):
    out = saved / "r.html"
    assert refused("report", shared, "--out", saved / "r.txt") == (
        f"Expected a file name that ends in '.html'. Received: {saved}/r.txt"
    )
    assert refused("report", saved / "data.npz", "--out", out) == (
        f"Expected a Keras model file (.keras or .h5). Received: {saved}/data.npz, which is a .npz file"
    )
    file = qareg.export.save_archive(small_cnn(), saved / "m.qareg")
    assert refused("report", file, "--out", out, "--plan", "p.yaml") == (
        f"Expected --plan with a model alone. Received: --plan with {file}"
    )
    assert refused("report", shared, "--out", out, "--reference", saved / "none.keras") == (
        f"Expected a Keras model file. Received: {saved}/none.keras, which does not exist"
    )
    assert "none.yaml" in refused("report", shared, "--out", out, "--plan", saved / "none.yaml")
    out.write_text("mine")
    assert refused("report", shared, "--out", out) == (
        f"Expected a new file for --out. Received: {out}, which exists. Add --force to replace it"
    )
    assert out.read_text() == "mine"
