"""Shared weights that go to their nearest centroids anew while they are tuned."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import SharedWeights
from tests.helpers import (
    BACKEND,
    arrays,
    compiled,
    digits,
    error_of,
    predict,
    small_cnn,
    snapshot,
    two_devices,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("table", "scale"), [("int8", "kernel"), ("even", "channel"), ("float32", "channel")]
)
def test_weights_go_to_the_nearest_centroid_when_they_are_due(table, scale):
    model = keras.Sequential([keras.Input((20,)), layers.Dense(7, name="fc")])
    shared = qareg.share_weights(model, 4, table=table, scale=scale, trainable="assignments")
    layer = shared.get_layer("fc")
    layer.reassign_every = 2
    before = layer.codebooks()[0]
    layer.layer.kernel.assign(RNG.normal(0, 0.3, (20, 7)))
    (latent,) = arrays(layer.layer.kernel)
    for due in (False, True):
        layer(np.ones((1, 20), "float32"), training=True)
        book = layer.codebooks()[0]
        np.testing.assert_array_equal(book.centroids, before.centroids)
        if due:
            tables = book.centroids.reshape(4, 1, -1)
            nearest = np.abs(latent - tables).min(axis=0)
            np.testing.assert_allclose(np.abs(latent - book.weights), nearest, atol=1e-6)
        else:
            np.testing.assert_array_equal(book.indices, before.indices)
    layer.layer.kernel.assign(-latent)
    for _ in range(2):
        layer(np.ones((1, 20), "float32"), training=False)
    np.testing.assert_array_equal(layer.codebooks()[0].indices, book.indices)


@pytest.mark.parametrize("table", ["int8", "even", "float32"])
@pytest.mark.parametrize(
    ("scale", "group_size", "levels"),
    [("kernel", None, 4), ("channel", None, 4), ("kernel", 3, 4), ("kernel", None, 20)],
)
def test_a_step_is_the_same_whether_all_are_due_or_this_one(table, scale, group_size, levels):
    inputs, targets = RNG.normal(size=(8, 20)), RNG.normal(size=(8, 7))
    model = keras.Sequential([keras.Input((20,)), layers.Dense(7, name="fc")])
    settings = {"table": table, "scale": scale, "group_size": group_size}
    kernel, found = RNG.normal(0, 0.3, (20, 7)), []
    for every in (1, 2):
        shared = qareg.share_weights(model, levels, trainable="assignments", **settings)
        layer = shared.get_layer("fc")
        layer.reassign_every = every
        layer.steps.assign(every - 1)
        layer.layer.kernel.assign(kernel)
        shared.compile(keras.optimizers.SGD(0.1), "mse")
        shared.fit(inputs, targets, verbose=0)
        found.append({weight.path.split("/")[-1]: arrays(weight)[0] for weight in shared.weights})
    assert found[0].keys() == found[1].keys() >= {"kernel", "bias", "centroids", "steps"}
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], atol=1e-6, err_msg=name)
    assert not np.array_equal(found[0]["kernel"], kernel.astype("float32"))


def test_weights_train_straight_through_and_centroids_by_their_members():
    inputs, targets = RNG.normal(size=(8, 6)), RNG.normal(size=(8, 5))
    layer = SharedWeights(layers.Dense(5, use_bias=False), levels=3, reassign_every=1)
    model = keras.Sequential([keras.Input((6,)), layer])
    layer.layer.kernel.assign(RNG.normal(size=(6, 5)))
    layer.centroids[0].assign([-1.0, 0.5, 2.0])
    latent, centroids = arrays(layer.layer.kernel, layer.centroids[0])
    indices = np.abs(latent[..., None] - centroids).argmin(-1)
    slopes = inputs.T @ (2 / targets.size * (inputs @ centroids[indices] - targets))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(inputs, targets, verbose=0)
    sums = [slopes[indices == j].sum() for j in range(3)]
    np.testing.assert_allclose(layer.layer.kernel, latent - 0.1 * slopes, atol=1e-5)
    np.testing.assert_allclose(layer.centroids[0], centroids - 0.1 * np.array(sums), atol=1e-5)


def test_training_goes_on_from_a_file_and_keeps_zeros_and_frozen_layers(tmp_path):
    images, labels = digits(96)
    model = small_cnn(normalize=True)
    model.get_layer("out").trainable = False

    def start():
        found = qareg.share_weights(model, 4, zero_centroid=True, trainable="assignments")
        return compiled(found)

    def fit(network, epochs):
        network.optimizer.learning_rate = 0.3
        network.fit(images, labels, epochs=epochs, shuffle=False, verbose=0)

    whole, parts = start(), start()
    before = qareg.codebooks(whole)
    (bias,) = snapshot([whole.get_layer("out").layer.bias])
    fit(whole, 6)
    fit(parts, 3)
    parts.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(again, images), predict(parts, images))
    fit(again, 3)
    np.testing.assert_allclose(predict(again, images), predict(whole, images), atol=1e-3)
    after = qareg.codebooks(whole)
    moved = [not np.array_equal(after[path].indices, before[path].indices) for path in after]
    assert moved == [True, True, False]
    for book in after.values():
        assert (book.centroids == 0).any(axis=0).all() and (book.weights == 0).any()
        assert book.levels_used <= 4
    np.testing.assert_array_equal(bias, whole.get_layer("out").layer.bias)
    plain = qareg.strip(whole)
    np.testing.assert_allclose(predict(plain, images), predict(whole, images), atol=1e-5)
    for kernel in qareg.layers.kernels(plain):
        np.testing.assert_array_equal(kernel, after[kernel.path].weights)
    assert error_of(SharedWeights, layers.Dense(3), 4, reassign_every=0) == (
        "Expected `reassign_every` to be a positive integer. Received: reassign_every=0"
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_two_replicas_have_the_assignments_of_one():
    import tensorflow as tf

    devices = two_devices()
    images, labels = digits(64)

    def train():
        shared = qareg.share_weights(small_cnn(), 4, trainable="assignments")
        for layer in ("conv", "fc", "out"):
            shared.get_layer(layer).reassign_every = 2
        compiled(shared).optimizer.learning_rate = 0.3
        shared.fit(images, labels, batch_size=32, epochs=3, shuffle=False, verbose=0)
        return predict(shared, images)

    single = train()
    names = [device.name for device in devices[:2]]
    reduction = tf.distribute.ReductionToOneDevice()
    with tf.distribute.MirroredStrategy(names, cross_device_ops=reduction).scope():
        double = train()
    np.testing.assert_allclose(ops.convert_to_numpy(double), single, atol=1e-3)
