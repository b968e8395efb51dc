"""Which layers are first, last, or behind some outputs alone, and which may get negative inputs."""

import keras
import pytest
from keras import layers, ops

from keras_qareg.models.selection import select
from keras_qareg.models.surroundings import (
    first_layers,
    last_layers,
    may_get_negative_inputs,
    only_behind,
)

pytestmark = pytest.mark.one_backend


def branches() -> keras.Model:
    """Two inputs, two heads, and a sum in between."""
    image, vector = keras.Input((8, 8, 3)), keras.Input((20,))
    x = layers.Conv2D(8, 3, name="c1")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, activation="relu", name="c2")(layers.MaxPooling2D()(x))
    y = layers.Dense(20, "relu", name="v2")(layers.Dense(20, name="v1")(vector))
    x = layers.Concatenate()([layers.Flatten()(x), y])
    x = layers.Dense(20, name="linear")(layers.Dense(20, "relu", name="mid")(x))
    x = layers.Dense(20, name="h0")(ops.relu(x))
    heads = [layers.Dense(3, name="h1")(x), layers.Dense(2, name="h2")(ops.relu(x))]
    return keras.Model([image, vector], heads, name="branches")


def nested() -> keras.Model:
    inner = branches()
    inputs = [keras.Input(x.shape[1:]) for x in inner.inputs]
    return keras.Model(inputs, layers.Dense(4, name="after")(inner(inputs)[0]))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (layers.Dense(4, name=name) for name in "abc")

    def call(self, inputs):
        return self.c(self.b(self.a(inputs)))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(ops.ones((1, 4)))
    return model


def sequential() -> keras.Model:
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.ReLU(), layers.Dense(4, name="b")]
    )


@pytest.mark.parametrize(
    ("build", "first", "last", "negative"),
    [
        (branches, ["c1", "v1"], ["h1", "h2"], ["c1", "v1", "v2", "h1"]),
        (nested, ["c1", "v1"], ["after"], ["after", "c1", "v1", "v2", "h1"]),
        (subclassed, ["a"], ["c"], ["a", "b", "c"]),
        (sequential, ["a"], ["b"], ["a"]),
    ],
)
def test_ends_and_negative_inputs(build, first, last, negative):
    model = build()
    weighted = select(model)
    assert [layer.name for layer in first_layers(model, weighted)] == first
    assert [layer.name for layer in last_layers(model, weighted)] == last
    found = [layer.name for layer in may_get_negative_inputs(model, weighted)]
    assert sorted(found) == sorted(negative)


def test_what_is_only_behind_some_outputs():
    inner, inputs = branches(), [keras.Input((8, 8, 3)), keras.Input((20,))]
    shared, (first, second) = layers.Dense(3, name="shared"), inner(inputs)
    heads = [first, shared(second), shared(layers.Dense(2, name="own")(inputs[1]))]
    model = keras.Model(inputs, heads)

    def found(*outputs):
        return {layer.name for layer in only_behind(model, outputs) if layer.count_params()}

    everything = {
        layer.name for layer in [*inner.layers, *model.layers[3:]] if layer.count_params()
    }
    assert found(True, False, False) == {"h1"}
    assert found(True, True, False) == everything - {"own", "shared"}
    assert found(False, False, True) == {"own"}
    assert found(False, False, False) == set()
    assert found(True, True, True) == everything
    assert only_behind(subclassed(), [True]) == []
