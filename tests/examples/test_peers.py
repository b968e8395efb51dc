"""The reference quantizers, against their formulas."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from examples import peers
from tests.helpers import gradients

KERNEL = np.linspace(-1.0, 0.8, 2 * 2 * 3 * 4).astype("float32").reshape(2, 2, 3, 4)


def built(kind, bits, activation_bits=None):
    layer = kind(4, 2, bits=bits, activation_bits=activation_bits, name="conv")
    layer.build((None, 5, 5, 3))
    layer.kernel.assign(KERNEL)
    layer.start()
    return layer


def network():
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 3))
    for name in ("first", "second", "third"):
        x = layers.Conv2D(4, 3, activation="relu", name=name)(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))


def kernel_of(layer):
    return ops.convert_to_numpy(layer.quantized_kernel())


def test_dorefa():
    one = kernel_of(built(peers.DoReFa, 1))
    np.testing.assert_allclose(one, np.where(KERNEL >= 0, 1, -1) * np.abs(KERNEL).mean(), rtol=1e-6)
    two = kernel_of(built(peers.DoReFa, 2))
    bounded = np.tanh(KERNEL) / (2 * np.abs(np.tanh(KERNEL)).max()) + 0.5
    np.testing.assert_allclose(two, 2 * np.round(3 * bounded) / 3 - 1, atol=1e-6)
    inputs = np.array([0.0, 0.2, 0.6, 3.0], "float32")
    found = ops.convert_to_numpy(built(peers.DoReFa, 2, 2).quantized_inputs(inputs))
    np.testing.assert_allclose(found, [0, 1 / 3, 2 / 3, 1], atol=1e-6)


def test_twn():
    found = kernel_of(built(peers.TWN, 2))
    large = np.abs(KERNEL) > 0.7 * np.abs(KERNEL).mean()
    level = np.abs(KERNEL[large]).mean()
    np.testing.assert_allclose(found, np.where(large, level * np.sign(KERNEL), 0), rtol=1e-6)


def test_lsq():
    layer = built(peers.LSQ, 3, 2)
    step = 2 * np.abs(KERNEL).mean() / np.sqrt(3)
    found = kernel_of(layer)
    np.testing.assert_allclose(found, step * np.clip(np.round(KERNEL / step), -4, 3), rtol=1e-5)
    layer.input_step.assign(0.5)
    inputs = np.array([[0.1, 0.7, 9.0]], "float32")
    found = ops.convert_to_numpy(layer.quantized_inputs(inputs))
    np.testing.assert_allclose(found, [[0.0, 0.5, 1.5]], rtol=1e-6)


def test_the_gradients_of_lsq_are_those_of_the_paper():
    step = np.float32(0.3)

    def total(values, step):
        return ops.sum(peers._stepped(values, step, -2, 1, KERNEL.shape))

    _, (by_values, by_step) = gradients(total, KERNEL, step)
    codes = KERNEL / step
    inside = (codes > -2) & (codes < 1)
    np.testing.assert_allclose(by_values, inside, atol=1e-5)
    terms = np.where(inside, np.round(codes) - codes, np.clip(codes, -2, 1))
    np.testing.assert_allclose(by_step, terms.sum() / np.sqrt(KERNEL.size), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "bits", "inputs"),
    [(peers.DoReFa, 1, None), (peers.TWN, 2, None), (peers.LSQ, 2, 2), (peers.DoReFa, 3, 3)],
)
def test_a_model_is_converted_and_trained(kind, bits, inputs):
    model, random = network(), np.random.default_rng(0)
    images = random.uniform(size=(32, 8, 8, 3)).astype("float32")
    found = peers.quantized(model, kind, bits, inputs, images)
    changed = [layer.name for layer in found.layers if isinstance(layer, peers.Peer)]
    assert changed == ["second", "third"]
    for old, new in zip(model.layers, found.layers, strict=True):
        for before, after in zip(old.weights, new.weights, strict=False):
            np.testing.assert_array_equal(before, after)
    found.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = ops.convert_to_numpy(ops.copy(found.get_layer("second").kernel))
    found.fit(images, random.integers(0, 2, 32), verbose=0)
    assert np.abs(before - ops.convert_to_numpy(found.get_layer("second").kernel)).max() > 0
    assert len(np.unique(kernel_of(found.get_layer("second")))) <= 2**bits
    if kind is peers.LSQ:
        assert 0 < float(ops.convert_to_numpy(found.get_layer("third").input_step)) < 1


def test_bits_that_a_quantizer_does_not_have_are_refused():
    for kind, bits in ((peers.LSQ, 1), (peers.TWN, 3)):
        with pytest.raises(ValueError, match=f"for {kind.__name__}. Received: bits={bits}"):
            peers.quantized(network(), kind, bits)
