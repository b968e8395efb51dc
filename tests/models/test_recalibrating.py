"""Statistics of batch normalization, measured anew."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg import recalibrate
from tests.helpers import error_of

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(3.0, 2.0, (300, 8, 8, 2)).astype("float32")


def network(frozen=False):
    keras.utils.set_random_seed(1)
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(trainable=not frozen),
            layers.Dropout(0.5),
        ]
    )
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.BatchNormalization(momentum=0.7, name="first"),
            qareg.layers.WNQConv2D(4, 3, padding="same", bits=2, name="quantized"),
            inner,
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
            layers.BatchNormalization(name="last"),
        ]
    )


def weights_of(model):
    return {v.path: ops.convert_to_numpy(v).copy() for v in model.weights}


@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_are_normalized_and_nothing_else_changes(frozen):
    model = network(frozen)
    before = weights_of(model)
    recalibrate(model, INPUTS, batch_size=300)
    first = model.get_layer("first")
    mean, variance = INPUTS.mean((0, 1, 2)), INPUTS.var((0, 1, 2))
    np.testing.assert_allclose(ops.convert_to_numpy(first.moving_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(first.moving_variance), variance, rtol=1e-4)
    outputs = ops.convert_to_numpy(model(INPUTS, training=False))
    np.testing.assert_allclose(outputs.mean(0), 0.0, atol=1e-3)
    # BatchNormalization adds 0.001 to the variance.
    spread = ops.convert_to_numpy(model.get_layer("last").moving_variance)
    np.testing.assert_allclose(outputs.var(0), spread / (spread + 1e-3), rtol=2e-2)
    after = weights_of(model)
    for path, value in before.items():
        assert np.array_equal(after[path], value) == ("moving" not in path), path
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            assert layer.momentum in (0.7, 0.99) and "call" not in vars(layer)
            assert layer.trainable == (layer.name in ("first", "last") or not frozen)


def test_the_average_is_over_all_inputs():
    in_parts, at_once = network(), network()
    parts = ((INPUTS[at : at + 128], None) for at in range(0, 300, 128))
    recalibrate(in_parts, parts)
    recalibrate(at_once, INPUTS, batch_size=128)
    for one, other in zip(in_parts.weights, at_once.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))
    mean = ops.convert_to_numpy(at_once.get_layer("first").moving_mean)
    np.testing.assert_allclose(mean, INPUTS.mean((0, 1, 2)), rtol=1e-5)


def test_a_model_is_nearer_to_float_after_its_weights_were_shared():
    model = keras.Sequential([keras.Input((8, 8, 2))])
    for filters in (16, 16, 16):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.BatchNormalization())
    model.add(layers.GlobalAveragePooling2D())
    recalibrate(model, INPUTS)
    shared = qareg.share_weights(model, levels=2)
    unseen = RNG.normal(3.0, 2.0, (100, 8, 8, 2)).astype("float32")

    def distance():
        outputs = (ops.convert_to_numpy(m(unseen, training=False)) for m in (model, shared))
        return float(np.square(np.subtract(*outputs)).mean())

    before = distance()
    recalibrate(shared, INPUTS)
    assert distance() < 0.5 * before


def test_training_goes_on_afterwards():
    model = network()
    model.compile("sgd", "mse")
    model.fit(INPUTS, np.zeros((300, 5)), verbose=0)
    recalibrate(model, INPUTS)
    mean = ops.convert_to_numpy(model.get_layer("first").moving_mean).copy()
    model.fit(INPUTS + 5, np.zeros((300, 5)), verbose=0)
    assert (ops.convert_to_numpy(model.get_layer("first").moving_mean) > mean + 1).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (INPUTS[:0], "Received: none"),
        (iter([]), "Received: none"),
        (np.where(np.arange(300)[:, None, None, None] == 299, np.nan, INPUTS), "NaN"),
        (7, "Received: int"),
    ],
)
def test_bad_inputs_leave_the_model_as_it_was(data, words):
    model = network()
    before = weights_of(model)
    with pytest.raises(ValueError, match=words):
        recalibrate(model, data)
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[path])
    assert model.get_layer("first").momentum == 0.7


def test_a_model_without_such_layers_stays_as_it_is():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    before = weights_of(model)
    recalibrate(model, np.ones((4, 4)))
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="built"):
        recalibrate(keras.Sequential([layers.BatchNormalization()]), INPUTS)
    with pytest.raises(ValueError, match="batch_size=0"):
        recalibrate(network(), INPUTS, batch_size=0)


def test_each_call_of_a_layer_that_is_called_several_times_counts():
    norm = keras.layers.BatchNormalization()
    inputs = [keras.Input((3,)) for _ in range(2)]
    model = keras.Model(inputs, [norm(x) for x in inputs])
    ten, nothing = np.full((64, 3), 10.0, "float32"), np.zeros((64, 3), "float32")
    qareg.recalibrate(model, [ten, nothing], batch_size=16)
    np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_mean), 5.0, rtol=1e-6)

    apart = keras.layers.TimeDistributed(keras.layers.BatchNormalization())
    model = keras.Sequential([keras.Input((5, 3)), apart])
    steps = np.broadcast_to(np.arange(5, dtype="float32")[:, None], (64, 5, 3))
    qareg.recalibrate(model, np.array(steps))
    mean = apart.layer.moving_mean
    np.testing.assert_allclose(ops.convert_to_numpy(mean), 2.0, rtol=1e-6)


def test_large_identifiers_stay_what_they_are():
    inputs = keras.Input((2,), dtype="int64")
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(ops.cast(inputs, "float32") / 1e9))
    if keras.backend.backend() == "jax":
        return  # which has whole numbers of 32 bits
    qareg.recalibrate(model, np.full((8, 2), 3_000_000_000, "int64"))
    np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_mean), 3.0, rtol=1e-6)
    narrow = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.BatchNormalization()])
    assert "from 3000000000 to 3000000000" in error_of(
        qareg.recalibrate, narrow, np.full((8, 2), 3_000_000_000, "int64")
    )


def test_frozen_weights_of_a_normalization_stay_frozen():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="norm")])
    norm = model.get_layer("norm")
    norm.gamma.trainable = False
    flags = [weight.trainable for weight in norm.weights]
    recalibrate(model, np.random.default_rng(0).normal(3.0, 2.0, (64, 4)))
    assert [weight.trainable for weight in norm.weights] == flags and norm.trainable
    np.testing.assert_allclose(norm.moving_mean, 3.0, atol=1.0)
