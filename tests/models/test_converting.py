"""WNQ of whole models: conversion and back, reports, LiteRT, and errors."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export.litert.runtime import run_litert
from keras_qareg.models.selection import quantized_layers
from keras_qareg.models.walking import leaf_layers
from tests.helpers import BACKEND, arrays, compiled, digits, error_of, predict, small_cnn
from tests.kinds import MODELS, assert_same_outputs, outputs_of


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_is_converted_and_stripped(kind, tmp_path):
    build, inputs, names = MODELS[kind]
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some channels are small here
        quantized = qareg.wnq(model, bits=2, skip=())
    assert type(quantized) is type(model) and quantized.name == model.name
    assert sorted(layer.name for layer in quantized_layers(quantized)) == sorted(names)
    plain = qareg.strip(quantized)
    assert not quantized_layers(plain) and type(plain) is type(model)
    np.testing.assert_allclose(
        *(np.concatenate(outputs_of(m, inputs), -1) for m in (plain, quantized)),
        rtol=1e-4,
        atol=1e-5,
    )
    books = qareg.codebooks(quantized)
    assert sorted(books) == sorted(
        path for path in (w.path for w in plain.weights) if path.endswith("kernel")
    )
    for weight in plain.weights:
        if weight.path in books:
            np.testing.assert_array_equal(weight, books[weight.path].weights)
    for old, new in zip(model.weights, latent_weights(quantized), strict=True):
        assert old.path == new.path
        np.testing.assert_array_equal(old, new)
    plain.save_weights(tmp_path / "plain.weights.h5")
    model.load_weights(tmp_path / "plain.weights.h5")
    assert_same_outputs(model, plain, inputs)


def latent_weights(model):
    return [weight for weight in model.weights if not weight.name.endswith("basis")]


def deep():
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8, 8, 1)), layers.Conv2D(32, 3, name="stem")]
    stack += [layers.DepthwiseConv2D(3, name="depthwise"), layers.Conv2D(16, 1, name="pointwise")]
    stack += [
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(20, name="fc"),
        layers.Dense(10, name="out"),
    ]
    return keras.Sequential(stack)


def names_of(model):
    return [layer.name for layer in quantized_layers(model)]


def test_what_is_converted():
    model = deep()
    assert names_of(qareg.wnq(model)) == ["depthwise", "pointwise", "fc"]
    assert names_of(qareg.wnq(model, skip="first")) == ["depthwise", "pointwise", "fc", "out"]
    assert (
        len(names_of(qareg.wnq(model, skip=()))) == len(names_of(qareg.wnq(model, skip=None))) == 5
    )
    assert names_of(qareg.wnq(model, layers="conv")) == ["depthwise", "pointwise"]
    assert names_of(qareg.wnq(model, layers="dense")) == ["fc"]
    assert names_of(qareg.wnq(model, layers=["stem", "fc"], skip=())) == ["stem", "fc"]
    assert names_of(qareg.wnq(model, skip=("first", "last", "depthwise"))) == ["pointwise", "fc"]
    quantized = qareg.wnq(
        compiled(model),
        1,
        activation_bits=3,
        normalize=False,
        per_channel=False,
        uniform=True,
        layers=["fc"],
    )
    assert quantized.compiled and not names_of(model)
    config = quantized.get_layer("fc").get_config()
    expected = {"bits": 1, "activation_bits": 3, "normalize": False, "per_channel": False}
    assert {**config, **expected, "uniform": True} == config


def test_a_report_and_a_round_trip_of_a_converted_model(tmp_path):
    images, labels = digits(128)
    model = qareg.wnq(deep(), bits=2)
    compiled(model).fit(images, labels, epochs=2, verbose=0)
    summary = qareg.report.summary(model)
    rows = {row.path.split("/")[-2]: row for row in summary.rows}
    assert [rows[name].levels for name in ("depthwise", "pointwise", "fc")] == [4, 4, 4]
    assert rows["stem"].levels is None and rows["stem"].entropy == 32.0
    for name in ("depthwise", "pointwise", "fc"):
        assert 1.0 < rows[name].entropy <= 2.0 and 0.0 < rows[name].relative_error < 0.3
    size = np.prod(rows["fc"].shape)
    assert rows["fc"].packed_bytes == size * 2 // 8 + 4 * 4 * 20
    plain = qareg.strip(model)
    assert summary.float_bytes == 4 * plain.count_params()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(again, images), predict(model, images))
    for row, other in zip(summary.rows, qareg.report.summary(again).rows, strict=True):
        assert (row.levels, row.entropy, row.relative_error) == (
            other.levels,
            other.entropy,
            other.relative_error,
        )
    np.testing.assert_allclose(predict(plain, images), predict(model, images), rtol=1e-4, atol=1e-5)
    plain.save(tmp_path / "plain.keras")
    assert b"keras_qareg" not in (tmp_path / "plain.keras").read_bytes()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT export needs TensorFlow")
@pytest.mark.parametrize("activation_bits", [None, 2])
def test_a_trained_model_is_the_same_in_litert(activation_bits, tmp_path):
    images, labels = digits(128)
    model = qareg.wnq(deep(), bits=2, activation_bits=activation_bits)
    compiled(model).fit(images, labels, epochs=2, verbose=0)
    report = qareg.export.litert(model, tmp_path / "model.tflite", representative_data=images)
    assert report.max_output_difference < 1e-3
    (outputs,) = run_litert(tmp_path / "model.tflite", images)
    np.testing.assert_allclose(outputs, predict(model, images), rtol=1e-3, atol=1e-3)


def test_strip_warns_of_quantized_activations():
    model = qareg.wnq(deep(), bits=2, activation_bits=2, layers=["fc"])
    with pytest.warns(UserWarning) as caught:
        qareg.strip(model)
    texts = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert texts == [
        "Layers ['fc'] quantize their inputs; the plain layers do not, so that outputs differ."
    ]


def test_other_layers_stay_with_a_warning():
    model = keras.Sequential(
        [keras.Input((9, 12)), layers.Conv1D(8, 3, name="c1"), layers.Flatten()]
    )
    model.add(layers.Dense(16, name="fc"))
    with pytest.warns(
        UserWarning, match="Left as they are, because WNQ has no layer of their kind"
    ):
        quantized = qareg.wnq(model, skip=())
    assert names_of(quantized) == ["fc"]
    assert error_of(qareg.wnq, model, skip=(), layers="conv") == (
        f"Expected a layer to convert in model '{model.name}', one of Conv2D, DepthwiseConv2D, "
        "Dense. Received: layers='conv' and skip=(), which leave 'c1' (Conv1D)."
    )
    assert "which leave none." in error_of(qareg.wnq, model)


def test_bad_input():
    model = small_cnn()
    for bits in (0, 5, 2.5):
        assert error_of(qareg.wnq, model, bits) == (
            f"Expected `bits` to be an integer from 1 to 4. Received: bits={bits!r}"
        )
    for bits in (0, 9):
        assert error_of(qareg.wnq, model, 2, activation_bits=bits) == (
            f"Expected `activation_bits` to be an integer from 1 to 8. Received: activation_bits={bits}"
        )
    assert error_of(qareg.wnq, keras.Sequential([layers.Dense(3)], name="later")) == (
        "Expected a built model. Received: model 'later' without weights. "
        "Call it on a batch, or begin it with keras.Input."
    )
    converted = qareg.wnq(model, skip=())
    for transform in (
        qareg.wnq,
        lambda m: qareg.quantization_aware(m, "sine"),
    ):
        assert error_of(transform, converted) == (
            "Expected a plain model. Received: a model with quantized layers already (['conv', "
            "'fc', 'out']). Take keras_qareg.strip(model) first."
        )
    assert "with layer 'conv' of type WNQConv2D" in error_of(qareg.share_weights, converted, 4)
    assert error_of(qareg.wnq, model, skip=("fc", "head")) == (
        "Expected `skip` to hold 'first', 'last' or names of layers with kernels, "
        "['conv', 'fc', 'out']. Received: 'head'"
    )
    model.get_layer("fc").kernel.assign(np.full(model.get_layer("fc").kernel.shape, np.nan))
    assert error_of(qareg.wnq, model) == (
        "Kernel of layer 'fc': Expected finite weights. Received: an array with NaN or infinite "
        "values. Train again with a lower learning rate, or restore an earlier checkpoint."
    )


def test_signed_activations_are_trained():
    model = keras.Sequential([keras.Input((20,)), layers.Dense(20, name="fc")])
    with pytest.warns(UserWarning, match="Layers .'fc'. may get negative inputs"):
        qareg.wnq(model, activation_bits=4, skip=())
    quantized = qareg.wnq(model, activation_bits=4, signed_activations=True, skip=())
    quantized.compile("adam", "mse")
    quantized.fit(-np.ones((4, 20), "float32"), np.ones((4, 20)), verbose=0)
    layer = quantized.get_layer("fc")
    assert layer.activation_quantizer.signed
    assert np.abs(ops.convert_to_numpy(layer.activation_basis)).sum() > 0


@keras.saving.register_keras_serializable("tests")
class TwoConvolutions(layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.a, self.b = (layers.Conv2D(filters, 3, padding="same", name=name) for name in "ab")

    def build(self, input_shape):
        self.a.build(input_shape)
        self.b.build((*input_shape[:-1], self.filters))
        self.built = True

    def call(self, inputs):
        return self.b(ops.relu(self.a(inputs)))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def test_layers_made_of_layers_are_entered():
    model = keras.Sequential(
        [keras.Input((6, 6, 8)), TwoConvolutions(8, name="x"), TwoConvolutions(8, name="y")]
    )
    quantized = qareg.wnq(model)
    kinds = [type(layer).__name__ for layer in leaf_layers(quantized) if layer.weights]
    assert kinds == ["Conv2D", "WNQConv2D", "WNQConv2D", "Conv2D"]
    inputs = np.random.default_rng(0).normal(size=(2, 6, 6, 8)).astype("float32")
    np.testing.assert_allclose(
        *arrays(qareg.strip(quantized)(inputs), quantized(inputs)), rtol=1e-5, atol=1e-5
    )


def test_dead_channels_become_zeros():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="fc")])
    kernel = ops.convert_to_numpy(model.get_layer("fc").kernel).copy()
    kernel[:, 3] *= 1e-9
    model.get_layer("fc").kernel.assign(kernel)
    (book,) = qareg.codebooks(qareg.wnq(model, skip=())).values()
    assert not book.weights[:, 3].any() and book.weights[:, 2].all()
