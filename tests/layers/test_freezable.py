"""Batch normalization that is frozen in the middle of a training."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.callbacks import FreezeBatchNormalization
from keras_qareg.layers import FreezableBatchNormalization
from tests.helpers import STEPS, arrays, digits, error_of, predict, tensorflow_only
from tests.layers.test_layers import conformance_test

RNG = np.random.default_rng(0)


def test_it_conforms_to_keras():
    conformance_test(
        FreezableBatchNormalization,
        {},
        input_shape=(4, 3),
        expected_output_shape=(4, 3),
        expected_num_trainable_weights=2,
        expected_num_non_trainable_weights=4,
        expected_num_seed_generators=0,
        supports_masking=True,
    )


@pytest.mark.parametrize("axis", [-1, 1])
def test_it_computes_as_keras_does_until_it_is_frozen(axis):
    ours = FreezableBatchNormalization(axis=axis, momentum=0.9)
    theirs = layers.BatchNormalization(axis=axis, momentum=0.9)
    x = RNG.normal(2.0, 3.0, size=(6, 4, 5)).astype("float32")
    mask = np.arange(24).reshape(6, 4) % 3 > 0 if axis == -1 else None
    for _ in range(2):
        for given in ({}, {"mask": mask}):
            found = [layer(x, training=True, **given) for layer in (ours, theirs)]
            np.testing.assert_allclose(*arrays(*found), rtol=1e-4, atol=1e-5)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            *arrays(getattr(ours, name), getattr(theirs, name)), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(predict(ours, x), predict(theirs, x), rtol=1e-4, atol=1e-5)
    ours.frozen.assign(1.0)
    kept = arrays(ours.moving_mean)[0].copy()
    np.testing.assert_allclose(*arrays(ours(x, training=True), ours(x)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(arrays(ours.moving_mean)[0], kept)


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)
    hidden = layers.ReLU()(FreezableBatchNormalization(name="norm")(hidden))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)), name="small")


class Watch(keras.callbacks.Callback):
    """What the layer is after each step."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        norm = self.model.get_layer("norm")
        self.seen.append([float(ops.convert_to_numpy(v)) for v in (norm.counted, norm.frozen)])
        self.mean = arrays(norm.moving_mean)[0].copy()


@pytest.mark.parametrize("options", STEPS)
def test_statistics_are_averaged_and_frozen_within_one_fit(options):
    model, watch = network(), Watch()
    model.compile("sgd", "mse", **options)
    images, _ = digits(64)
    for steps, averaged in ((2, 2), (50, 4)):
        model.get_layer("norm").frozen.assign(0.0)
        freeze = FreezeBatchNormalization(after=0.5, steps=steps)
        model.fit(images, np.zeros((64, 10)), 4, 2, verbose=0, callbacks=[freeze, watch])
        counts = [[count + 2, 0] for count in range(averaged)]
        assert watch.seen == [[0, 0]] * (16 - averaged) + counts + [[0, 1]] * 16


@tensorflow_only
def test_steps_that_are_one_program_are_averaged_together():
    model, watch = network(), Watch()
    model.compile("sgd", "mse", steps_per_execution=8)
    images, _ = digits(64)
    freeze = FreezeBatchNormalization(after=0.5)
    model.fit(images, np.zeros((64, 10)), 4, 2, verbose=0, callbacks=[freeze, watch])
    assert watch.seen == [[0, 0], [9, 0], [0, 1], [0, 1]]


def loss_by(model, images, labels, training):
    outputs = model(images, training=training)
    return float(keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, outputs))


def test_freezing_is_no_jump():
    """The frozen network is the one that was trained; with moving averages it would not be."""
    images, labels = digits(512)
    jumps = {}
    for averaged in (True, False):
        model = network()
        model.compile(
            keras.optimizers.Adam(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        # Frozen never, but averaged up to the end.
        callbacks = [FreezeBatchNormalization(after=1.0, steps=6)] if averaged else []
        model.fit(images, labels, 32, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        before = loss_by(model, images, labels, training=True)
        if not averaged:  # the call above has moved the averages once
            before = loss_by(model, images, labels, training=True)
        model.get_layer("norm").frozen.assign(1.0)
        jumps[averaged] = abs(loss_by(model, images, labels, training=True) - before) / before
    assert jumps[True] < 0.05 < 0.5 < jumps[False]


def test_recalibration_measures_frozen_statistics_anew():
    layer = FreezableBatchNormalization()
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.frozen.assign(1.0)
    qareg.recalibrate(model, np.full((8, 3), 5.0, "float32"))
    assert arrays(layer.moving_mean)[0].tolist() == [5.0] * 3
    assert float(ops.convert_to_numpy(layer.frozen)) == 1.0


@pytest.mark.one_backend
def test_bad_arguments():
    assert error_of(FreezableBatchNormalization, renorm=True) == (
        "Expected a BatchNormalization without `renorm`. Received: renorm=True. Make it anew with "
        "renorm=False, and train on."
    )
    for after in (-0.1, 1.5, True):
        assert error_of(FreezeBatchNormalization, after) == (
            f"Expected `after` to be from 0 to 1. Received: after={after!r}"
        )
    assert error_of(FreezeBatchNormalization, steps=0) == (
        "Expected `steps` to be a positive integer. Received: steps=0"
    )
    inside = [layers.Dense(1), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((3,)), *inside], name="plain")
    model.compile("sgd", "mse")
    said = error_of(
        model.fit,
        np.ones((2, 3)),
        np.ones((2, 1)),
        callbacks=[FreezeBatchNormalization()],
        verbose=0,
    )
    assert said == (
        "Expected a model with batch normalization that can be frozen for FreezeBatchNormalization. "
        "Received: model 'plain' with plain ones. Make it with "
        "keras_qareg.quantize_activations(model, data)."
    )
