"""States, ties and settings come along with the weights, or there is an error in words."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.regularizers import NearestSquared
from tests.helpers import arrays, error_of

TOKENS = np.arange(10).reshape(2, 5)
TRANSFORMS = {
    "share_weights": lambda model: qareg.share_weights(model, levels=3),
    "quantization_aware": lambda model: qareg.quantization_aware(model, NearestSquared(3)),
    "strip": qareg.strip,
}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@transforms
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(8, stateful=True),
        lambda: layers.GRU(8, stateful=True),
        lambda: layers.Bidirectional(layers.LSTM(8, stateful=True)),
        lambda: layers.RNN(layers.LSTMCell(8), stateful=True),
    ],
)
def test_states_of_recurrent_layers_come_along_and_go_on(layer, transform):
    made = layer()
    model = keras.Sequential([keras.Input(batch_shape=(2, 5, 4)), made])
    inputs = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    model(inputs)  # the states are not zero any more
    copied = transform(model)
    first, second = (ops.convert_to_numpy(copied(inputs)).copy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-4
    if transform is not TRANSFORMS["share_weights"]:
        expected = [ops.convert_to_numpy(model(inputs)).copy() for _ in range(2)]
        np.testing.assert_allclose([first, second], expected, atol=1e-6)
    copied.layers[-1].reset_state()
    made.reset_state()
    if transform is qareg.strip:
        np.testing.assert_allclose(*arrays(copied(inputs), model(inputs)), atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Tied(layers.Layer):
    """Multiplies with the transposed embeddings of another layer."""

    def __init__(self, source, **kwargs):
        super().__init__(**kwargs)
        self.source = source

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(self.source.input_dim,), name="bias")
        self.built = True

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.source.embeddings)) + self.bias

    def get_config(self):
        source = keras.saving.serialize_keras_object(self.source)
        return {**super().get_config(), "source": source}

    @classmethod
    def from_config(cls, config):
        source = keras.saving.deserialize_keras_object(config.pop("source"))
        return cls(source, **config)


@keras.saving.register_keras_serializable("tests")
class TiedDense(layers.Layer):
    def __init__(self, source, **kwargs):
        super().__init__(**kwargs)
        self.source = source

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.source.kernel))

    def get_config(self):
        source = keras.saving.serialize_keras_object(self.source)
        return {**super().get_config(), "source": source}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("source")), **config)


def tied_functional() -> keras.Model:
    tokens = keras.Input((5,), dtype="int32")
    embedding = layers.Embedding(10, 4, name="emb")
    return keras.Model(
        tokens, Tied(embedding, name="head")(layers.Dense(4, name="d")(embedding(tokens)))
    )


class TiedInCode(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.emb, self.d = layers.Embedding(10, 4, name="emb"), layers.Dense(4, name="d")

    def call(self, inputs):
        return ops.matmul(self.d(self.emb(inputs)), ops.transpose(self.emb.embeddings))


def tied_in_code() -> keras.Model:
    model = TiedInCode()
    model(TOKENS)
    return model


@pytest.mark.parametrize("make", [tied_functional, tied_in_code])
def test_a_kernel_that_another_layer_reads_is_shared_in_both_places(make):
    model = make()
    shared = qareg.share_weights(model, levels=3)
    books = qareg.codebooks(shared)
    assert [path.split("/")[-2] for path in books] == ["emb", "d"]
    plain = qareg.strip(shared)
    assert len(plain.weights) == len(model.weights)
    np.testing.assert_array_equal(*arrays(plain(TOKENS), shared(TOKENS)))
    shared.compile("sgd", "mse")
    before = ops.convert_to_numpy(shared.get_layer("emb").centroids[0]).copy()
    shared.fit(TOKENS, np.ones((2, 5, 10)), epochs=1, verbose=0)
    assert np.abs(before - ops.convert_to_numpy(shared.get_layer("emb").centroids[0])).max() > 0
    plain = qareg.strip(shared)
    np.testing.assert_allclose(*arrays(plain(TOKENS), shared(TOKENS)), atol=1e-6)
    assert len(np.unique(ops.convert_to_numpy(plain.get_layer("emb").embeddings))) == 3
    trained = qareg.quantization_aware(model, NearestSquared(3))
    np.testing.assert_array_equal(*arrays(trained(TOKENS), model(TOKENS)))
    trained.get_layer("emb").place_centroids()
    quantized = qareg.strip(trained)
    np.testing.assert_allclose(*arrays(trained(TOKENS), quantized(TOKENS)), atol=1e-6)


def test_wnq_leaves_tied_layers_as_they_are():
    inputs = keras.Input((8,))
    first = layers.Dense(16, name="first")
    last = TiedDense(first, name="last")(layers.Dense(16, name="middle")(first(inputs)))
    model = keras.Model(inputs, last)
    with pytest.warns(UserWarning, match="because other layers hold them, .* kernels: .'first'."):
        quantized = qareg.wnq(model, skip=())
    values = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    np.testing.assert_allclose(
        *arrays(qareg.strip(quantized)(values), quantized(values)), rtol=1e-5, atol=1e-5
    )


def test_tied_layers_are_saved_and_loaded(tmp_path):
    shared = qareg.share_weights(tied_functional(), levels=3)
    for model in (shared, qareg.strip(shared)):
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.get_layer("head").source is loaded.get_layer("emb")
        np.testing.assert_array_equal(*arrays(loaded(TOKENS), model(TOKENS)))


def test_a_wrapper_has_what_its_layer_has():
    shared = qareg.share_weights(
        keras.Sequential([keras.Input((8,)), layers.Dense(4, name="d")]), 2
    )
    layer = shared.get_layer("d")
    assert layer.units == 4 and layer.activation is layer.layer.activation
    np.testing.assert_array_equal(*arrays(layer.kernel, layer.codebooks()[0].weights))
    assert layer.bias is layer.layer.bias
    with pytest.raises(AttributeError, match="nothing"):
        layer.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="'SharedWeights' object has no attribute '_nothing'"):
        layer._nothing  # noqa: B018


def read_by_an_operation() -> keras.Model:
    tokens = keras.Input((5,), dtype="int32")
    embedding = layers.Embedding(10, 4, name="emb")
    hidden = layers.Dense(4, name="d")(embedding(tokens))
    return keras.Model(tokens, ops.einsum("bse,ve->bsv", hidden, embedding.embeddings))


def test_a_weight_that_an_operation_reads_is_the_copys_own():
    model = read_by_an_operation()
    copied = qareg.strip(model)
    model.get_layer("emb").embeddings.assign(np.zeros((10, 4)))
    assert np.abs(ops.convert_to_numpy(copied(TOKENS))).max() > 0
    embeddings = copied.get_layer("emb").embeddings
    embeddings.assign(np.zeros((10, 4)))
    assert np.abs(ops.convert_to_numpy(copied(TOKENS))).max() == 0
    qareg.share_weights(read_by_an_operation(), 3, layers=["d"])
    assert error_of(lambda: qareg.share_weights(model, 3)) == (
        "Expected weights that only their own layers use. Received: 'emb/embeddings' of model "
        f"'{model.name}', which an operation reads too. Leave its layer out (`layers`), or read it in a "
        "layer that has that layer as an attribute."
    )


def test_a_weight_that_a_lambda_reads_is_refused():
    inputs = keras.Input((4,))
    dense = layers.Dense(4, name="d")
    outputs = layers.Lambda(lambda x: ops.matmul(x, dense.kernel), name="back")(dense(inputs))
    assert error_of(lambda: qareg.strip(keras.Model(inputs, outputs))) == (
        "Expected a function in Lambda layer 'back' that reads its inputs alone. Received: one that "
        "reads 'dense', a layer or weight of the model, which a copy would read too. Write a layer that "
        "has it as an attribute."
    )


class Borrowing(layers.Layer):
    """Has the variable of another layer as its own kernel."""

    def __init__(self, lend=None, **kwargs):
        super().__init__(**kwargs)
        self.lend = lend

    def build(self, input_shape):
        made = self.add_weight if self.lend is None else self.lend
        self.kernel = made(shape=(input_shape[-1], 4), name="kernel")

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)

    def get_config(self):
        return super().get_config()


def test_a_variable_of_two_layers_is_refused():
    dense = layers.Dense(4, name="lender")
    last = Borrowing(lambda **_: dense.kernel, name="borrower")
    model = keras.Sequential([keras.Input((4,)), dense, last])
    assert len(model.weights) == 2
    assert error_of(lambda: qareg.strip(model)) == (
        f"Expected weights of model '{model.name}' that its layers can be copied with. Received: "
        f"['{dense.kernel.path}'], each of which several layers have as their own. Give these layers "
        "the layer that owns the weight as an attribute, and read the weight from there."
    )


@keras.saving.register_keras_serializable("tests")
class Forgetful(layers.Layer):
    """Its configuration does not say `factor`, and `offset` is set later."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor + getattr(self, "offset", 0.0)

    def get_config(self):
        return super().get_config()


def test_settings_that_a_configuration_does_not_say_come_along():
    model = keras.Sequential([keras.Input((4,)), Forgetful(3.0), layers.Dense(8)])
    model.layers[0].offset = np.arange(4, dtype="float32")
    inputs = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(*arrays(qareg.strip(model)(inputs), model(inputs)))


class WithoutConfig(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs)


def test_what_cannot_be_made_again_is_named():
    model = keras.Sequential([keras.Input((4,)), WithoutConfig(8)])
    expected = (
        f"Expected '{model.layers[0].name}' (WithoutConfig) to be made again from its configuration. "
        "Received: TypeError: WithoutConfig.__init__() got an unexpected keyword argument 'trainable'. "
        "Give the class a `get_config()` with all arguments of its `__init__`, which takes `**kwargs` "
        "as well."
    )
    for transform in TRANSFORMS.values():
        assert error_of(lambda transform=transform: transform(model)) == expected


class Shrinking(layers.Layer):
    """Its configuration makes another layer than it is."""

    def __init__(self, units=2, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return super().get_config()


def test_a_copy_of_another_size_is_refused():
    model = keras.Sequential([keras.Input((4,)), Shrinking(8, name="shrinking")])
    assert error_of(lambda: qareg.strip(model)) == (
        "Expected a copy of layer 'shrinking' (Shrinking) with weights and states kernel (4, 8), bias "
        "(8,). Received: kernel (4, 2), bias (2,), because its `get_config()` does not say all that it "
        "is made of. Extend it."
    )


def test_strip_writes_into_a_model_of_the_user():
    def net(units=8):
        return keras.Sequential([keras.Input((4,)), layers.Dense(units, name="d"), layers.Dense(2)])

    model, mine = net(), net()
    shared = qareg.share_weights(model, levels=2)
    assert qareg.strip(shared, into=mine) is mine
    inputs = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(*arrays(mine(inputs), shared(inputs)))
    assert qareg.strip(shared, into=model) is model  # the one that was transformed
    np.testing.assert_array_equal(*arrays(model(inputs), shared(inputs)))
    other = net(6)
    assert error_of(lambda: qareg.strip(shared, into=other)) == (
        f"Expected `into` to be a model with the 4 weights of '{shared.name}'. Received: '{other.name}' "
        "with 4 weights, ('kernel', (4, 6)) for ('kernel', (4, 8))."
    )
    assert error_of(lambda: qareg.strip(model, into=shared)).startswith("Expected a plain model.")
