"""Which kernels have a step for each channel, where nobody said so: those for which it costs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import keras
from keras.layers import Layer

from keras_qareg.layers import Weights, channel_axes, kernels
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.clustered import Wanted, Way, has_centroids
from keras_qareg.models.surroundings import normalized_layers

_LARGE_CHANNEL = 16  # weights


def with_scales(model: keras.Model, wanted: dict[Layer, Wanted], way: Way) -> dict[Layer, Wanted]:
    """The same with `"kernel"` or `"channel"` in the place of `"auto"`."""
    rounded = [x for x, its in wanted.items() if its.table == "int8" and its.scale == "auto"]
    free = {id(layer) for layer in _nearly_free(model, rounded, way.weights)}
    found = {}
    for layer, its in wanted.items():
        even = its.table == "even" and its.group_size is None
        is_free = even or (its.table == "int8" and id(layer) in free)
        channel = its.scale == "channel" or (its.scale == "auto" and is_free)
        # Trained centroids are in the units of the kernel itself.
        own = its.table != "even" and has_centroids(layer, its, way)
        found[layer] = its._replace(scale="channel" if channel and not own else "kernel")
    return found


def _nearly_free(model: keras.Model, layers: Iterable[Layer], weights: Weights) -> list[Layer]:
    """The layers for which files have a factor a channel anyway, from a batch normalization.

    Where these hold most of the weights, the others too: their steps are little beside the file then.
    """
    sizes = {
        layer: sum(math.prod(kernel.shape) for kernel in kernels(layer, weights))
        for layer in layers
    }
    normalized = normalized_layers(model, sizes)
    if 2 * sum(sizes[layer] for layer in normalized) < sum(sizes.values()):
        return normalized
    known = {id(layer) for layer in normalized}
    return [layer for layer in sizes if id(layer) in known or _has_large_channels(layer, weights)]


def _has_large_channels(layer: Layer, weights: Weights) -> bool:
    """Whether each output channel has so many weights that a step of its own is little beside them."""
    inner = inner_layer(layer)
    return all(
        math.prod(kernel.shape[: len(kernel.shape) - channel_axes(inner, kernel)]) >= _LARGE_CHANNEL
        for kernel in kernels(layer, weights)
    )
