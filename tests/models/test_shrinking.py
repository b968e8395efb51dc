"""Channels that do nothing are removed, and nothing else: outputs are the same."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_qareg as qareg
from tests.helpers import error_of, predict
from tests.models.random_models import models

SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def randomize(model, seed=0):
    """Random weights: no channel is dead, no mean 0."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        values = random.normal(0.0, 0.4, tuple(weight.shape))
        weight.assign(np.abs(values) + 0.2 if "variance" in weight.name else values)
    return model


def array_of(variable):
    return np.array(ops.convert_to_numpy(variable))


def kill(model, name, channels, value=0.0):
    """Makes output channels of a layer constants, or nearly so."""
    for weight in model.get_layer(name).weights:
        if weight.name.endswith("kernel") or weight.name == "gamma":
            array = array_of(weight)
            array[..., channels] *= value
            weight.assign(array)


def unread(model, name, channels):
    """Makes a layer read nothing of some input channels."""
    kernel = model.get_layer(name).kernel
    array = array_of(kernel)
    array[..., channels, :] = 0.0
    kernel.assign(array)


def assert_same(model, other, inputs=None):
    if inputs is None:
        inputs = np.random.default_rng(3).normal(size=(4, *model.input_shape[1:])).astype("float32")
    pairs = zip(
        *(keras.tree.flatten(m(inputs, training=False)) for m in (model, other)), strict=True
    )
    for expected, found in pairs:
        expected, found = (ops.convert_to_numpy(x) for x in (expected, found))
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def widths(model):
    return {x.name: x.kernel.shape[-1] for x in model.layers if hasattr(x, "kernel")}


def quietly(model, data=None):
    """The smaller model; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return qareg.shrink(model, data)


def test_constants_go_into_biases_and_means():
    stack = [
        keras.Input((9, 9, 2)),
        layers.Conv2D(8, 3, activation="relu", name="a"),
        layers.Conv2D(7, 3, use_bias=False, name="b"),  # what it reads goes into the mean
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.MaxPooling2D(2),
        layers.Conv2D(6, 1, padding="same", use_bias=False, name="c"),  # gets a bias
        layers.LeakyReLU(),
        layers.Flatten(),
        layers.Dense(5, activation="sigmoid", name="d"),
        layers.Dense(3, name="e"),
    ]
    model = randomize(keras.Sequential(stack))
    model.compile("adam", "mse", metrics=["mae"])
    kill(model, "a", [0, 3])
    model.get_layer("a").bias.assign(np.full(8, 0.5))
    kill(model, "b", [1], 1e-20)  # which a normalization cannot make large
    kill(model, "norm", [2, 3])
    kill(model, "c", [5])
    kill(model, "d", [0, 4])
    unread(model, "e", [1])
    found = quietly(model)
    assert widths(found) == {"a": 6, "b": 4, "c": 5, "d": 2, "e": 3}
    assert not found.get_layer("b").use_bias and found.get_layer("c").use_bias
    assert found.compiled and [x.name for x in found.layers] == [x.name for x in model.layers]
    assert_same(model, found)
    assert widths(quietly(found)) == widths(found)
    assert widths(model)["a"] == 8  # which stays as it is


def test_normalization_makes_small_weights_count():
    """A column of 1e-9 is none of a dead channel where a variance of 1e-18 follows."""
    stack = [
        keras.Input((5,)),
        layers.Dense(4, use_bias=False, name="a"),
        layers.BatchNormalization(epsilon=1e-30, name="norm"),
        layers.Dense(2, name="b"),
    ]
    model = randomize(keras.Sequential(stack))
    kill(model, "a", [0, 1], 1e-9)
    norm = model.get_layer("norm")
    norm.moving_mean.assign(np.zeros(4))
    norm.moving_variance.assign(np.array([1e-18, 1.0, 1.0, 1.0]))
    found = quietly(model)
    # The second is at the limit: 1e-9 of the others is more than nothing.
    assert widths(found) == {"a": 4, "b": 2}
    assert_same(model, found)
    kill(model, "a", [1], 1e-6)
    assert widths(quietly(model)) == {"a": 3, "b": 2}


def branches(padding="same"):
    """Two branches that are added, two that are joined, and depthwise convolutions behind."""
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(inputs)
    left = layers.Conv2D(6, 3, padding="same", name="left")(stem)
    left = layers.BatchNormalization(name="left_norm")(left)
    added = layers.Activation("relu")(layers.Add()([left, stem]))
    first = layers.SeparableConv2D(5, 3, activation="tanh", name="first")(added)
    second = layers.Conv2D(4, 3, name="second")(ops.relu(added + stem))
    joined = layers.Concatenate()([first, second])
    deep = layers.DepthwiseConv2D(3, depth_multiplier=2, padding=padding, name="deep")(joined)
    deep = layers.PReLU(shared_axes=[1, 2], name="prelu")(deep)
    up = layers.Conv2DTranspose(3, 3, name="up")(deep)
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(deep)
    flat = layers.Reshape((-1, 18))(layers.Dropout(0.5)(pooled))
    return randomize(keras.Model(inputs, [up, layers.Dense(2, name="out")(flat)]))


def test_branches_agree_on_what_goes():
    model = branches()
    kill(model, "stem", [0, 1, 2])
    model.get_layer("stem").bias.assign(np.zeros(6))
    kill(model, "left_norm", [0, 1, 5])
    model.get_layer("left_norm").beta.assign(np.zeros(6))  # of which 5 is added to something
    kill(model, "second", [3])
    model.get_layer("second").bias.assign(np.zeros(4))
    kernel = model.get_layer("first").pointwise_kernel
    kernel.assign(array_of(kernel) * (np.arange(5) > 0))  # a bias that meets padding
    model.get_layer("deep").bias.assign(
        np.where(np.arange(18) < 16, 0.3, 0.0)
    )  # which meets it too
    with pytest.warns(UserWarning) as caught:
        found = qareg.shrink(model)
    assert [str(x.message) for x in caught if x.category is UserWarning] == [
        "Left as they are, because what reads them is not followed, adds others to them, pads a "
        "constant that is not 0, or has a `bias_constraint`: 1 channel of 'stem'; 1 channel of "
        "'left'; 1 channel of 'first'."
    ]
    assert widths(found)["stem"] == widths(found)["left"] == 4
    assert found.get_layer("deep").kernel.shape == (3, 3, 8, 2)
    assert found.get_layer("first").pointwise_kernel.shape == (1, 1, 4, 5)
    assert found.get_layer("out").kernel.shape == (16, 2)
    assert_same(model, found)


def test_what_cannot_be_followed_is_left():
    """Inner models one by one; layers called twice; weights that are read elsewhere; own classes."""
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "relu", name="in"), layers.Dense(4, name="on")],
        name="inner",
    )
    inputs = keras.Input((6,))
    hidden = layers.Dense(6, "relu", name="a")(inputs)
    twice = layers.Dense(6, "relu", name="twice")
    hidden = inner(twice(twice(hidden)))
    hidden = layers.Dense(4, "relu", name="read")(hidden)
    outputs = layers.Dense(2, name="out")(layers.LayerNormalization()(hidden))
    model = randomize(keras.Model(inputs, outputs))
    for name in ("a", "twice", "read"):
        kill(model, name, [0])
    for layer in inner.layers:
        kernel = array_of(layer.kernel)
        kernel[:, 1:3] = 0.0
        layer.kernel.assign(kernel)
    with pytest.warns(UserWarning, match="1 channel of 'a'; 1 channel of 'read'"):
        found = qareg.shrink(model)
    assert_same(model, found)
    assert widths(found) == widths(model)
    assert [x.kernel.shape for x in found.get_layer("inner").layers] == [(6, 3), (3, 4)]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=10, **SETTINGS)
@given(pair=models())
def test_random_models_compute_the_same(pair):
    model, inputs = pair
    for weight in model.weights:
        if weight.name == "kernel" and len(weight.shape) > 1:
            weight.assign(array_of(weight) * ([0.0] + [1.0] * (weight.shape[-1] - 1)))
    found = qareg.shrink(model, inputs)
    assert_same(model, found, inputs)


@settings(max_examples=12, **SETTINGS)
@given(st.data())
def test_random_pruning(data):
    """Channels killed at random in a network of all kinds: same outputs, and nothing left to remove."""
    model = branches(data.draw(st.sampled_from(["same", "valid"])))
    for name in ("stem", "left", "left_norm", "second"):
        size = model.get_layer(name).output.shape[-1]
        gone = data.draw(st.lists(st.integers(0, size - 1), max_size=size))
        kill(model, name, gone, data.draw(st.sampled_from([0.0, 1e-25])))
        if data.draw(st.booleans()):
            for weight in model.get_layer(name).weights:
                if weight.name in ("bias", "beta", "moving_mean"):
                    weight.assign(np.zeros(weight.shape))
    for name in ("left", "second"):
        unread(model, name, data.draw(st.lists(st.integers(0, 5), max_size=4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = qareg.shrink(model)
        assert_same(model, found)
        assert qareg.shrink(found).count_params() == found.count_params()


def test_it_says_what_it_wants():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="fc")])
    assert error_of(qareg.shrink, qareg.share_weights(model, 4)) == (
        "Expected a plain model. Received: a model with quantized layers already (['fc']). Take "
        "keras_qareg.strip(model) first."
    )
    model = keras.Sequential([layers.Dense(8, name="fc")], name="open")
    model(np.zeros((1, 4)))
    assert predict(qareg.shrink(model, np.zeros((2, 4))), np.zeros((1, 4))).shape == (1, 8)


def test_inputs_are_as_large_as_their_normalization_has_seen():
    inputs = keras.Input((2,))  # nanoseconds, and another number
    x = layers.Dense(2, name="a")(layers.BatchNormalization(name="n")(inputs))
    model = keras.Model(inputs, layers.Dense(1, name="b")(x))
    zeros, ones = np.zeros(2), np.ones(2)
    model.get_layer("n").set_weights([ones, zeros, zeros, np.array([1e32, 1.0])])
    model.get_layer("a").set_weights([np.eye(2), zeros])
    model.get_layer("b").set_weights([np.ones((2, 1)), np.zeros(1)])
    assert qareg.shrink(model).get_layer("a").units == 2


def test_masks_and_numbers_are_not_followed():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(10, 8, mask_zero=True)(tokens))
    masked = keras.Model(tokens, layers.Dense(2)(x))
    assert widths(quietly(masked)) == widths(masked)
    inputs = keras.Input((16,))
    model = keras.Model(
        inputs, layers.Dense(4)(layers.Dense(8, activation="relu", name="a")(inputs) + 1.0)
    )
    kill(model, "a", [0, 1])
    with pytest.warns(UserWarning, match="2 channels of 'a'"):
        small = qareg.shrink(model)
    assert small.get_layer("a").units == 8
    assert_same(model, small)


def test_arrays_to_start_from_have_the_old_shape():
    first = keras.initializers.Constant(np.arange(8.0))
    model = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(8, "relu", bias_initializer=first, name="a"),
            layers.BatchNormalization(beta_initializer=first),
            layers.Dense(4),
        ]
    )
    kill(model, "a", [0, 1])
    small = qareg.shrink(model)
    assert small.get_layer("a").units == 6
    assert_same(model, small)
    assert keras.Sequential.from_config(small.get_config()).count_params() == small.count_params()


def test_what_training_makes_of_constants_and_adapted_layers_stays():
    model = randomize(
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(5, "relu", name="a"),
                layers.Dropout(0.5),
                layers.Dense(3),
            ]
        )
    )
    kill(model, "a", [0, 1, 2])
    # Of the first two, which are constants, dropout makes others.
    model.get_layer("a").bias.assign(np.array([1, 1, -1, 0, 0], "float32"))
    assert qareg.shrink(model).get_layer("a").units == 4
    model = randomize(
        keras.Sequential([keras.Input((6,)), layers.Dense(5, name="a"), layers.Dense(3)])
    )
    kill(model, "a", [0, 1])
    model.get_layer("a").enable_lora(2)
    model.get_layer("a").lora_kernel_b.assign(np.ones((2, 5), "float32"))
    assert qareg.shrink(model).get_layer("a").units == 5


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_bias_is_no_other_than_before_in_training(has_bias):
    keras.utils.set_random_seed(0)
    of_bias = {"bias_regularizer": "l2", "bias_constraint": "non_neg"}
    inputs = keras.Input((6,))
    first = layers.Dense(8, "relu")
    second = layers.Dense(5, use_bias=has_bias, **of_bias)
    hidden = layers.Activation("tanh")(second(first(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    kernel, bias = (array.copy() for array in first.get_weights())
    kernel[:, 0], bias[0] = 0.0, 0.4  # a constant
    first.set_weights([kernel, bias])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    y = model.predict(x, verbose=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        smaller = qareg.shrink(model)
    assert any("bias_constraint" in str(one.message) for one in said) == has_bias
    assert smaller.layers[1].units == (8 if has_bias else 7)
    smaller.fit(x, y, verbose=0)
    np.testing.assert_allclose(smaller.predict(x, verbose=0), y, atol=1e-5)
