"""The page: its numbers, that names of the user's are but text, and what is refused."""

import dataclasses
import math
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert.differences import LayerDifference
from keras_qareg.export.litert.forms import KernelForm
from keras_qareg.export.litert.proof import ExportReport
from keras_qareg.export.litert.sections import Sections
from keras_qareg.plans import Plan, PlannedKernel
from keras_qareg.report import figures, html, summary
from keras_qareg.report.markup import DASH, TIMES
from tests.helpers import error_of, small_cnn, tensorflow_only
from tests.report.pages import Page, check

KERNELS = "Each kernel, in the order of the model"
SECTIONS = Sections(1200, 80, 128, 12, 90, 60, 430)


def plan_for(model):
    """A plan with a curve, of four levels for each kernel."""
    rows = [
        PlannedKernel(row.path, math.prod(row.shape), 4, row.packed_bytes, 0.01 * (place + 1))
        for place, row in enumerate(summary(model).rows)
    ]
    curve, uniform = ((900, 0.5), (1500, 0.03), (3000, 1e-4)), {2: (1000, 0.6), 16: (2500, 2e-4)}
    return Plan("smallest", 1500, 0.03, rows=tuple(rows), curve=curve, uniform=uniform)


def report_for(model, path):
    """A report as `export.litert` makes it."""
    forms = [
        KernelForm(f"t{place}", row.path, "int8", 4, 100 + place, place != 1, "", (0, place))
        for place, row in enumerate(summary(model).rows)
    ]
    sizes = {"bytes": SECTIONS.total, "gzip_bytes": 1500, "zstd_bytes": 1400, "float_bytes": 6000}
    return ExportReport(
        path=path,
        weights="smallest",
        **sizes,
        max_output_difference=1e-6,
        output_range=2.5,
        distinct_values={},
        batch_size=None,
        runtime_version="2.14.0",
        kernels=tuple(forms),
        delegated={"t0": True, "t1": False},
        time_ratio=1.25,
        sections=SECTIONS,
        differences=(LayerDifference("fc", 31.4), LayerDifference("conv", math.inf)),
    )


def test_numbers_are_those_of_the_summary(tmp_path):
    model = small_cnn(normalize=True)
    shared = qareg.share_weights(model, levels=4)
    assert html(shared, str(tmp_path / "r.html"), model) == tmp_path / "r.html"
    page, want = Page(tmp_path / "r.html"), summary(shared, model)
    check(page)
    found = [row for row in page.tables[KERNELS] if len(row) == 9]
    assert found[0] == [
        *("Kernel", "Shape", "Weights", "Levels", "Grid", "Bits a weight"),
        *("Relative error", "Bytes as float32", "Bytes packed"),
    ]
    for cells, row in zip(found[1:], want.rows, strict=True):
        assert cells[:2] == [row.path, TIMES.join(map(str, row.shape))]
        assert cells[2:6] == [f"{math.prod(row.shape):,}", "4", "yes", f"{row.entropy:.2f}"]
        assert float(cells[6]) == pytest.approx(row.relative_error, rel=1e-2)
        assert cells[7:] == [f"{row.float_bytes:,}", f"{row.packed_bytes:,}"]
    assert sum(page.bytes()) == want.packed_bytes and len(page.bytes()) == 4
    for number in (want.packed_bytes, want.entropy_bytes, want.float_bytes):
        assert f"{number:,} bytes" in page.text
    again = html(shared, tmp_path / "again.html", model).read_bytes()
    assert again == (tmp_path / "r.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.html", "r.html"]


def test_what_a_plan_and_an_export_say(tmp_path):
    model = small_cnn()
    shared = qareg.share_weights(model, levels=4)
    plan, report = plan_for(shared), report_for(shared, tmp_path / "m.tflite")
    html(shared, tmp_path / "r.html", export_report=report, plan=plan)
    page = Page(tmp_path / "r.html")
    check(page)
    kernels = [row for row in page.tables[KERNELS] if len(row) == 10]
    assert [row[-1] for row in kernels] == ["Loss", "0.01", "0.02", "0.03"]
    parts = page.tables["What the bytes of the file are for"]
    numbers = [int(row[1].replace(",", "")) for row in parts[1:]]
    assert numbers == [*dataclasses.astuple(SECTIONS), SECTIONS.total]
    planned = page.tables["What the plan expects of each kernel"]
    assert [row[5] for row in planned[1:]] == ["0.01", "0.02", "0.03"]
    points = page.tables["Bytes and losses"][1:]
    assert points[0] == ["by budget", "900", "0.5"] and points[-1] == ["this plan", "1,500", "0.03"]
    layers_ = page.tables["Each layer, the furthest from Keras first"]
    assert [row[:2] for row in layers_[1:]] == [["fc", "31.4"], ["conv", "equal"]]
    assert 'data-key="Infinity"' in page.text
    forms = page.tables["Each constant of two or more axes in the file"]
    assert [row[3:6] for row in forms[1:]] == [
        ["100", "yes", "yes"],
        ["101", "to rounding", "no"],
        ["102", "yes", DASH],
    ]
    assert f"{SECTIONS.total:,} bytes, 0.333 of the float32 file" in page.text


def test_a_plan_of_a_model_that_was_loaded(tmp_path):
    """Keras gives the weights of a loaded Sequential model other paths."""
    model = small_cnn()
    qareg.share_weights(model, levels=4).save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    html(loaded, tmp_path / "r.html", model, plan=plan_for(model))
    kernels = [row for row in Page(tmp_path / "r.html").tables[KERNELS] if len(row) == 10]
    assert [row[-1] for row in kernels[1:]] == ["0.01", "0.02", "0.03"]


def test_models_of_all_kinds(tmp_path):
    model = small_cnn()
    model.get_layer("out").kernel.assign(np.full((16, 10), np.nan))
    model.get_layer("fc").kernel.assign(np.zeros((54, 16)))
    for kind in (
        model,
        qareg.wnq(small_cnn(), skip=()),
        qareg.share_weights(small_cnn(), 300 // 2),
    ):
        check(Page(html(kind, tmp_path / "r.html")))
    path = html(
        qareg.share_weights(small_cnn(), 4, table="float32", scale="kernel"),
        path=tmp_path / "r.html",
    )
    assert Page(path).tables["How many weights have each"][0] == ["value", "weights", "share"]


def test_names_are_text(tmp_path):
    names = [
        '<script>alert("1")',
        "<img src=x onerror=alert(2)>",
        "a&amp;'b\u202e\0",
    ]
    stack = [layers.Dense(3, name=name) for name in names]
    model = keras.Sequential([keras.Input((4,)), *stack], name="<b>$style")
    report = report_for(model, tmp_path / "<i>.tflite")
    report = dataclasses.replace(
        report, micro="<u>", differences=(LayerDifference("</script><b>/x\ud800", 3.0),)
    )
    page = Page(html(model, tmp_path / "r.html", export_report=report, plan=plan_for(model)))
    check(page)
    assert not {"b", "i", "u"} & {tag for tag, _ in page.elements}
    found = [row[0] for row in page.tables[KERNELS] if len(row) == 10][1:]
    want = [f"{model.name}/{name}/kernel" for name in names]
    assert found == [name.replace("\0", "\ufffd") for name in want]


def test_an_archive(tmp_path):
    shared = qareg.share_weights(small_cnn(normalize=True), levels=4)
    file = qareg.export.save_archive(shared, tmp_path / "m.qareg")
    page = Page(html(file, tmp_path / "r.html"))
    check(page)
    parts = page.tables["What the bytes of the file are for"][1:]
    sizes = [int(row[1].replace(",", "")) for row in parts]
    assert sum(sizes[:-1]) == sizes[-1] == file.stat().st_size
    tensors = [row for row in page.tables["Each tensor, in the order of the file"] if len(row) == 6]
    assert [row[0] for row in tensors[1:]] == [
        weight.path for weight in qareg.strip(shared).weights
    ]
    own = [int(row[5].replace(",", "")) for row in tensors[1:] if row[5] != DASH]
    assert own and sum(own) == sizes[0]
    assert sum(page.bytes()) == sizes[0] + sizes[1]
    old = Page(html("tests/data/version_1.qareg", tmp_path / "old.html"))
    check(old)


@tensorflow_only
def test_a_litert_file(tmp_path):
    shared = qareg.share_weights(small_cnn(), levels=4)
    report = qareg.export.litert(shared, tmp_path / "m.tflite", "smallest")
    page = Page(html(report.path, tmp_path / "r.html"))
    check(page)
    parts = page.tables["What the bytes of the file are for"][1:]
    sizes = {row[0].split()[0]: int(row[1].replace(",", "")) for row in parts}
    assert sizes["the"] == report.bytes == report.path.stat().st_size
    wanted = {name: size for name, size in dataclasses.asdict(report.sections).items() if size}
    assert {name: size for name, size in sizes.items() if name != "the"} == wanted
    constants = [
        row for row in page.tables["Each constant, in the order of the file"] if len(row) == 6
    ]
    by_role = {}
    for row in constants[1:]:
        by_role[row[1]] = by_role.get(row[1], 0) + int(row[5].replace(",", ""))
    assert by_role["weights"] == report.sections.weights
    assert page.tables["The operators of the file"][1:]
    # The very model of the file.
    page = Page(html(shared, tmp_path / "r.html", export_report=report))
    assert (
        page.tables["Each constant of two or more axes in the file"][1][0]
        in summary(shared).rows[0].path
        or len(page.tables) > 3
    )


@pytest.mark.one_backend
def test_distributions():
    rng = np.random.default_rng(0)
    after = rng.choice([-1.0, 0.25, 2.0], 300, p=[0.2, 0.5, 0.3])
    drawn = figures.distribution(rng.normal(size=3000), after, 'of "all"')
    assert 'aria-label="of &quot;all&quot;"' in drawn
    heights = [float(part) for part in re.findall(r"M[\d.]+ 200v-([\d.]+)", drawn)]
    counts = np.unique(after, return_counts=True)[1]
    np.testing.assert_allclose(heights, 78 * counts / counts.max(), atol=0.051)
    bars = re.search(r'd="(M8 100V[^"]+)" class="before bars"', drawn)[1]
    assert bars.count("H") == figures.BINS
    assert f"weights after: up to {counts.max()} a value" in drawn
    assert figures.distribution(None, np.array([np.nan]), "") is None
    assert figures.distribution(np.zeros(4), None, "") is not None
    assert figures.curve([], {}, (10, 0.0), "") is None


def of_errors(tmp_path):
    """What is refused, and in which words."""
    model, page = small_cnn(), tmp_path / "r.html"
    none = keras.Sequential([keras.Input((4,)), layers.ReLU()], name="none")
    other = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a")], name="other")
    (tmp_path / "data.bin").write_bytes(b"0123456789")
    (tmp_path / "bad.tflite").write_bytes(b"0000TFL3" + bytes(20))
    paths = [row.path for row in summary(model).rows]
    rows = tuple(dataclasses.replace(row, weights=7) for row in plan_for(model).rows)
    yield (
        (model, tmp_path / "r.htm"),
        {},
        (f"Expected a file name that ends in '.html'. Received: {tmp_path}/r.htm"),
    )
    yield (
        (model, tmp_path / "no" / "r.html"),
        {},
        (f"Expected a folder that exists. Received: {tmp_path}/no, which does not"),
    )
    yield (
        (none, page),
        {},
        (
            "Expected a model with kernels. Received: model 'none', which has none. Kernels with names "
            "of their own go into `weights`."
        ),
    )
    yield (
        (tmp_path / "data.bin", page),
        {},
        (
            "Expected a Keras model, a .tflite file or an archive of keras_qareg. Received: "
            f"{tmp_path}/data.bin, which is none of these files. Open a model with "
            "keras.saving.load_model first."
        ),
    )
    yield (
        (model, page, other),
        {},
        (
            "Expected `reference` with kernels of shapes [(3, 3, 1, 6), (54, 16), (16, 10)]. Received: "
            "[(4, 2)]"
        ),
    )
    yield (
        (model, page),
        {"export_report": report_for(other, page)},
        (
            f"Expected `export_report` of model 'cnn', with kernels among {paths}. Received: one with "
            "'other/a/kernel'"
        ),
    )
    yield (
        (model, page),
        {"plan": plan_for(other)},
        (
            f"Expected `plan` of model 'cnn', with kernels among {paths}. Received: one with "
            "'other/a/kernel'"
        ),
    )
    yield (
        (model, page),
        {"plan": dataclasses.replace(plan_for(model), rows=rows)},
        ("Expected `plan` of this model, with 54 weights in 'cnn/conv/kernel'. Received: 7"),
    )
    yield (
        (tmp_path / "data.bin", page),
        {"plan": plan_for(model)},
        (f"Expected `plan` with a Keras model. Received: `plan` with the file {tmp_path}/data.bin"),
    )


def test_what_is_refused(tmp_path):
    page = tmp_path / "r.html"
    page.write_text("mine")
    for arguments, keywords, said in of_errors(tmp_path):
        assert error_of(html, *arguments, **keywords) == said
    assert "Expected a readable .tflite file" in error_of(html, tmp_path / "bad.tflite", page)
    with pytest.raises(FileNotFoundError):
        html(tmp_path / "absent.tflite", page)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["bad.tflite", "data.bin", "r.html"] and page.read_text() == "mine"
