"""Every kind of Keras model, small, for tests of what takes a whole model."""

import keras
import numpy as np
from keras import layers, ops

from tests.helpers import digits, small_cnn


def functional():
    """Two inputs, a shared layer, a nested model, an operation and two outputs."""
    keras.utils.set_random_seed(1)
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    shared = layers.Dense(12, name="shared")
    inside = keras.Sequential(
        [keras.Input((12,)), layers.Dense(9, activation="relu", name="deep")], name="inside"
    )
    merged = ops.relu(shared(left) - shared(right))
    hidden = layers.BatchNormalization(name="norm")(inside(merged))
    outputs = [layers.Dense(4, name="first")(hidden), layers.Dense(2, name="second")(hidden)]
    return keras.Model([left, right], outputs, name="two_heads")


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Layers in an attribute, a list and a dictionary, and a weight of its own."""

    def __init__(self, width=10, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.entry = layers.Dense(width, activation="relu", name="entry")
        self.blocks = [layers.Dense(width, name=f"block_{i}") for i in range(2)]
        self.heads = {"main": layers.Dense(3, name="head")}
        self.norm = layers.BatchNormalization(name="norm")
        self.scale = self.add_weight(name="scale", shape=(width,), initializer="ones")

    def call(self, inputs, training=None):
        hidden = self.entry(inputs)
        for block in self.blocks:
            hidden = ops.tanh(block(hidden))
        return self.heads["main"](self.norm(hidden * self.scale, training=training))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def subclassed():
    keras.utils.set_random_seed(2)
    model = Subclassed(name="subclassed")
    model(np.ones((1, 8)))
    model.scale.assign(np.linspace(0.5, 1.5, 10))
    return model


def nested():
    """A subclassed model inside a functional one."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(5, name="last")(Subclassed(name="trunk")(inputs)))


MODELS = {
    "sequential": (small_cnn, digits(16)[0], ["conv", "fc", "out"]),
    "functional": (functional, [np.eye(8), np.ones((8, 8))], ["shared", "deep", "first", "second"]),
    "subclassed": (subclassed, np.eye(8), ["entry", "block_0", "block_1", "head"]),
    "nested": (nested, np.eye(8), ["entry", "block_0", "block_1", "head", "last"]),
}


def outputs_of(model, inputs):
    inputs = keras.tree.map_structure(lambda x: ops.convert_to_tensor(x, "float32"), inputs)
    return [ops.convert_to_numpy(y) for y in keras.tree.flatten(model(inputs, training=False))]


def assert_same_outputs(model, other, inputs):
    for one, two in zip(outputs_of(model, inputs), outputs_of(other, inputs), strict=True):
        np.testing.assert_array_equal(one, two)
