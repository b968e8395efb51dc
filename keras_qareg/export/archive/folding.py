"""Normalization as one factor and one offset a channel: what a file for inference needs.

A `BatchNormalization` computes `(x - mean) * gamma / sqrt(variance + epsilon) + beta`. With the
factor `f = gamma / sqrt(variance + epsilon)` it becomes one of mean 0, variance `1 - epsilon`, gamma `f`
and beta `beta - mean * f`, which computes the same but for rounding. Where it alone reads what a linear
layer computes, that layer's bias goes into beta and becomes 0, and the step of each channel of its
kernel goes into gamma, which leaves whole numbers in the kernel. Classes and configurations stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras.layers import BatchNormalization, Layer

from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.reading import kernel_paths
from keras_qareg.models.surroundings import layers_before_normalizations
from keras_qareg.numerics.codebook import Codebook

# Factors beyond these are not multiplied further: float32 would round them away.
_SMALLEST, _LARGEST = 1e-30, 1e30


def folded(
    plain: keras.Model, arrays: Sequence[np.ndarray], books: Mapping[int, Codebook]
) -> tuple[list[np.ndarray], dict[int, Codebook]]:
    """The weights of a model for inference.

    Args:
        plain: A plain, built model.
        arrays: Its weights, in order; they are not changed.
        books: The codebooks of kernels, by their place among the weights.

    Returns:
        The weights and the codebooks, with normalizations folded. Normalizations without scale or
        center, or that are not of float32, stay as they are.
    """
    places = {id(weight): place for place, weight in enumerate(plain.weights)}
    found, left = list(arrays), dict(books)
    owners = Counter(id(w) for layer in layers_inside(plain) for w in layer._trainable_variables)
    before = layers_before_normalizations(plain)
    for layer in layers_inside(plain):
        if not _foldable(layer) or any(id(weight) not in places for weight in layer.weights):
            continue
        gamma, beta, mean, variance = (
            places[id(w)]
            for w in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        )
        factor = found[gamma] / np.sqrt(found[variance].astype("float64") + layer.epsilon)
        offset = found[beta] - found[mean] * factor
        linear = before.get(id(layer))
        if linear is not None and all(owners[id(w)] == 1 for w in linear.weights):
            factor, offset = _with_layer(linear, places, found, left, factor, offset)
        found[gamma], found[beta] = factor.astype("float32"), offset.astype("float32")
        found[mean] = np.zeros_like(found[mean])
        found[variance] = np.full_like(found[variance], 1 - layer.epsilon)
    return found, left


def weight_names(plain: keras.Model) -> list[str]:
    """The paths of the weights of a plain model, those of kernels as `codebooks` has them."""
    paths = kernel_paths(plain)
    return [paths.get(id(weight), weight.path) for weight in plain.weights]


def held_books(
    names: Sequence[str], arrays: Sequence[np.ndarray], books: Mapping[str, Codebook]
) -> dict[int, Codebook]:
    """The codebooks of all tensors of float32 that have one, by their place.

    Args:
        names: The path of each tensor.
        arrays: The tensors.
        books: Codebooks that are known, by path.
    """
    found = {}
    for place, (name, array) in enumerate(zip(names, arrays, strict=True)):
        if array.dtype == np.float32 and array.ndim > 1:
            book = books.get(name)
            if book is None or not np.array_equal(book.weights, array):
                book = Codebook.exact(array)
            if book is not None:
                found[place] = book
    return found


def _with_layer(
    linear: Layer,
    places: Mapping[int, int],
    found: list[np.ndarray],
    books: dict[int, Codebook],
    factor: np.ndarray,
    offset: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset with the bias and the steps of the layer before, which change in place."""
    bias = places.get(id(linear.bias)) if getattr(linear, "use_bias", False) else None
    if bias is not None and found[bias].dtype == np.float32:
        offset = offset + found[bias] * factor
        found[bias] = np.zeros_like(found[bias])
    kernel = places.get(id(linear.kernel))
    book = None if kernel is None else books.get(kernel)
    grid = None if book is None else book.grid
    if kernel is None or book is None or grid is None or linear.compute_dtype != "float32":
        return factor, offset
    codes, steps = grid
    if steps.size not in (1, factor.size):
        return factor, offset
    product = factor * steps.astype("float64").reshape(-1)
    sizes = np.abs(product[product != 0])
    if sizes.size and not (sizes.min() > _SMALLEST and sizes.max() < _LARGEST):
        return factor, offset
    tables = codes[:, 0] if codes.shape[1] == 1 else codes.reshape(book.centroids.shape)
    books[kernel] = Codebook(tables.astype("float32"), book.indices)
    found[kernel] = books[kernel].weights
    return product, offset


def _foldable(layer: Layer) -> bool:
    return (
        type(layer) is BatchNormalization  # what a subclass computes is its own
        and layer.scale
        and layer.center
        and not getattr(layer, "renorm", False)
        and layer.compute_dtype == layer.variable_dtype == "float32"
        and 0 < layer.epsilon < 1
        and math.isfinite(layer.epsilon)
    )
