"""Errors of the whole-model transforms, word for word."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.regularizers import NearestSquared, Sine
from tests.helpers import error_of, small_cnn


def test_bad_models():
    unbuilt = keras.Sequential([layers.Dense(3)], name="later")
    for transform in (
        lambda m: qareg.quantization_aware(m, NearestSquared(4)),
        lambda m: qareg.share_weights(m, levels=4),
        qareg.strip,
        qareg.codebooks,
        qareg.report.summary,
    ):
        assert error_of(transform, unbuilt) == (
            "Expected a built model. Received: model 'later' without weights. "
            "Call it on a batch, or begin it with keras.Input."
        )
        assert error_of(transform, None) == "Expected a keras.Model. Received: NoneType"
        assert error_of(transform, "model.keras") == (
            "Expected a keras.Model. Received: the path 'model.keras'. Open it first: "
            "keras.saving.load_model('model.keras')"
        )
    wrapped = qareg.quantization_aware(small_cnn(), NearestSquared(4))
    assert error_of(qareg.quantization_aware, wrapped, NearestSquared(4)) == (
        "Expected a plain model. Received: a model with quantized layers already (['conv', 'fc', "
        "'out']). Take keras_qareg.strip(model) first."
    )
    assert error_of(qareg.share_weights, qareg.share_weights(wrapped), levels=4) == (
        "Expected a model whose weights are not shared or quantized yet. Received: a model with "
        "layer 'conv' of type SharedWeights. Take keras_qareg.strip(model) first."
    )


def test_nothing_to_do():
    flat = keras.Sequential([keras.Input((3,)), layers.ReLU()], name="flat")
    assert error_of(qareg.quantization_aware, flat, NearestSquared(4)) == (
        "Expected a layer to wrap in model 'flat'. Received: layers='all', of which none has a "
        "kernel large enough and a regularizer."
    )
    assert error_of(qareg.quantization_aware, small_cnn()) == (
        "Expected a layer to wrap in model 'cnn'. Received: layers='all', of which none has a kernel "
        "large enough and a regularizer of its own, and no regularizer was given."
    )
    assert error_of(qareg.share_weights, flat, levels=4, layers="conv") == (
        "Expected a layer to share the weights of in model 'flat'. Received: layers='conv', of which "
        "none has a kernel large enough."
    )


def test_bad_choices():
    model = small_cnn()
    l2 = keras.regularizers.L2(1e-3)
    assert error_of(qareg.quantization_aware, model, l2) == (
        "Expected a regularizer of keras_qareg, its class, None, or one of ['cosine', 'dkm', "
        f"'nearest_exponential', 'nearest_squared', 'sine']. Received: {l2!r}"
    )
    assert error_of(qareg.quantization_aware, model, NearestSquared(4), ["fc", "fcc"]) == (
        "Expected `layers` to be names of layers with kernels, ['conv', 'fc', 'out']. Received "
        "unknown names: ['fcc']"
    )
    assert error_of(qareg.share_weights, model, levels=4, layers="convs") == (
        "Expected `layers` to be one of ('all', 'conv', 'dense'). Received: layers='convs'"
    )
    assert error_of(qareg.share_weights, model, levels=4, method="lloyd") == (
        "Expected `method` to be one of ('auto', 'trained', 'kmeans', 'quantile', 'uniform', "
        "'rate-distortion'). Received: method='lloyd'"
    )
    assert error_of(qareg.share_weights, model, levels=4, trainable="bias") == (
        "Expected `trainable` to be one of ('centroids', 'centroids+rest', 'assignments'). "
        "Received: trainable='bias'"
    )
    assert error_of(qareg.share_weights, model, levels=1) == (
        "Expected `levels` to be an integer from 2 to 256. Received: levels=1"
    )
    assert error_of(qareg.share_weights, model) == (
        "Expected `levels`, because layer 'conv' has no regularizer of keras_qareg to take it from. "
        "Received: levels=None"
    )
    assert error_of(qareg.share_weights, model, levels=4, method="trained") == (
        "Expected trained centroids for levels=4 with method='trained'. Received: layer 'conv' "
        "without them. Train it with keras_qareg.quantization_aware, or use method='auto'."
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad):
    model = small_cnn()
    kernel = ops.convert_to_numpy(model.get_layer("fc").kernel).copy()
    kernel[3, 4] = bad
    model.get_layer("fc").kernel.assign(kernel)
    expected = (
        "Kernel 'cnn/fc/kernel': Expected finite weights. Received: an array with NaN or infinite "
        "values. Train again with a lower learning rate, or restore an earlier checkpoint."
    )
    assert error_of(qareg.share_weights, model, levels=4) == expected
    assert error_of(qareg.quantization_aware, model, NearestSquared(4)) == expected
    wrapped = qareg.quantization_aware(small_cnn(), Sine(4))
    wrapped.get_layer("fc").layer.kernel.assign(kernel)
    assert error_of(qareg.share_weights, wrapped).endswith(expected.split(": ", 1)[1])


@keras.saving.register_keras_serializable("tests")
class Normalizing(layers.Dense):
    """Assigns its own kernel in training."""

    def call(self, inputs, training=None):
        if training:
            self.kernel.assign(self.kernel / ops.max(ops.abs(self.kernel)))
        return super().call(inputs)


TRANSFORMS = (
    lambda model: qareg.share_weights(model, 4),
    lambda model: qareg.share_weights(model, 4, trainable="assignments"),
    lambda model: qareg.quantization_aware(model, NearestSquared(4)),
)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_layers_that_assign_their_own_kernels_are_refused(transform):
    spectral = layers.SpectralNormalization(layers.Dense(8), name="spectral")
    model = keras.Sequential([keras.Input((6,)), spectral, layers.Dense(3)])
    assert "['spectral'] of type SpectralNormalization" in error_of(transform, model)
    own = Normalizing(8, name="own")
    wrapped = transform(keras.Sequential([keras.Input((6,)), own, layers.Dense(3)]))
    ones = np.ones((2, 6), "float32")
    wrapped(ones)  # in inference it assigns nothing
    (latent,) = (layer.layer.kernel for layer in wrapped.layers if layer.name == "own")
    before = ops.convert_to_numpy(latent).copy()
    assert (
        "Expected layers that leave their kernels as they are when they are called. Received: layer "
        "'own' of type Normalizing, which assigns ['kernel'] in its call"
    ) in error_of(wrapped, ones, training=True)
    np.testing.assert_array_equal(latent, before)


@pytest.mark.parametrize(
    "transform",
    [
        lambda model: qareg.quantization_aware(model, NearestSquared(4)),
        lambda model: qareg.wnq(model, 2, skip=()),
    ],
)
def test_constraints_of_the_float_kernels_alone_are_told_of(transform):
    unit, positive = keras.constraints.UnitNorm(0), keras.constraints.NonNeg()
    model = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(16, kernel_constraint=unit, name="unit"),
            layers.Dense(16, kernel_constraint=positive, name="positive"),
        ]
    )
    with pytest.warns(UserWarning, match="^Constraints hold for the float kernels") as told:
        transform(model)
    (text,) = (str(w.message) for w in told if str(w.message).startswith("Constraints"))
    assert "unit/kernel' (UnitNorm)." in text and "positive" not in text


def test_a_plan_of_an_unknown_table_is_refused(tmp_path):
    model, path = small_cnn(), tmp_path / "plan.yaml"
    path.write_text("levels: 4\ntable: bogus\n")
    assert "`table`" in error_of(qareg.share_weights, model, levels=path)
