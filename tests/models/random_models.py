"""Models at random: layers of many kinds, in models of all kinds, used once or in several places.

Every layer takes `SHAPE` and gives `SHAPE`, so that any may follow any.
"""

import copy

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops

SHAPE = BATCH, STEPS, WIDTH = 2, 4, 6
TOKENS, VALUES = 7, 3
registered = keras.saving.register_keras_serializable("tests.random")


class Box:
    """An object that Keras does not look into."""

    def __init__(self, parts):
        self.parts = parts


def _put_each(prefix):
    def put(layer, parts):
        for place, part in enumerate(parts):
            setattr(layer, f"{prefix}{place}", part)

    return put, lambda layer: [getattr(layer, f"{prefix}{place}") for place in range(layer.count)]


def _put_twice(layer, parts):
    layer.parts, layer.last = list(parts), parts[-1]


def _put_nested(layer, parts):
    layer.parts = {"first": [parts[0]], "others": {"rest": tuple(parts[1:])}}


def _put_boxed(layer, parts):
    layer.box = Box(parts)
    layer._layers.extend(parts)


# How layers are kept in attributes, and found again.
SPELLINGS = {
    "public": _put_each("part_"),
    "private": _put_each("_part_"),
    "list": (
        lambda layer, parts: setattr(layer, "_parts", list(parts)),
        lambda layer: layer._parts,
    ),
    "tuple": (
        lambda layer, parts: setattr(layer, "parts", tuple(parts)),
        lambda layer: layer.parts,
    ),
    "dict": (
        lambda layer, parts: setattr(layer, "_parts", {f"key_{i}": p for i, p in enumerate(parts)}),
        lambda layer: list(layer._parts.values()),
    ),
    "nested": (
        _put_nested,
        lambda layer: [*layer.parts["first"], *layer.parts["others"]["rest"]],
    ),
    "twice": (_put_twice, lambda layer: [*layer.parts[:-1], layer.last]),
}
BROKEN = {"boxed": (_put_boxed, lambda layer: layer.box.parts)}


class Holding:
    """Keeps the layers that it is given as `spelling` says; its configuration has them too."""

    def __init__(self, parts, spelling="public", later=False, **kwargs):
        super().__init__(**kwargs)
        self.spelling, self.later, self.count = spelling, later, len(parts)
        self.settings = [keras.saving.serialize_keras_object(part) for part in parts]
        if not later:
            self._put(parts)

    def _put(self, parts):
        ({**SPELLINGS, **BROKEN})[self.spelling][0](self, parts)

    def build(self, input_shape):
        if self.later:  # layers of its own, which are there from now on
            settings = copy.deepcopy(self.settings)
            self._put([keras.saving.deserialize_keras_object(part) for part in settings])
        for part in self.inner():
            if not part.built:
                part.build(SHAPE)
        self.built = True

    def inner(self):
        return ({**SPELLINGS, **BROKEN})[self.spelling][1](self)

    def call(self, inputs):
        for part in self.inner():
            inputs = part(inputs)
        return inputs

    def get_config(self):
        own = {"parts": self.settings, "spelling": self.spelling, "later": self.later}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config):
        parts = [keras.saving.deserialize_keras_object(part) for part in config.pop("parts")]
        return cls(parts, **config)


@registered
class HoldingModel(Holding, keras.Model):
    """A subclassed model."""


@registered
class HoldingLayer(Holding, layers.Layer):
    """A layer made of layers."""


@registered
class OwnFunctional(keras.Model):
    """A Functional model of a class of its own, which makes its layers itself."""

    def __init__(self, units=5, **kwargs):
        self_first = layers.Dense(units, activation="tanh", name="first")
        inputs = keras.Input(batch_shape=SHAPE)
        hidden = self_first(inputs)
        outputs = inputs + layers.Dense(WIDTH, name="last")(hidden)
        super().__init__(inputs, outputs, **kwargs)
        self.units, self.first, self._hidden = units, self_first, hidden

    def get_config(self):
        return {"units": self.units, "name": self.name, "trainable": self.trainable}


@registered
class Attention(layers.Layer):
    """Attends to itself, and keeps a count and a setting that no configuration says."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._attention = layers.MultiHeadAttention(2, 3, name="attention")
        self.factor = 1.0

    def build(self, input_shape):
        self._attention.build(input_shape, input_shape)
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, inputs):
        return inputs + self.factor * self._attention(inputs, inputs) + 0.01 * self.calls


@registered
class Image(layers.Layer):
    """A convolution over two axes, seen as a layer over one."""

    def __init__(self, kind="Conv2D", **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        units = () if kind == "DepthwiseConv2D" else (1,)
        self.convolution = getattr(layers, kind)(*units, 3, padding="same", name="convolution")

    def build(self, input_shape):
        self.convolution.build((*SHAPE, 1))
        self.built = True

    def call(self, inputs):
        return ops.squeeze(self.convolution(ops.expand_dims(inputs, -1)), -1)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@registered
class Mixer(layers.Layer):
    """A layer with kernels of its own."""

    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(WIDTH, WIDTH))
        self.mix_kernel = self.add_weight(name="mix_kernel", shape=(STEPS, STEPS))
        self.built = True

    def call(self, inputs):
        return ops.tanh(ops.matmul(self.mix_kernel, ops.matmul(inputs, self.kernel)))


@registered
class Tied(layers.Layer):
    """Gives the inputs' likeness to the embeddings of another layer, and that of these back."""

    def __init__(self, source, **kwargs):
        super().__init__(**kwargs)
        self.source = source

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=(TOKENS,))
        self.built = True

    def call(self, inputs):
        table = self.source.embeddings
        return ops.matmul(ops.tanh(ops.matmul(inputs, ops.transpose(table)) + self.bias), table)

    def get_config(self):
        return {**super().get_config(), "source": keras.saving.serialize_keras_object(self.source)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("source")), **config)


def _recurrent(kind, **settings):
    def make(name):
        return getattr(layers, kind)(WIDTH, return_sequences=True, name=name, **settings)

    return make


LEAVES = {
    "dense": lambda name: layers.Dense(WIDTH, activation="tanh", name=name),
    "nonneg": lambda name: layers.Dense(WIDTH, kernel_constraint="non_neg", name=name),
    "regular": lambda name: layers.Dense(WIDTH, kernel_regularizer="l2", name=name),
    "einsum": lambda name: layers.EinsumDense("bsi,io->bso", (STEPS, WIDTH), name=name),
    "conv": lambda name: layers.Conv1D(WIDTH, 3, padding="same", name=name),
    "depthwise": lambda name: layers.DepthwiseConv1D(3, padding="same", name=name),
    "separable": lambda name: layers.SeparableConv1D(WIDTH, 3, padding="same", name=name),
    "image": lambda name: Image(name=name),
    "depthwise image": lambda name: Image("DepthwiseConv2D", name=name),
    "separable image": lambda name: Image("SeparableConv2D", name=name),
    "transposed image": lambda name: Image("Conv2DTranspose", name=name),
    "norm": lambda name: layers.BatchNormalization(name=name),
    "layer norm": lambda name: layers.LayerNormalization(name=name),
    "dropout": lambda name: layers.Dropout(0.5, name=name),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU", stateful=True),
    "stateful lstm": _recurrent("LSTM", stateful=True),
    "cells": lambda name: layers.RNN(
        [layers.GRUCell(3), layers.LSTMCell(WIDTH)], return_sequences=True, name=name
    ),
    "bidirectional": lambda name: layers.Bidirectional(
        layers.LSTM(WIDTH // 2, return_sequences=True, stateful=True), name=name
    ),
    "distributed": lambda name: layers.TimeDistributed(layers.Dense(WIDTH), name=name),
    "attention": lambda name: Attention(name=name),
    "mixer": lambda name: Mixer(name=name),
}
CONTAINERS = ("sequential", "open", "functional", "model", "layer", "own")


class Builder:
    """Draws a model; what it made before, it may use again elsewhere."""

    def __init__(self, draw, spellings):
        self.draw, self.spellings, self.made = draw, spellings, []

    def one_of(self, choices):
        return self.draw(st.sampled_from(list(choices)))

    def chance(self, times):
        return self.draw(st.integers(0, times - 1)) == times - 1

    def part(self, depth, taken):
        """A layer, new or made before, whose name is none of `taken`."""
        again = [layer for layer in self.made if layer.name not in taken]
        if again and self.chance(4):
            return self.one_of(again)
        name = self.one_of(name for name in "abcdef" if name not in taken)
        if depth and self.chance(2):
            made = self.container(self.one_of(CONTAINERS), name, depth - 1)
        else:
            made = LEAVES[self.one_of(LEAVES)](name)
        self.made.append(made)
        return made

    def parts(self, depth):
        found = []
        for _ in range(self.draw(st.integers(1, 3))):
            found.append(self.part(depth, {part.name for part in found}))
        return found

    def container(self, kind, name, depth):
        if kind == "own":
            return OwnFunctional(self.one_of([4, 5]), name=name)
        parts = self.parts(depth)
        if kind in ("sequential", "open"):
            known = [keras.Input(batch_shape=SHAPE)] if kind == "sequential" else []
            return keras.Sequential([*known, *parts], name=name)
        if kind == "functional":
            return self.functional(parts, name)
        cls = HoldingModel if kind == "model" else HoldingLayer
        spelling = self.draw(self.spellings)
        # Made in build, layers are made again there: they are nobody else's.
        later = not any(part in self.made[: -len(parts)] for part in parts) and self.chance(4)
        return cls(parts, spelling, later, name=name)

    def functional(self, parts, name):
        inputs = hidden = keras.Input(batch_shape=SHAPE)
        for part in parts:
            hidden = self.one_of([lambda x, p=part: p(x), lambda x, p=part: x + p(x)])(hidden)
        if self.chance(3):  # a layer in two places of one graph
            hidden = ops.tanh(parts[0](hidden))
        return keras.Model(inputs, hidden, name=name)

    def model(self, depth=2):
        """A whole model, of tokens or of numbers, and an input for it."""
        if not self.chance(3):
            kind = self.one_of([kind for kind in CONTAINERS if kind != "layer"])
            return self.container(kind, "model", depth), False
        tokens = keras.Input(batch_shape=(BATCH, STEPS), dtype="int32")
        embedding = layers.Embedding(TOKENS, WIDTH, name="embedding")
        hidden = embedding(tokens)
        for part in self.parts(depth):
            hidden = part(hidden)
        if self.chance(2):
            hidden = Tied(embedding, name="tied")(hidden)
        return keras.Model(tokens, hidden, name="model"), True


@st.composite
def models(draw, spellings=st.sampled_from(list(SPELLINGS))):  # noqa: B008
    """A built model with random weights and states, and an input for it."""
    builder = Builder(draw, spellings)
    model, takes_tokens = builder.model()
    random = np.random.default_rng(draw(st.integers(0, 9)))
    inputs = (
        random.integers(0, TOKENS, (BATCH, STEPS)).astype("int32")
        if takes_tokens
        else random.normal(size=SHAPE).astype("float32")
    )
    model(inputs)
    set_weights(model, random)
    for layer in model._flatten_layers():
        if hasattr(layer, "factor"):
            layer.factor = 0.5
    for layer in builder.made:
        layer.trainable = not builder.chance(4)
    model(inputs)  # states are not zero any more
    return model, inputs


def set_weights(model, random):
    """Random weights; each kernel has at most `VALUES` values."""
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        positive = weight.constraint is not None or "variance" in weight.name
        values = random.normal(0.0, 0.7, VALUES).astype("float32")
        values = np.abs(values) + 0.1 if positive else values
        weight.assign(random.choice(values, tuple(weight.shape)))
