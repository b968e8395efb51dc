"""A copy accounts for every weight, however its model was written, or says what it cannot copy."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.models.cloning import clone, fresh
from tests.helpers import arrays, error_of, predict

INPUTS = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")


class Base(keras.Model):
    def call(self, inputs, training=None):
        for layer in self.stack():
            inputs = layer(inputs)
        return inputs


class PrivateAttributes(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._hidden, self._out = (
            layers.Dense(6, "relu", name="hidden"),
            layers.Dense(3, name="out"),
        )

    def stack(self):
        return self._hidden, self._out


class PrivateList(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._blocks = [layers.Dense(6, "relu", name="hidden"), layers.Dense(3, name="out")]

    def stack(self):
        return self._blocks


class PrivateDict(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._blocks = {"a": layers.Dense(6, name="hidden"), "b": [layers.Dense(3, name="out")]}

    def stack(self):
        return self._blocks["a"], *self._blocks["b"]


class PrivateTuple(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._blocks = (layers.Dense(6, "relu", name="hidden"), layers.Dense(3, name="out"))

    def stack(self):
        return self._blocks


class MadeInBuild(Base):
    def build(self, input_shape):
        self.hidden = layers.Dense(6, "relu", name="hidden")
        self._out = layers.Dense(3, name="out")
        self.hidden.build(input_shape)
        self._out.build((None, 6))
        self.built = True

    def stack(self):
        return self.hidden, self._out


class MadeOfModels(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._inner = PrivateAttributes(name="inner")
        self.head = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="last")], name="head")

    def stack(self):
        return self._inner, self.head


class OwnLayer(layers.Layer):
    """A layer that holds a layer of this package is entered too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._dense = layers.Dense(6, name="dense")

    def build(self, input_shape):
        self._dense.build(input_shape)

    def call(self, inputs):
        return self._dense(inputs)


class OfOwnLayers(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._first, self._second = OwnLayer(name="first"), OwnLayer(name="second")

    def stack(self):
        return self._first, self._second


class ReadOnlyProperty(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._layer_of_mine = layers.Dense(5, name="hidden")

    @property
    def hidden(self):
        return self._layer_of_mine

    def stack(self):
        return (self.hidden,)


SPELLINGS = [
    PrivateAttributes,
    PrivateList,
    PrivateDict,
    PrivateTuple,
    MadeInBuild,
    MadeOfModels,
    OfOwnLayers,
    ReadOnlyProperty,
]


def trained(make):
    keras.utils.set_random_seed(4)
    model = make()
    model.compile("sgd", "mse")
    model(INPUTS)
    for weight in model.trainable_variables:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    return model


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("make", SPELLINGS)
def test_every_spelling_comes_through(make, inside):
    model = trained(make)
    if inside:
        entry = keras.Input((8,))
        model = keras.Model(entry, layers.Dense(2, name="head")(model(entry)))
    expected = predict(model, INPUTS)
    np.testing.assert_array_equal(predict(qareg.strip(model), INPUTS), expected)
    wrapped = qareg.quantization_aware(model, qareg.regularizers.NearestSquared(4))
    np.testing.assert_array_equal(predict(wrapped, INPUTS), expected)
    np.testing.assert_array_equal(predict(qareg.strip(wrapped), INPUTS), expected)
    shared = qareg.share_weights(model, 4)
    assert len(qareg.codebooks(shared)) == sum("kernel" in weight.path for weight in model.weights)
    assert max(book.levels_used for book in qareg.codebooks(shared).values()) <= 4
    np.testing.assert_array_equal(predict(qareg.strip(shared), INPUTS), predict(shared, INPUTS))
    np.testing.assert_array_equal(predict(model, INPUTS), expected)  # it stays as it was


@dataclasses.dataclass
class Box:
    layer: layers.Layer


class InAnObject(Base):
    """Keras does not track a layer in an object of the user's own, but this one is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.known = layers.Dense(4, name="known")
        self._layers.append(dense := layers.Dense(3, name="boxed"))
        self.box = Box(dense)

    def stack(self):
        return self.known, self.box.layer


def test_what_cannot_be_copied_is_named():
    model = trained(InAnObject)
    with pytest.raises(ValueError) as error:
        qareg.strip(model)
    assert "Expected a copy of model 'in_an_object" in str(error.value)
    assert "lacks ['" in str(error.value) and "boxed/kernel" in str(error.value)


@keras.saving.register_keras_serializable("tests")
class OfFunctional(keras.Model):
    """A Functional model with a class of its own, as those of keras-hub are."""

    def __init__(self, units=5, **kwargs):
        inputs = keras.Input((8,))
        first = layers.Dense(units, name="first")
        hidden = first(inputs)
        super().__init__(inputs, layers.Dense(3, name="last")(hidden), **kwargs)
        self.first, self.units, self.hidden = first, units, hidden
        self._parts = {"all": [self.first], "pair": (self.first, "text")}

    def get_config(self):
        return {"units": self.units, "name": self.name}

    def doubled(self, inputs):
        return 2 * self(inputs)


@keras.saving.register_keras_serializable("tests")
class OfSequential(keras.Sequential):
    def __init__(self, units=5, **kwargs):
        super().__init__([keras.Input((8,)), layers.Dense(units, name="first")], **kwargs)
        self.units = units

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def get_config(self):
        return {"units": self.units, "name": self.name}

    def doubled(self, inputs):
        return 2 * self(inputs)


@pytest.mark.parametrize("kind", [OfFunctional, OfSequential])
def test_subclasses_of_graphs_stay_what_they_are(kind, tmp_path):
    model = kind(6)
    model.names = ["a", "b"]
    shared = qareg.share_weights(model, levels=4)
    assert type(shared) is kind and shared.units == 6 and shared.names == ["a", "b"]
    plain = qareg.strip(shared)
    assert type(plain) is kind
    inputs = np.ones((2, 8), "float32")
    np.testing.assert_array_equal(*arrays(plain.doubled(inputs), shared.doubled(inputs)))
    plain.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is kind
    np.testing.assert_array_equal(*arrays(loaded(inputs), plain(inputs)))
    outer = keras.Model(outside := keras.Input((8,)), kind(4, name="inside")(outside))
    assert type(qareg.share_weights(outer, levels=4).get_layer("inside")) is kind


def test_attributes_of_a_subclass_are_those_of_the_copy():
    model = OfFunctional()
    shared = qareg.share_weights(model, levels=4)
    first = shared.get_layer("first")
    assert shared.first is first is not model.first
    assert shared._parts["all"][0] is first and shared._parts["pair"] == (first, "text")
    inputs = np.ones((2, 8), "float32")
    inside = keras.Model(shared.inputs, shared.hidden)  # its tensors too
    np.testing.assert_allclose(*arrays(inside([inputs]), first(inputs)), rtol=1e-6)


def test_a_tensor_of_another_model_is_refused():
    model = OfFunctional()
    model.elsewhere = keras.Input((3,))
    assert error_of(lambda: qareg.strip(model)).startswith(
        f"Expected attribute '{model.name}.elsewhere' to be a tensor inside the model, which its copy "
        "has too. Received: <KerasTensor"
    )


@keras.saving.register_keras_serializable("tests")
class Growing(keras.Model):
    """Layers are added after it is made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts, self.named = [layers.Dense(4)], {"a": layers.Dense(4)}

    def call(self, inputs):
        for layer in (*self.parts, *self.named.values()):
            inputs = layer(inputs)
        return inputs


def test_lists_and_dicts_that_grew_are_refused_in_words():
    for name, add, places in (
        ("list", lambda m: m.parts.append(layers.Dense(4)), "[0] of [0, 1]"),
        ("dict", lambda m: m.named.update({"b": layers.Dense(4)}), "['a'] of ['a', 'b']"),
    ):
        model = Growing(name=name)
        add(model)
        model(INPUTS)
        assert error_of(lambda model=model: qareg.strip(model)) == (
            f"Expected '{name}' (Growing) to have its lists and dicts of layers again when it is made "
            f"from its `get_config()`. Received: places {places}. Add all layers in `__init__` or "
            "`build()`."
        )


class Odd(layers.Layer):
    """Cannot be made again from its configuration, but whoever holds it makes one."""

    def __init__(self, width):
        super().__init__(name="odd")
        self.dense = layers.Dense(width, name="inside")

    def call(self, inputs):
        return self.dense(inputs)


class AroundOdd(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.odd, self.last = Odd(5), layers.Dense(3, name="last")

    def stack(self):
        return self.odd, self.last


def test_a_layer_without_a_configuration_is_taken_from_the_copy_around_it():
    model = trained(AroundOdd)
    expected = predict(model, INPUTS)
    np.testing.assert_array_equal(predict(clone(model, lambda layer: None), INPUTS), expected)

    def change(layer):
        if isinstance(layer, layers.Dense):
            return lambda layer: qareg.layers.SharedWeights(fresh(layer), 256, name=layer.name)
        return None

    deep = clone(model, change, deep=True)
    assert isinstance(deep.odd.dense, qareg.layers.SharedWeights)


def test_a_function_that_is_called_as_one_of_keras_stays_itself():
    def relu(x):
        return keras.ops.abs(x)

    stack = [layers.Dense(4, activation=relu), layers.Dense(3, activation="relu")]
    model = keras.Sequential([keras.Input((8,)), *stack])
    copied = clone(model, lambda layer: None)
    np.testing.assert_array_equal(predict(copied, INPUTS), predict(model, INPUTS))
    assert copied.layers[0].activation is relu


def test_seeds_of_random_layers_are_copied():
    stack = [layers.Dense(8), layers.Dropout(0.5, seed=3), layers.Dropout(0.5), layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *stack])
    x = np.ones((16, 3), "float32")
    model.compile("sgd", "mse")
    model.fit(x, x[:, :2], batch_size=8, verbose=0)

    def seeds(network):
        dropouts = [x for x in network.layers if isinstance(x, layers.Dropout)]
        return [ops.convert_to_numpy(x.seed_generator.state).tolist() for x in dropouts]

    before = seeds(model)
    for copied in (qareg.share_weights(model, 4), qareg.strip(model), qareg.shrink(model)):
        assert seeds(copied) == before


@pytest.mark.one_backend
def test_kernels_of_a_layer_have_one_regularizer():
    sine = qareg.regularizers.Sine
    several = {"kernel_regularizer": sine(4), "recurrent_regularizer": sine(8)}
    model = keras.Sequential([keras.Input((5, 4)), layers.LSTM(8, name="l", **several)])
    message = error_of(qareg.share_weights, model)
    assert message.startswith(
        "Expected one regularizer of keras_qareg for all kernels of layer 'l'."
    )
    of_bias = [
        layers.Dense(8, bias_regularizer=sine(4)),
        layers.Dense(4, kernel_regularizer=sine(4)),
    ]
    model = keras.Sequential([keras.Input((16,)), *of_bias])
    wrapped = qareg.quantization_aware(model).layers
    assert [isinstance(x, qareg.layers.QuantizationAware) for x in wrapped] == [False, True]
