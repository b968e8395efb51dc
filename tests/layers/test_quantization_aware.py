"""Computing with quantized kernels while the penalty rises: outputs, gradients, and the way out."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import QuantizationAware
from keras_qareg.models.selection import wrappers
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.regularizers import NearestExponential, NearestSquared, Sine
from tests.helpers import BACKEND, arrays, compiled, digits, gradients, predict, small_cnn, snapshot
from tests.kinds import MODELS, assert_same_outputs
from tests.layers.test_layers import KINDS, Block, conformance_test, inputs_of

RNG = np.random.default_rng(0)


def test_it_conforms_to_keras():
    conformance_test(
        QuantizationAware,
        {"layer": layers.Dense(3), "regularizer": NearestSquared(4)},
        input_shape=(2, 5),
        expected_output_shape=(2, 3),
        expected_num_trainable_weights=3,
        expected_num_non_trainable_weights=3,
        expected_num_seed_generators=0,
        supports_masking=True,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_every_layer_are_quantized_once_the_centroids_are_placed(kind):
    make, shapes, _ = KINDS[kind]
    inputs = inputs_of(shapes)
    wrapped = QuantizationAware(make(), NearestSquared(4))
    before = ops.convert_to_numpy(wrapped(*inputs))
    np.testing.assert_array_equal(before, *arrays(wrapped.layer(*inputs)))
    assert not wrapped.quantizes
    wrapped.place_centroids()
    assert wrapped.quantizes
    found = ops.convert_to_numpy(wrapped(*inputs))
    for kernel, book in zip(wrapped.kernels, wrapped.codebooks(), strict=True):
        assert len(np.unique(ops.convert_to_numpy(kernel))) > 4, "the weights themselves stay"
        kernel.assign(book.weights)
    np.testing.assert_allclose(found, *arrays(wrapped.layer(*inputs)), rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, before)


@pytest.mark.parametrize("table", ["int8", "even", "float32"])
def test_gradients_are_those_at_the_quantized_kernel(table):
    layer = QuantizationAware(layers.Dense(3), NearestSquared(2), table=table)
    inputs = RNG.normal(size=(4, 5)).astype("float32")
    layer(inputs)
    # Two levels far apart, at about -1 and 1, which an even grid holds as they are.
    signs = np.where(np.arange(15).reshape(5, 3) % 2, -1, 1)
    layer.kernels[0].assign(signs * RNG.uniform(0.8, 1.2, size=(5, 3)))
    layer.place_centroids()
    trainable = [layer.kernels[0], layer.centroids[0]]
    values = snapshot(trainable)

    def loss(kernel, centroids):
        given = dict(zip(map(id, trainable), (kernel, centroids), strict=True))
        order = [given.get(id(v), v.value) for v in layer.trainable_variables]
        rest = [v.value for v in layer.non_trainable_variables]
        outputs, _ = layer.stateless_call(order, rest, inputs)
        return ops.sum(ops.square(outputs))

    _, (of_kernel, of_centroids) = gradients(loss, *values)
    levels = layer.tables()[0]
    assert table == "float32" or np.abs(levels - values[1]).max() < 0.2
    quantized = Codebook.nearest(values[0], levels)
    expected = 2 * inputs.T @ (inputs @ quantized.weights)
    np.testing.assert_allclose(of_kernel, expected, rtol=1e-4, atol=1e-5)
    sums = [expected[quantized.weights == value].sum() for value in levels]
    np.testing.assert_allclose(of_centroids, sums, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regularizer", [Sine(4), NearestExponential(4)], ids=["Sine", "Nearest"])
@pytest.mark.parametrize("initialize", ["kmeans", None])
def test_a_schedule_starts_it_and_sharing_then_changes_nothing(regularizer, initialize, tmp_path):
    images, labels = digits()
    model = qareg.quantization_aware(small_cnn(normalize=True), regularizer)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: (
            batch or seen.append(model.get_layer("fc").quantizes)
        )
    )
    schedule = qareg.callbacks.PenaltySchedule(initialize=initialize)
    compiled(model).fit(images, labels, epochs=3, verbose=0, callbacks=[schedule, watch])
    assert seen == [False, True, True]
    outputs = predict(model, images)
    shared, plain = qareg.share_weights(model), qareg.strip(model)
    for other in (shared, plain, qareg.strip(shared)):
        np.testing.assert_allclose(predict(other, images), outputs, rtol=1e-5, atol=1e-5)
    assert len(np.unique(ops.convert_to_numpy(plain.get_layer("fc").kernel))) <= 4
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_layer("fc").quantizes
    np.testing.assert_array_equal(predict(again, images), outputs)


def test_what_is_shared_is_what_the_model_computes_with():
    model = qareg.quantization_aware(small_cnn(), Sine(4), ["fc", "out"])
    for layer in wrappers(model):
        layer.place_centroids()
    images, _ = digits(8)
    outputs = predict(model, images)
    for levels, method in ((4, "auto"), (4, "kmeans"), (8, "auto")):
        shared = qareg.share_weights(model, levels, ["fc", "out"], method=method)
        np.testing.assert_allclose(predict(shared, images), outputs, rtol=1e-5, atol=1e-6)
    model.get_layer("fc").kernels[0].assign(np.full((54, 16), np.nan))
    with pytest.raises(ValueError, match="fc.*Expected finite weights"):
        qareg.share_weights(model, layers=["fc", "out"])


def test_without_it_a_model_computes_with_its_float_kernels_to_the_end():
    images, labels = digits(64)
    model = qareg.quantization_aware(small_cnn(), NearestSquared(4), straight_through=False)
    schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=0)
    compiled(model).fit(images, labels, epochs=1, verbose=0, callbacks=[schedule])
    assert not model.get_layer("fc").quantizes
    plain = qareg.strip(model)
    np.testing.assert_allclose(predict(plain, images), predict(model, images), rtol=1e-5, atol=1e-6)
    assert len(np.unique(ops.convert_to_numpy(plain.get_layer("fc").kernel))) > 4


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_is_stripped_to_what_it_computes(kind):
    make, inputs, _ = MODELS[kind]
    model = qareg.quantization_aware(make(), NearestSquared(3))
    assert_same_outputs(model, make(), inputs)
    for layer in wrappers(model):
        layer.place_centroids()
    assert_same_outputs(qareg.strip(model), model, inputs)


def test_training_mode_and_statistics_of_the_layer_inside_go_on():
    layer = QuantizationAware(Block(6), NearestSquared(4))
    model = keras.Sequential([keras.Input((5,)), layer])
    layer.place_centroids()
    before = snapshot([layer.layer.norm.moving_mean])[0]
    model.compile("sgd", "mse")
    model.fit(RNG.normal(1, 1, (64, 5)), np.zeros((64, 6)), epochs=2, verbose=0)
    assert not np.allclose(snapshot([layer.layer.norm.moving_mean])[0], before)
    inputs = np.ones((4, 5), "float32")
    outputs = ops.convert_to_numpy(model(inputs, training=True))
    assert not np.allclose(outputs, predict(model, inputs))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    images, labels = digits(64)
    model = small_cnn()
    config = model.get_config()
    for entry in config["layers"][1:]:
        entry["config"]["dtype"] = policy
    model = keras.Sequential.from_config(config)
    model = qareg.quantization_aware(model, NearestSquared(4, strength=0.1))
    schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=0)
    history = compiled(model).fit(images, labels, epochs=2, verbose=0, callbacks=[schedule])
    assert np.isfinite(history.history["loss"]).all()
    layer = model.get_layer("fc")
    assert layer.quantizes and layer.codebooks()[0].levels_used <= 4


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_it_trains_on_two_replicas():
    import tensorflow as tf

    images, labels = digits(64)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    with tf.distribute.MirroredStrategy(devices).scope():
        model = compiled(qareg.quantization_aware(small_cnn(), NearestSquared(4, strength=0.1)))
    schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=0)
    history = model.fit(images, labels, batch_size=32, epochs=2, verbose=0, callbacks=[schedule])
    assert np.isfinite(history.history["loss"]).all()
    assert model.get_layer("fc").quantizes


@pytest.mark.parametrize("training, counts", [(True, True), (None, True), (False, False)])
def test_a_loop_that_does_not_say_that_it_trains_has_the_penalty(training, counts):
    layer = QuantizationAware(keras.layers.Dense(4), NearestSquared(2))
    layer(np.ones((1, 3), "float32"), training=training)
    assert (sum(float(ops.convert_to_numpy(loss)) for loss in layer.losses) > 0) == counts


def test_training_without_a_schedule_is_told_once():
    images, labels = digits(32)
    for regularizer in (Sine(4), NearestSquared(4)):
        model = compiled(qareg.quantization_aware(small_cnn(), regularizer))
        with pytest.warns(
            UserWarning, match="trained without a schedule: the penalty has its full"
        ):
            model.fit(images, labels, verbose=0)


@pytest.mark.filterwarnings("error:.*without a schedule")
def test_training_with_a_schedule_and_after_one_is_not(tmp_path):
    images, labels = digits(32)
    model = compiled(qareg.quantization_aware(small_cnn(), Sine(4)))
    model.fit(images, labels, verbose=0, callbacks=[qareg.callbacks.PenaltySchedule()])
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    keras.saving.load_model(tmp_path / "model.keras").fit(images, labels, verbose=0)
    placed = compiled(qareg.quantization_aware(small_cnn(), Sine(4)))
    for layer in wrappers(placed):
        layer.place_centroids()
    placed.fit(images, labels, verbose=0)
