"""Weights shared on a grid: whole numbers times one step, before and after tuning."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.layers import SharedWeights
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import grid_codes
from tests.helpers import BACKEND, compiled, digits, error_of, predict, small_cnn


def assert_on_grid(books, levels):
    codes = grid_codes(levels).astype("float32")
    for path, book in books.items():
        steps = book.centroids[codes == 1][0]
        assert steps.shape == book.indices.shape[-1:]
        wanted = np.multiply.outer(codes, steps)
        np.testing.assert_array_equal(book.centroids, wanted, err_msg=path)


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_tuning_stays_on_the_grid(levels, tmp_path):
    images, labels = digits(128)
    shared = compiled(qareg.share_weights(small_cnn(), levels, snap=True))
    before = qareg.codebooks(shared)
    assert_on_grid(before, levels)
    losses = shared.fit(images, labels, epochs=4, verbose=0).history["loss"]
    after = qareg.codebooks(shared)
    assert_on_grid(after, levels)
    assert losses[-1] < losses[0]
    for path, book in after.items():
        np.testing.assert_array_equal(book.indices, before[path].indices)
        assert not np.array_equal(book.centroids, before[path].centroids)
    plain = qareg.strip(shared)
    for weight in qareg.layers.kernels(plain):
        np.testing.assert_array_equal(weight, after[weight.path].weights)
    np.testing.assert_allclose(predict(plain, images), predict(shared, images), atol=1e-5)
    shared.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(again, images), predict(shared, images))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT export needs TensorFlow")
def test_a_tuned_grid_becomes_small_integers(tmp_path):
    images, labels = digits(128)
    shared = compiled(qareg.share_weights(small_cnn(normalize=True), 4, snap=True))
    shared.fit(images, labels, epochs=2, verbose=0)
    for model in (shared, qareg.strip(shared)):
        report = qareg.export.litert(model, tmp_path / "model.tflite", "int2-exact")
        assert {kernel.form for kernel in report.kernels} == {"int2"}
        assert report.max_output_difference < 1e-5 * max(1.0, report.output_range)


def test_sine_trained_on_a_grid_is_shared_on_it():
    images, labels = digits(128)
    model = qareg.quantization_aware(small_cnn(), qareg.regularizers.Sine(4, snap=True))
    compiled(model).fit(
        images, labels, epochs=6, verbose=0, callbacks=[qareg.callbacks.PenaltySchedule()]
    )
    trained = np.array(model.get_layer("fc").centroids[0])
    shared = qareg.share_weights(model, snap=True)
    assert_on_grid(qareg.codebooks(shared), 4)
    found = shared.get_layer("fc").codebooks()[0].centroids
    np.testing.assert_allclose(found.mean(axis=1), trained, rtol=0.35, atol=1e-6)


def test_bad_grids():
    assert error_of(qareg.share_weights, small_cnn(), 4, method="kmeans", snap=True) == (
        "Expected method='auto' or 'uniform' with snap=True, which makes centroids evenly spaced. "
        "Received: method='kmeans'"
    )
    layer = SharedWeights(layers.Dense(3), levels=4, snap=True)
    layer.build((None, 4))
    book = Codebook([-0.5, -0.2, 0.0, 0.2], np.zeros((4, 3), "uint8"))
    assert "Expected centroids that are [-2, -1, 0, 1] times a step. Received: [-0.5" in error_of(
        layer.assign_codebooks, [book]
    )
