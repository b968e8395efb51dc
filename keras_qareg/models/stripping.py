"""Back to an ordinary Keras model."""

from __future__ import annotations

import math
import warnings

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import (
    EXTENDED,
    QUANTIZED,
    ActivationRange,
    FreezableBatchNormalization,
    QuantizationAware,
    SharedWeights,
    WeightNormalized,
    Weights,
    kernels,
)
from keras_qareg.layers.keras_private import attributes, layers_inside
from keras_qareg.models.accounting import copy_adapted_state, inner_layer
from keras_qareg.models.cloning import clone, fresh
from keras_qareg.models.graphs import Passed
from keras_qareg.models.selection import check_built, check_plain, quantized_layers
from keras_qareg.models.trial import (
    SIZES,
    difference,
    is_random,
    outputs_of,
    trial_inputs,
)
from keras_qareg.regularizers import QuantizationRegularizer

# How far outputs of the same weights may be apart, relative to the largest.
_TOLERANCE = 1e-3


def strip(model: keras.Model, into: keras.Model | None = None) -> keras.Model:
    """An ordinary Keras model with the same outputs, the original layer names, and plain kernels.

    Shared kernels are written out as `centroids[indices]`, those of WNQ layers and of integers as they
    were quantized, and those of `QuantizationAware` layers as they were trained, or as quantized where
    that is what they compute with. The regularizers of this package are taken off, so that the saved
    model loads where keras_qareg is not installed.

    Args:
        model: A built model, from any transform of this package or none.
        into: A plain, built model of the same architecture, such as the one that was transformed,
            which gets all weights and is returned. For models whose objects do more than a copy of
            them can (`generate` of a language model, say). `None` (default): a new one.

    Returns:
        A new model, or `into`. Where weights were shared, all layers of a new one are trainable; else
        as they were. Plain layers do not quantize activations: with ranges, which are left out, and with
        `activation_bits`, its outputs differ, and there is a warning.

    Raises:
        ValueError: If the model is unbuilt, or `into` has other weights, or other outputs with them.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> type(strip(qareg.share_weights(model, levels=4)).get_layer("fc")).__name__
    'Dense'

    See also: https://keras-qareg.github.io/keras-qareg/glossary.html#strip
    """
    check_built(model)
    thaw = any(isinstance(layer, SharedWeights) for layer in quantized_layers(model))
    quantizing = quantizes_inputs(model)
    if quantizing:
        warnings.warn(
            f"Layers {quantizing} quantize their inputs; the plain layers do not, so that outputs "
            "differ.",
            stacklevel=2,
        )
    ranges = [x.name for x in layers_inside(model) if isinstance(x, ActivationRange)]
    if ranges:
        warnings.warn(
            f"Ranges of activations {ranges} are left out: plain layers compute with activations in "
            "floating point, so that outputs differ.",
            stacklevel=2,
        )
    pairs = []

    def unwrap(layer: Layer) -> Layer:
        successor = plain(layer)
        if thaw:
            successor.trainable = True
        if isinstance(layer, QUANTIZED):
            pairs.append((layer, successor))
        return successor

    stripped = clone(model, lambda layer: unwrap, thaw=thaw)
    for layer, successor in pairs:
        names = getattr(layer, "kernel_names", None)
        for kernel, weights in zip(kernels(successor, names), used_kernels(layer), strict=True):
            kernel.assign(weights)
    return stripped if into is None else _written_into(into, stripped)


def _written_into(model: keras.Model, stripped: keras.Model) -> keras.Model:
    check_built(model)
    check_plain(model)
    new, old = (
        [(weight.name, tuple(weight.shape)) for weight in given.weights]
        for given in (stripped, model)
    )
    if new != old:
        other = next((pair for pair in zip(new, old, strict=False) if pair[0] != pair[1]), "")
        raise ValueError(
            f"Expected `into` to be a model with the {len(new)} weights of '{stripped.name}'. Received: "
            f"'{model.name}' with {len(old)} weights{f', {other[1]} for {other[0]}' if other else ''}."
        )
    held = [ops.convert_to_numpy(weight).copy() for weight in model.weights]
    for before, after in zip(stripped.weights, model.weights, strict=True):
        after.assign(before)
    pairs = zip(layers_inside(stripped), layers_inside(model), strict=False)
    for before, after in pairs:
        if type(before) is type(after) and before is not stripped:
            copy_adapted_state(before, after)
    away = _apart(stripped, model)
    if not away <= _TOLERANCE:
        for weight, value in zip(model.weights, held, strict=True):
            weight.assign(value)
        raise ValueError(
            f"Expected `into` to be a model of the architecture of '{stripped.name}'. Received: "
            f"'{model.name}', whose outputs are other ones with the same weights, by {away:.2g} of the "
            "largest"
        )
    return model


def _apart(one: keras.Model, other: keras.Model) -> float:
    """How far outputs are apart, relative to the largest; 0 where models cannot be tried."""
    for size in SIZES:
        try:
            inputs = trial_inputs(one, size)
            expected = outputs_of(one, inputs)
        except Exception:  # too small for the layers, for one
            continue
        if is_random(one, inputs):
            return 0.0
        found = outputs_of(other, inputs)
        alike = [x.shape for x in expected] == [x.shape for x in found]
        return max(map(difference, expected, found), default=0.0) if alike else math.inf
    return 0.0


def unquantized(model: keras.Model) -> keras.Model:
    """The very model that was passed where it is plain already, else what `strip` makes of it.

    A plain model is not copied: some can only be used as the objects that their author made.
    """
    check_built(model)
    ours = (*EXTENDED, QuantizationRegularizer)
    parts = [
        part for layer in layers_inside(model) for part in (layer, *attributes(layer).values())
    ]
    return strip(model) if any(isinstance(part, ours) for part in parts) else model


def used_kernels(layer: Layer, weights: Weights = None) -> list[np.ndarray]:
    """The kernels that a layer computes with: quantized ones, where it has these."""
    trained = isinstance(layer, QuantizationAware) and not layer.quantizes
    if trained or not hasattr(layer, "codebooks"):
        return [ops.convert_to_numpy(kernel) for kernel in kernels(layer, weights)]
    return [book.weights for book in layer.codebooks()]


def plain(layer: Layer) -> Layer:
    """An unbuilt layer as Keras has it, without what this package put around or into it."""
    if isinstance(layer, ActivationRange):
        return Passed(name=layer.name)
    if isinstance(layer, FreezableBatchNormalization):
        return fresh(layer, into=keras.layers.BatchNormalization)
    if isinstance(layer, WeightNormalized):
        return fresh(layer, clean=True, into=layer.base, config=layer.base_config())
    return fresh(inner_layer(layer), clean=True)


def quantizes_inputs(model: keras.Model) -> list[str]:
    """The names of the layers of a model that quantize their inputs."""
    return [
        layer.name
        for layer in quantized_layers(model)
        if getattr(layer, "activation_quantizer", None) is not None
    ]
