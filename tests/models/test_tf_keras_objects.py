"""Models that tf_keras makes, against what it computes; `from_tf_keras` compares the outputs itself."""

import warnings

import numpy as np
import pytest

import keras_qareg as qareg
from tests.helpers import predict

k2 = pytest.importorskip("tf_keras")
pytestmark = pytest.mark.one_backend
L, Input = k2.layers, k2.Input


def convolutions():
    return k2.Sequential(
        [
            Input((16, 16, 3)),
            L.Rescaling(1 / 3, offset=0.1),
            L.Conv2D(4, 3, strides=2, activation="relu", name="block/conv"),
            L.BatchNormalization(),
            L.SeparableConv2D(6, 3, padding="same"),
            L.DepthwiseConv2D(3, activation="swish"),
            L.Conv2DTranspose(4, 3, strides=2, padding="same"),
            L.LeakyReLU(0.2),
            L.ReLU(6.0, negative_slope=0.1),
            L.UpSampling2D(2, interpolation="bilinear"),
            L.GlobalAveragePooling2D(),
            L.LayerNormalization(),
            L.Dense(3, "softmax"),
        ]
    )


def sequences():
    tokens = Input((9,), dtype="int32")
    x = L.Embedding(20, 6, mask_zero=True)(tokens)
    x = L.Bidirectional(L.LSTM(4, return_sequences=True))(x)
    x, state = L.GRU(3, return_sequences=True, return_state=True)(x)
    x = L.GRU(3, reset_after=False, recurrent_activation="hard_sigmoid", return_sequences=True)(
        x, initial_state=state
    )
    x = L.Conv1D(4, 3, padding="causal")(L.TimeDistributed(L.Dense(3, "relu"))(x))
    return k2.Model(tokens, [L.Dense(2)(x), L.SimpleRNN(2)(x)])


def shared_and_nested():
    inner = k2.Sequential([Input((4,)), L.Dense(4, "relu"), L.BatchNormalization()], name="inner")
    frozen = L.Dense(4, trainable=False)
    a, b = Input((4,), name="b"), Input((4,), name="a")
    x = inner(L.Add()([frozen(a), inner(frozen(b))]))
    return k2.Model({"p": a, "q": b}, {"u": L.Dense(2, name="u")(x), "v": L.Dense(1)(frozen(x))})


def operations():
    import tensorflow as tf

    x = Input((8, 8, 4))
    y = 1.0 - tf.nn.relu(x) * 2.0 / 3.0
    y = tf.concat([y, -tf.reduce_mean(x, axis=[1, 2], keepdims=True) + y], -1)[:, 1:-1, ::2, 0]
    y = L.Multiply(name="multiply")([y, tf.nn.sigmoid(y)])
    first, second = tf.split(tf.reshape(y, (-1, 24)), 2, axis=1)
    return k2.Model(x, first + L.Dense(12)(second))


def attention():
    x = Input((6, 8))
    attended, scores = L.MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)
    return k2.Model(x, [L.Attention(use_scale=True)([attended, x]), scores])


def adapted():
    normalization = L.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 5)))
    words = L.StringLookup()
    words.adapt(["x", "y", "x"])
    x, text = Input((5,)), Input((3,), dtype="string")
    tokens = L.Flatten()(L.Embedding(4, 2)(words(text)))
    return k2.Model([x, text], L.Concatenate()([normalization(x), tokens]))


def half_precision():
    layers = [L.Conv2D(4, 3, dtype="mixed_float16"), L.Flatten(), L.Dense(2)]
    return k2.Sequential([Input((6, 6, 2)), *layers])


def perturbed(model):
    """The model with weights that tell places apart, where they are zeros and ones at first."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if getattr(weight, "trainable", False) or "moving" in getattr(weight, "name", ""):
            weight.assign(np.abs(weight + random.normal(size=weight.shape) / 5))
    return model


MODELS = (
    convolutions,
    sequences,
    shared_and_nested,
    operations,
    attention,
    adapted,
    half_precision,
)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_outputs_are_the_same(make):
    original = perturbed(make())
    model = qareg.from_tf_keras(original)
    assert model.count_params() == original.count_params()


@pytest.mark.parametrize("name", ["old.h5", "old.keras", "old"])
def test_whatever_keras_2_writes(tmp_path, name):
    original = perturbed(k2.Sequential([Input((5, 3)), L.Conv1D(4, 5), L.Flatten(), L.Dense(2)]))
    original.compile(k2.optimizers.SGD(0.5), "mse", metrics=["mae"])
    original.save(tmp_path / name, save_format={"old": "tf", "old.h5": "h5"}.get(name, "keras"))
    model = qareg.from_tf_keras(tmp_path / name)
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    np.testing.assert_allclose(predict(model, x), original(x), rtol=1e-5, atol=1e-6)
    assert (type(model.optimizer).__name__, float(model.optimizer.learning_rate)) == ("SGD", 0.5)
    assert len(model.evaluate(x, np.zeros((4, 2)), verbose=0)) == 2


def test_states_of_the_old_model_stay():
    original = k2.Sequential([Input(batch_shape=(2, 3, 1)), L.LSTM(2, stateful=True)])
    original(np.ones((2, 3, 1)))
    before = [state.numpy() for state in original.layers[0].states]
    qareg.from_tf_keras(original)
    np.testing.assert_array_equal(before, [state.numpy() for state in original.layers[0].states])


def test_models_that_are_not_their_configuration():
    class Own(k2.Model):
        def call(self, inputs):
            return inputs

    for model, said in {
        Own(
            name="own"
        ): "Expected a Functional or Sequential model. Received: 'own' (Own), whose own "
        "code calls its layers. Write the same class for Keras 3, and set its weights from "
        "`get_weights()`.",
        k2.Sequential(
            [L.Dense(2)], name="bare"
        ): "Expected a model that knows the shape of its inputs. "
        "Received: 'bare' (Sequential). Call build(input_shape) on it, or give it an Input.",
    }.items():
        with pytest.raises(ValueError) as error:
            qareg.from_tf_keras(model)
        assert str(error.value) == said


def test_another_output_is_an_error():
    class Twice(k2.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    import keras

    original = k2.Sequential([Input((3,)), Twice()])
    with pytest.raises(
        ValueError, match="Expected output 0 as in Keras 2, within 1e-05 of its largest"
    ):
        qareg.from_tf_keras(original, custom_objects={"Twice": keras.layers.Identity})


def test_pruned_and_clustered(tmp_path):
    mot = pytest.importorskip("tensorflow_model_optimization")
    x, y = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32"), np.arange(32) % 3
    stack = [Input((8, 8, 1)), L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(3)]
    loss = k2.losses.SparseCategoricalCrossentropy(from_logits=True)

    def trained(model, *callbacks):
        model.compile("adam", loss)
        model.fit(x, y, verbose=0, callbacks=list(callbacks))
        return converted(model)

    def converted(model):
        model.save(tmp_path / "m.h5")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            of_file, of_object = map(qareg.from_tf_keras, (tmp_path / "m.h5", model))
        np.testing.assert_array_equal(predict(of_file, x), predict(of_object, x))
        return of_object

    half = mot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    pruned = mot.sparsity.keras.prune_low_magnitude(k2.Sequential(stack), half)
    model = trained(pruned, mot.sparsity.keras.UpdatePruningStep())
    assert np.mean(model.layers[0].get_weights()[0] == 0) == 0.5 and model.compiled
    clustered = mot.clustering.keras.cluster_weights(
        mot.sparsity.keras.strip_pruning(pruned),
        4,
        mot.clustering.keras.CentroidInitialization.LINEAR,
    )
    model = trained(clustered)
    assert len(np.unique(model.layers[0].get_weights()[0])) <= 4 and model.compiled


@pytest.mark.parametrize("kind", ["pruned", "clustered"])
def test_wrappers_in_models_inside_models(tmp_path, kind):
    mot = pytest.importorskip("tensorflow_model_optimization")
    inner = k2.Sequential([Input((8, 8, 1)), L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten()])
    if kind == "pruned":
        half = mot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
        inner = mot.sparsity.keras.prune_low_magnitude(inner, half)
        callbacks = [mot.sparsity.keras.UpdatePruningStep()]
    else:
        start, callbacks = mot.clustering.keras.CentroidInitialization.LINEAR, []
        inner = mot.clustering.keras.cluster_weights(inner, 4, start)
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32")
    image = Input((8, 8, 1))
    model = k2.Model(image, L.Dense(3)(inner(image)))
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((8, 3)), verbose=0, callbacks=callbacks)
    model.save(tmp_path / "m.h5")
    for converted in map(qareg.from_tf_keras, (model, tmp_path / "m.h5")):
        np.testing.assert_allclose(predict(converted, x), model(x), rtol=1e-5, atol=1e-6)
        values = converted.layers[1].layers[0].get_weights()[0]
        assert np.mean(values == 0) == 0.5 if kind == "pruned" else len(np.unique(values)) <= 4
