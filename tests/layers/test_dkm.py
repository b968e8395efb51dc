"""Layers that compute with mixtures of centroids in training, and with the nearest in inference."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import QuantizationAware
from keras_qareg.regularizers import DKM
from tests.helpers import arrays, compiled, digits, error_of, predict, small_cnn


def mixed(weights, centroids, temperature):
    """The formula, with a tensor of weights x centroids."""
    width = np.ptp(centroids) / (len(centroids) - 1)
    logits = -np.square(weights[..., None] - centroids) / (temperature * width**2)
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    return (attention * centroids).sum(-1) / attention.sum(-1)


@pytest.mark.parametrize("share, temperature", [(0.0, 0.5), (0.5, 0.05), (1.0, 0.005)])
def test_training_computes_with_mixtures_and_inference_with_the_nearest(share, temperature):
    inputs = np.eye(12, dtype="float32")
    layer = QuantizationAware(
        layers.Dense(5, use_bias=False), DKM(3, temperature=(0.5, 0.005)), table="float32"
    )
    kernel = predict(layer, inputs)  # not placed yet
    np.testing.assert_array_equal(kernel, layer.layer.kernel)
    layer.place_centroids()
    layer.strength.assign(share**6)
    (centroids,) = arrays(layer.centroids[0])
    (soft,) = arrays(layer(inputs, training=True))
    np.testing.assert_allclose(soft, mixed(kernel, centroids, temperature), atol=1e-5)
    hard = centroids[np.abs(kernel[..., None] - centroids).argmin(-1)]
    np.testing.assert_allclose(predict(layer, inputs), hard, atol=1e-6)
    np.testing.assert_array_equal(layer.codebooks()[0].weights, hard)
    assert float(sum(layer.losses)) == 0.0


@pytest.mark.filterwarnings("error:.*without a schedule")
def test_the_schedule_makes_it_hard(tmp_path):
    images, labels = digits(128)
    model = compiled(qareg.quantization_aware(small_cnn(normalize=True), DKM(4)))
    model.optimizer.learning_rate = 0.05
    schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=1)
    losses = model.fit(images, labels, epochs=6, verbose=0, callbacks=[schedule]).history["loss"]
    assert np.isfinite(losses).all() and float(model.get_layer("fc").strength) == 1.0
    for layer in ("conv", "fc", "out"):
        (book,) = model.get_layer(layer).codebooks()
        assert book.levels_used <= 4 and book.grid is not None
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(again, images), predict(model, images))
    assert again.get_layer("fc").regularizer.temperature == DKM(4).temperature
    plain = qareg.strip(model)
    np.testing.assert_allclose(predict(plain, images), predict(model, images), atol=1e-5)


def test_training_without_a_schedule_is_told():
    images, labels = digits(32)
    model = compiled(qareg.quantization_aware(small_cnn(), DKM(4)))
    with pytest.warns(
        UserWarning, match="without a schedule: they compute with their float kernels"
    ):
        model.fit(images, labels, verbose=0)


def test_bad_settings():
    assert error_of(DKM, 4, temperature=(0.1, 0.5)) == (
        "Expected `temperature` to be a pair of finite numbers (first, last) with 0 < last <= first. "
        "Received: temperature=(0.1, 0.5)"
    )
    assert error_of(QuantizationAware, layers.Dense(3), DKM(4), straight_through=False) == (
        "Expected `straight_through=True` with DKM, which is what layers compute with. Received: "
        "straight_through=False"
    )
    assert DKM(4, temperature=(1, 0.1)).with_levels(8).temperature == (1.0, 0.1)


@pytest.mark.parametrize("constant", [0.3, 0.0, -2e-5])
def test_constant_kernels_train(constant):
    start = keras.initializers.Constant(constant)
    plain = keras.Sequential(
        [keras.Input((8,)), layers.Dense(6, "relu", kernel_initializer=start), layers.Dense(2)]
    )
    model = qareg.quantization_aware(plain, DKM(levels=4))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(32, 8))
    schedule = qareg.callbacks.PenaltySchedule(0)
    model.fit(x, x[:, :2], epochs=3, verbose=0, callbacks=[schedule])
    assert all(np.isfinite(ops.convert_to_numpy(weight)).all() for weight in model.weights)
