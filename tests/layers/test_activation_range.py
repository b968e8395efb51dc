"""Ranges of activations and kernels of integers: one layer at a time."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_qareg.layers import ActivationRange, IntegerKernels
from tests.helpers import arrays, compiled, digits, error_of, gradients, predict
from tests.layers.test_layers import conformance_test

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("arguments", "trainable", "fixed"),
    [({}, 2, 3), ({"bits": 16}, 1, 3), ({"fixed": (1 / 256, -128)}, 0, 3)],
    ids=["8", "16", "fixed"],
)
def test_ranges_conform_to_keras(arguments, trainable, fixed):
    conformance_test(
        ActivationRange,
        arguments,
        input_shape=(2, 5),
        expected_output_shape=(2, 5),
        expected_num_trainable_weights=trainable,
        expected_num_non_trainable_weights=fixed,
        expected_num_seed_generators=0,
        supports_masking=True,
        run_training_check=False,  # without a range it warns
    )


@pytest.mark.parametrize("layer", [layers.Dense(3), layers.Conv1D(3, 1), layers.DepthwiseConv1D(1)])
def test_integer_kernels_conform_to_keras(layer):
    conformance_test(
        IntegerKernels,
        {"layer": layer, "bits": 5},
        input_shape=(2, 5, 3),
        expected_output_shape=(2, 5, 3),
        expected_num_trainable_weights=2,
        expected_num_non_trainable_weights=0,
        expected_num_seed_generators=0,
    )


def test_a_range_passes_inputs_on_until_it_is_placed():
    layer, x = ActivationRange(name="range"), RNG.normal(size=(4, 3)).astype("float32")
    np.testing.assert_array_equal(predict(layer, x), x)
    assert error_of(layer.grid) == (
        "Expected layer 'range' to have a range. Received: one that was never placed. "
        "Pass `data` to keras_qareg.quantize_activations, or load trained weights."
    )
    with pytest.warns(UserWarning, match="'range' is trained before it has a range: it passes on"):
        layer(x, training=True)
    layer.place(-1.0, 1.55)
    assert layer.grid() == (np.float32(0.01), -28)
    expected = np.clip(np.rint(x / np.float32(0.01)), -100, 155) * np.float32(0.01)
    np.testing.assert_allclose(predict(layer, x), expected, atol=1e-7)
    layer.stretch.assign(np.log(2.0))
    layer.shift.assign(-0.6)
    step, zero_point = layer.grid()
    assert np.isclose(step, 0.02) and zero_point == -29
    values = np.unique(predict(layer, np.linspace(-9, 9, 5000)[None]))
    np.testing.assert_allclose(values, step * (np.arange(-128, 128) + 29), rtol=1e-6, atol=1e-7)
    layer.place(0.0, 1.0)
    assert layer.grid() == (np.float32(1 / 255), -128)


def test_a_fixed_range_stays():
    layer = ActivationRange(fixed=(1 / 256, -128))
    layer.build((None, 4))
    layer.place(-3.0, 5.0)
    assert layer.grid() == (np.float32(1 / 256), -128) and not layer.trainable_weights
    assert predict(layer, np.array([[0.5, 0.9999, 1.0]])).tolist() == [[0.5, 255 / 256, 255 / 256]]


def test_gradients_reach_inputs_and_range():
    layer = ActivationRange()
    layer.build((None, 3))
    layer.place(-1.0, 1.0)
    x = RNG.normal(size=(6, 3)).astype("float32")
    upstream = RNG.normal(size=x.shape).astype("float32")

    def loss(x, stretch, shift):
        learned = layer.stateless_call([stretch, shift], layer.non_trainable_variables, x)[0]
        return ops.sum(learned * ops.array(upstream))

    assert [v.name for v in layer.trainable_variables] == ["stretch", "shift"]
    _, (by_x, by_stretch, by_shift) = gradients(loss, x, np.float32(0.0), np.float32(0.0))
    step, zero = layer.grid()
    codes = np.rint(x / step) + zero
    inside = (codes >= -128) & (codes <= 127)
    np.testing.assert_array_equal(by_x, np.where(inside, upstream, 0))
    rounded = np.clip(codes, -128, 127) - zero
    by_step = (upstream * np.where(inside, rounded - x / step, rounded)).sum()
    np.testing.assert_allclose(by_stretch, step * by_step, rtol=1e-4)
    np.testing.assert_allclose(by_shift, -step * (upstream * ~inside).sum(), rtol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_fit_save_and_load(tmp_path, policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        shared = ActivationRange(name="shared")
        inputs = keras.Input((8, 8, 1))
        left = IntegerKernels(layers.Conv2D(3, 3), name="left")(ActivationRange(name="in")(inputs))
        right = IntegerKernels(layers.Conv2D(3, 3), name="right")(inputs)
        hidden = layers.Concatenate()([shared(left), shared(right)])
        outputs = IntegerKernels(layers.Dense(10), name="out")(layers.Flatten()(hidden))
        model = compiled(keras.Model(inputs, outputs), run_eagerly=False)
    finally:
        keras.config.set_dtype_policy("float32")
    images, labels = digits(64)
    for name, top in (("in", 1.0), ("shared", 2.0)):
        model.get_layer(name).place(-top / 2, top)
    first = model.get_layer("shared").grid()
    model.fit(images, labels, epochs=2, verbose=0)
    assert all(v.dtype == "float32" for v in shared.weights)
    assert shared.grid() != first
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("shared").grid() == shared.grid()
    np.testing.assert_array_equal(predict(loaded, images), predict(model, images))


def test_codebooks_are_the_kernels_in_use():
    layer = IntegerKernels(layers.DepthwiseConv2D(3, depth_multiplier=2), bits=4)
    layer.build((None, 6, 6, 3))
    layer.kernels[0].assign(RNG.normal(size=(3, 3, 3, 2)))
    (book,) = layer.codebooks()
    np.testing.assert_array_equal(book.weights, arrays(layer.used_kernels()[0])[0])
    assert book.centroids.shape == (15, 3, 2)


@pytest.mark.one_backend
def test_bad_arguments():
    said = "Expected `bits` of activations to be 8, or 16 beside kernels of 8. Received: bits="
    for bits in (7, 0, True, None, "8"):
        assert error_of(ActivationRange, bits) == f"{said}{bits!r}"
    assert error_of(ActivationRange, fixed=(0.0, 3)) == (
        "Expected `fixed` to be a positive step and a zero point from -128 to 127. "
        "Received: fixed=(0.0, 3)"
    )
    for bits in (1, 9, 2.5):
        assert error_of(IntegerKernels, layers.Dense(2), bits=bits) == (
            f"Expected `bits` to be an integer from 2 to 8. Received: bits={bits!r}"
        )
    layer = ActivationRange(name="dead")
    layer.build((None, 2))
    assert error_of(layer.place, 0.0, 0.0) == (
        "Layer 'dead': Expected a finite range of activations, which are not all 0. "
        "Received: from 0.0 to 0.0"
    )
    layer.place(0.0, 1.0)
    layer.stretch.assign(float("nan"))
    assert error_of(layer.grid) == (
        "Expected a positive step and a finite zero point in layer 'dead'. Received: step=nan, "
        "zero_point=-128.0. Train with a lower learning rate, or with trainable=False."
    )
