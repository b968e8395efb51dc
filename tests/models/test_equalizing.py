"""Channels of one spread: outputs stay what they are."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.models.equalizing import equalize


def spread(kernel, axes):
    values = ops.convert_to_numpy(kernel)
    return np.sqrt(np.mean(values**2, axis=tuple(range(values.ndim - axes))))


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    norm = layers.BatchNormalization
    x = inputs = keras.Input((8, 8, 3))
    x = norm(name="n1")(layers.Conv2D(6, 3, name="conv")(x))
    x = norm(name="n2", epsilon=0.5)(layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(x))
    x = norm(name="n3", scale=False)(layers.Conv2D(4, 1, name="no_gamma")(layers.ReLU()(x)))
    x = norm(name="n4")(layers.Conv2D(4, 1, name="bounded", kernel_constraint="max_norm")(x))
    x = norm(name="n5")(layers.Dense(5, name="dense", use_bias=False)(layers.Flatten()(x)))
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        sizes = rng.uniform(0.2, 3, weight.shape[-1:]) * rng.uniform(0.5, 1.5, weight.shape)
        signs = 1 if "variance" in weight.path else rng.choice([-1, 1], weight.shape)
        weight.assign(sizes * signs)
    return model


def test_outputs_stay_and_channels_have_one_spread(model):
    x = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype("float32")
    before = model.predict(x, verbose=0)
    kept = {n: ops.convert_to_numpy(model.get_layer(n).kernel) for n in ("no_gamma", "bounded", "last")}
    equalize(model)
    after = model.predict(x, verbose=0)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    for name, axes in (("conv", 1), ("deep", 2), ("dense", 1)):
        found = spread(model.get_layer(name).kernel, axes)
        np.testing.assert_allclose(found, found.mean(), rtol=1e-5)
    for name, kernel in kept.items():
        np.testing.assert_array_equal(ops.convert_to_numpy(model.get_layer(name).kernel), kernel)


@pytest.mark.one_backend
def test_a_dead_channel_and_one_that_others_read_too_stay():
    conv, norm = layers.Conv2D(3, 1, name="conv", use_bias=False), layers.BatchNormalization()
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, norm(conv(inputs)))
    conv.kernel.assign(np.reshape([1.0, 1e-9, 4.0], (1, 1, 1, 3)))
    equalize(model)
    np.testing.assert_allclose(np.ravel(conv.kernel), [2.0, 1e-9, 2.0], rtol=1e-6)
    both = keras.Model(inputs, [norm(y := conv(inputs)), y])
    conv.kernel.assign(np.reshape([1.0, 1.0, 4.0], (1, 1, 1, 3)))
    equalize(both)
    assert np.ravel(conv.kernel).tolist() == [1.0, 1.0, 4.0]


@pytest.mark.one_backend
def test_a_wrapped_layer(model):
    wrapped = qareg.quantization_aware(model, qareg.regularizers.NearestSquared(4))
    equalize(wrapped)
    found = spread(wrapped.get_layer("conv").layer.kernel, 1)
    np.testing.assert_allclose(found, found.mean(), rtol=1e-5)
