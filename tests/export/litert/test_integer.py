"""Int8 files that keep the codes of a grid."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert import flatbuffer, integer
from keras_qareg.export.litert.runtime import run_litert
from tests.export.litert.test_micro import IMAGES, RNG, network
from tests.helpers import BACKEND, error_of, predict

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)


def stored(path):
    """The codes and the scales of each int8 kernel, by its places."""
    model = flatbuffer.read(path.read_bytes())
    return {
        (constant.graph, constant.tensor): (
            constant.values,
            np.array(model.subgraphs[0].tensors[constant.tensor].quantization.scale, "float32"),
        )
        for constant in flatbuffer.constants(model, "int8")
    }


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("levels", [3, 16])
def test_codes_of_a_grid_are_kept(levels, normalize, tmp_path, monkeypatch):
    model = qareg.share_weights(network(normalize), levels, table="even")
    kernels = {w.path: np.array(w) for w in qareg.layers.kernels(qareg.strip(model))}
    path = tmp_path / "m.tflite"
    report = qareg.export.litert(model, path, "int8", IMAGES)
    files = stored(path)
    assert len(report.kernels) == 4
    for form in report.kernels:
        codes, scales = files[form.place]
        gaps = np.diff(np.unique(codes.astype("int32")))
        assert form.reason == "" and set(gaps) == {gaps[0]} and gaps[0] in (2, 4, 8, 16, 32, 64)
        assert np.unique(np.abs(codes.astype("int32"))).size <= levels // 2 + 1
        if form.exact:
            values = codes.astype("float32") * scales.reshape(
                [-1] + [1] * (codes.ndim - 1) if codes.shape[0] == scales.size else [1, 1, 1, -1]
            )
            np.testing.assert_array_equal(np.unique(values), np.unique(kernels[form.path]))
    assert all(form.exact for form in report.kernels if not normalize)
    ours = run_litert(path, IMAGES)[0]
    monkeypatch.setattr(integer, "_grid", lambda *_: (None, "left"))
    report = qareg.export.litert(model, path, "int8", IMAGES)
    assert {form.reason for form in report.kernels} == {"left"}
    want, theirs = predict(model, IMAGES), run_litert(path, IMAGES)[0]
    # Three levels are -127, 0 and 127 for the converter too.
    most = 1.05 if levels == 3 else 1.0
    assert np.square(ours - want).mean() < most * np.square(theirs - want).mean()


def test_negative_factors_and_channels_of_zeros(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.Conv2DTranspose(6, 3),
            layers.Conv2D(4, 3),
        ]
    )
    gamma = np.array([-1.5, 0, 1, 0.1, -0.01, 2, 1, 1], "float32")
    model.layers[1].gamma.assign(gamma)
    shared = qareg.share_weights(model, 16, table="even")
    report = qareg.export.litert(shared, tmp_path / "m.tflite", "int8", IMAGES)
    assert [form.reason for form in report.kernels] == [""] * 3
    want = predict(shared, IMAGES)
    (got,) = run_litert(tmp_path / "m.tflite", IMAGES)
    assert np.abs(got - want).max() < 0.06 * np.abs(want).max()
    for codes, _ in stored(tmp_path / "m.tflite").values():
        assert np.unique(np.abs(codes.astype("int32"))).size <= 9


def test_other_kernels_are_rounded_as_ever(tmp_path):
    shared = qareg.share_weights(network(), 16, table="float32")
    report = qareg.export.litert(shared, tmp_path / "m.tflite", "int8", IMAGES)
    assert {form.reason for form in report.kernels} == {
        "rounded: its values are on no evenly spaced grid"
    }
    words = keras.Sequential(
        [keras.Input((5,)), layers.Embedding(50, 16), layers.Dense(40, name="head")]
    )
    shared = qareg.share_weights(words, 4, table="even")
    report = qareg.export.litert(
        shared, tmp_path / "m.tflite", "int8", RNG.integers(0, 50, (20, 5))
    )
    # The converter gives what GATHER takes a zero point, as outputs have.
    assert {form.path: form.reason for form in report.kernels} == {
        None: "no kernel with few values",
        f"{words.name}/head/kernel": "",
    }


def test_wrong_codes_leave_no_file(tmp_path, monkeypatch):
    model, right = qareg.share_weights(network(), 16, table="even"), integer._grid

    def wrong(*arguments):
        grid, reason = right(*arguments)
        return (grid[0][::-1], grid[1]), reason

    monkeypatch.setattr(integer, "_grid", wrong)
    message = error_of(qareg.export.litert, model, tmp_path / "m.tflite", "int8", IMAGES)
    assert "to hold the grid of kernel 'net/" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factor", [0.0, 1e-30])
@pytest.mark.parametrize("table", ["even", "int8"])
def test_biases_beside_tiny_kernels_and_zeros_stay(table, factor, tmp_path):
    """In steps of the kernel they would not fit 32 bits."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((48,)), layers.Dense(48, name="tiny"), layers.ReLU(), layers.Dense(4)]
    )
    tiny = model.layers[0]
    tiny.kernel.assign(factor * np.array(tiny.kernel))
    tiny.bias.assign(RNG.normal(size=48))
    shared = qareg.share_weights(model, 16, table=table)
    data = RNG.normal(size=(64, 48)).astype("float32")
    report = qareg.export.litert(shared, tmp_path / "m.tflite", "int8", data)
    assert report.max_output_difference <= 0.03 * report.output_range
