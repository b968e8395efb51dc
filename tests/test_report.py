"""The table of levels and bytes, and the figures."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_qareg as qareg
from keras_qareg import plots, report
from keras_qareg.regularizers import NearestSquared
from tests.helpers import small_cnn


def test_summary_counts_bytes_and_bits():
    model = small_cnn(normalize=True)
    shared = qareg.share_weights(model, levels=4)
    summary = report.summary(shared)
    assert [row.path for row in summary.rows] == [
        "cnn/conv/kernel",
        "cnn/fc/kernel",
        "cnn/out/kernel",
    ]
    sizes = [54, 864, 160]
    assert [row.float_bytes for row in summary.rows] == [4 * size for size in sizes]
    assert [row.packed_bytes for row in summary.rows] == [-(-size // 4) + 4 + 4 for size in sizes]
    # Biases of 6 + 16 + 10 and four statistics of 6.
    assert summary.other_bytes == 4 * (32 + 24)
    assert summary.float_bytes == 4 * model.count_params()
    assert summary.entropy_bytes <= summary.packed_bytes
    for row, book in zip(summary.rows, qareg.codebooks(shared).values(), strict=True):
        assert row.levels == 4 and row.entropy == pytest.approx(book.entropy)
    kernel = ops.convert_to_numpy(model.get_layer("fc").kernel)
    book = list(qareg.codebooks(shared).values())[1]
    assert summary.rows[1].relative_error == pytest.approx(book.relative_error(kernel), rel=1e-3)


def test_summary_of_other_models():
    plain = report.summary(small_cnn())
    assert plain.rows[1].levels is None and plain.rows[1].entropy == 32.0
    assert plain.rows[1].packed_bytes == plain.rows[1].float_bytes
    shared = qareg.share_weights(qareg.quantization_aware(small_cnn(), NearestSquared(4)))
    stripped = report.summary(qareg.strip(shared))
    assert [row.levels for row in stripped.rows] == [4, 4, 4]
    assert stripped.packed_bytes == report.summary(shared).packed_bytes


def test_summary_prints_an_aligned_table():
    text = str(report.summary(qareg.share_weights(small_cnn(), levels=4)))
    lines = text.splitlines()
    assert lines[0].split() == [
        "kernel",
        "shape",
        "levels",
        "grid",
        "bits/weight",
        "rel.",
        "error",
        "float32",
        "packed",
    ]
    assert lines[2].split()[:3] == ["cnn/conv/kernel", "3x3x1x6", "4"]
    assert lines[-1].startswith("total") and len({len(line) for line in lines}) == 1


def test_summary_says_what_is_known_of_errors_channels_and_grids():
    model = small_cnn()
    plain = report.summary(model)
    assert [row.cells()[2:6] for row in plain.rows] == [("-", "-", "32.00", "-")] * 3
    assert plain.packed_bytes == plain.float_bytes  # also of the 54 weights of `conv`
    shared = qareg.share_weights(model, levels=4, table="even")
    stripped = qareg.strip(shared)
    errors = [row.relative_error for row in report.summary(shared).rows]
    assert all(0.01 < error < 0.3 for error in errors)
    for row in report.summary(stripped).rows:
        assert (row.levels, row.group_size, row.on_grid) == (4, 1, True)
        assert row.cells()[2:4] == ("4 a channel", "yes") and row.cells()[5] == "-"
    for summary in (report.summary(shared, model), report.summary(stripped, model)):
        assert [row.relative_error for row in summary.rows] == pytest.approx(errors, rel=1e-5)
        assert summary.rows[1].cells()[3] == "yes"
    off = report.summary(qareg.share_weights(model, levels=4, table="float32")).rows[1]
    assert (off.group_size, off.on_grid, off.cells()[2:4]) == (None, False, ("4", "no"))


class Mixer(keras.layers.Layer):
    """A layer whose kernel has another name."""

    def build(self, shape):
        self.mixer = self.add_weight(shape=(shape[-1], 8), name="mixer")

    def call(self, inputs):
        return inputs @ self.mixer


def test_summary_of_weights_of_other_names():
    model = keras.Sequential([keras.Input((12,)), Mixer(name="a")])
    assert report.summary(model).rows == ()
    assert report.summary(model, weights="mixer").rows[0].shape == (12, 8)
    shared = qareg.share_weights(model, levels=4, weights="mixer")
    rows = report.summary(shared).rows
    assert rows[0].levels == 4 and rows[0].relative_error > 0
    assert report.summary(shared, model, weights="mixer").rows == rows


def test_summary_against_a_reference_that_was_loaded(tmp_path):
    """Keras gives the weights of a loaded Sequential model other paths."""
    small_cnn().save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    shared = qareg.share_weights(model, levels=4)
    assert report.summary(shared, model).rows == report.summary(shared).rows
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")])
    with pytest.raises(ValueError) as caught:
        report.summary(shared, other)
    assert str(caught.value) == (
        "Expected `reference` with kernels of shapes [(3, 3, 1, 6), (54, 16), (16, 10)]. Received: "
        "[(4, 2)]"
    )


def test_weight_histograms_show_every_centroid(tmp_path):
    shared = qareg.share_weights(small_cnn(), levels=4)
    figure = plots.weight_histograms(shared)
    figure.savefig(tmp_path / "histograms.png")
    assert (tmp_path / "histograms.png").stat().st_size > 5000
    above, below = figure.axes[:3], figure.axes[3:]
    texts = [axis.get_title() for axis in above]
    assert texts[1].startswith("cnn/") and texts[1].splitlines()[-1].startswith("relative error ")
    books = qareg.codebooks(shared)
    for axis, after, (path, book) in zip(above, below, books.items(), strict=True):
        assert axis.get_title().startswith(path)
        np.testing.assert_array_equal(axis.lines[0].get_xdata(), book.centroids)
        assert sum(patch.get_height() for patch in axis.patches) == pytest.approx(100)
        heights = [segment[1][1] for segment in after.collections[0].get_segments()]
        np.testing.assert_allclose(heights, 100 * book.counts / book.indices.size)
    assert len(plots.weight_histograms(shared, max_kernels=1).axes) == 2


def test_weight_histograms_compare_models():
    """Figure 3 of arXiv 1907.00593: WNQ above LQ-Nets, levels as dots, the error in the title."""
    models = {
        "WNQ": qareg.wnq(small_cnn(), bits=1, skip=()),
        "LQ-Nets": qareg.wnq(small_cnn(), bits=2, skip=(), normalize=False),
    }
    figure = plots.weight_histograms(models, max_kernels=2)
    assert len(figure.axes) == 4
    labels = [axis.get_ylabel() for axis in figure.axes[::2]]
    assert labels == ["WNQ, % a bin", "LQ-Nets, % a bin"]
    for row, (model, levels) in enumerate(zip(models.values(), (2, 4), strict=True)):
        for column, (path, book) in enumerate(list(qareg.codebooks(model).items())[:2]):
            axis = figure.axes[2 * row + column]
            assert axis.get_title().startswith(f"{path}\nrelative error ")
            dots = axis.lines[0].get_xdata()
            np.testing.assert_array_equal(dots, book.centroids.reshape(-1))
            assert dots.size == levels * book.indices.shape[-1]
            assert sum(patch.get_height() for patch in axis.patches) == pytest.approx(100)
        above, below = figure.axes[row], figure.axes[row + 2]
        assert (above.get_xlim(), above.get_ylim()) == (below.get_xlim(), below.get_ylim())
    single = plots.weight_histograms(models["WNQ"])
    assert len(single.axes) == 6 and single.axes[0].get_ylabel() == "before, % a bin"


def test_penalty_curves_draw_the_penalties():
    figure = plots.penalty_curves(levels=3)
    names = [axis.get_title() for axis in figure.axes]
    assert names == ["Sine", "Cosine", "NearestSquared", "NearestExponential"]
    for axis in figure.axes:
        curve, dots = axis.lines
        assert len(dots.get_xdata()) == 3
        at_dots = np.interp(dots.get_xdata(), curve.get_xdata(), curve.get_ydata())
        assert (at_dots < 0.05).all() and curve.get_ydata().max() > 0.2


@pytest.mark.one_backend
def test_histograms_of_many_values_under_long_names_can_be_read():
    """No name covers another, and marks of 256 values are thin."""
    name = "encoder_of_the_second_stage_block_17"
    layers = [keras.layers.Dense(32, name=f"{name}_{place}") for place in range(3)]
    model = keras.Sequential([keras.Input((32,)), *layers], name="a_model_of_a_long_name")
    figure = plots.weight_histograms(qareg.share_weights(model, 256))
    figure.draw_without_rendering()
    titles = [axis.title.get_window_extent() for axis in figure.axes[:3]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(titles))
    assert figure.axes[0].lines[0].get_marker() == "|"
    assert figure.axes[3].collections[0].get_linewidth() < 0.5
    assert figure.get_size_inches()[0] == plots.style.WIDTH


@pytest.mark.one_backend
def test_legends_stand_below_the_curves_and_sizes_are_plain():
    series = {"ours": [(28_416, 83.4), (48_224, 84.5)], "a tool of others": [(95_000, 84.6)]}
    figure = plots.accuracy_size(series, reference=84.75, size_label="size of the file")
    figure.draw_without_rendering()
    (axis,), (legend,) = figure.axes, figure.legends
    assert legend.get_window_extent().y1 <= axis.xaxis.label.get_window_extent().y0
    assert [text.get_text() for text in legend.texts] == [*series, "float"]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert {"30 kB", "60 kB"} <= set(labels)


@pytest.mark.one_backend
def test_accuracy_size_sorts_its_points():
    figure = plots.accuracy_size({"ours": [(200, 0.9), (100, 0.8)], "theirs": [(150, 0.7)]})
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [100, 200])
    with pytest.raises(ValueError, match="Expected at least one"):
        plots.accuracy_size({})


def test_figures_of_nothing():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(40)], name="wide")
    with pytest.raises(ValueError, match="Expected a model with codebooks. Received: model 'wide'"):
        plots.weight_histograms(model)
