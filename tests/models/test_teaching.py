"""What the teacher gives is computed once where it can be, and changes nothing in what is learned."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_qareg import data
from keras_qareg.compressing import compressed
from keras_qareg.models import teaching, training
from keras_qareg.models.teaching import known_outputs
from keras_qareg.options import Options

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 8)).astype("float32")
Y = RNG.integers(0, 3, 70)


class Noise(layers.Layer):
    """Random in inference, too."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


class Centered(layers.Layer):
    """Sees the other examples of its batch."""

    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


def net(*between, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, "relu"), *between, layers.Dense(3, "softmax")]
    )


def two_headed(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8,))
    x = layers.Dense(16, "relu")(inputs)
    outputs = {"size": layers.Dense(2)(x), "kind": layers.Dense(3, "softmax")(x)}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    return model


def test_outputs_of_all_examples_in_their_order():
    teacher = two_headed()
    found = known_outputs(teacher, data.read(X, teacher), 32)
    expected = keras.tree.flatten(teacher.predict(X, verbose=0))
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == "float32"
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_step_of_ones_own_to_predict_is_not_asked():
    class Silent(keras.Sequential):
        def predict_step(self, *_):
            raise AssertionError("asked")

    teacher = Silent(net().layers)
    (found,) = known_outputs(teacher, data.read(X, teacher), 32)
    np.testing.assert_allclose(found, ops.convert_to_numpy(teacher(X)), atol=1e-6)


@pytest.mark.parametrize("layer", [Noise, Centered, lambda: layers.Lambda(lambda x: x[:1])])
def test_outputs_that_are_not_those_of_an_example_are_not_kept(layer):
    teacher = net(layer())
    assert known_outputs(teacher, data.read(X, teacher), 32) is None


def test_nor_those_of_batches_or_weighted_nor_too_large_ones(monkeypatch):
    teacher = net()
    assert known_outputs(teacher, data.read([X[:8], X[8:16]], teacher), 32) is None
    assert known_outputs(teacher, data.read(X, teacher, steps=2), 32) is None
    weighted = (X, Y, RNG.uniform(size=70).astype("float32"))
    assert known_outputs(teacher, data.read(weighted, teacher), 32) is None
    monkeypatch.setattr(teaching, "_KEPT_BYTES", 0)
    assert known_outputs(teacher, data.read(X, teacher), 32) is not None  # 3 numbers for 8
    wide = keras.Sequential([keras.Input((8,)), layers.Dense(9)])
    assert known_outputs(wide, data.read(X, wide), 32) is None


TARGETS = {"kind": Y, "size": RNG.normal(size=(70, 2)).astype("float32")}
CASES = {
    "inputs alone": (net, X),
    "two outputs": (two_headed, (X, TARGETS)),
    "labels": (net, (X, Y)),
    "two outputs, inputs alone": (two_headed, X),
}
SLOW = ("labels", "two outputs, inputs alone")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]
)
def test_training_is_the_same_as_with_the_teacher_in_each_step(case, monkeypatch):
    make, given = CASES[case]

    found = []

    def trained(outputs):
        model = make()
        if not model.compiled and case != "inputs alone":
            model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        monkeypatch.setattr(
            training, "known_outputs", lambda *a: found.append(outputs(*a)) or found[-1]
        )
        settings = {"levels": 16, "epochs": 2, "seed": 0, "verbose": 0, "batch_size": 35}
        return compressed(model, given, options=Options(**settings)).stages

    told, asked = trained(known_outputs), trained(lambda *_: None)
    assert [outputs is None for outputs in found] == [False, False, True, True]
    for mine, theirs in zip(told, asked, strict=True):
        assert mine.results.keys() == theirs.results.keys()
        for name, value in mine.results.items():
            share = name in ("accuracy", "agreement")  # where one image may be told otherwise
            near = pytest.approx(theirs.results[name], rel=1e-2, abs=0.03 if share else 1e-6)
            assert value == near, (mine.name, name)
