"""Reading the codebooks of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import keras
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import QUANTIZED, KernelWrapper, Weights, channel_axes, kernels
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.selection import check_built
from keras_qareg.models.walking import leaf_layers, scopes
from keras_qareg.numerics.codebook import Codebook


class Kernel(NamedTuple):
    """A kernel of a model.

    Attributes:
        path: The path that it has in the plain model; no two kernels of a model have the same.
        variable: The kernel.
        layer: The layer that it is of, wrapped or not.
    """

    path: str
    variable: keras.Variable
    layer: Layer


def codebooks(model: keras.Model, weights: Weights = None) -> dict[str, Codebook]:
    """The codebook of each kernel that has one.

    Args:
        model: A built model. Of a shared model these are its tables and indices; of a
            quantization-aware one, each weight with its nearest centroid as of now; of a WNQ layer,
            the levels of each channel; of a plain model, the kernels that have at most 256 distinct
            values, or whole multiples of a step in each output channel.
        weights: What weights of plain layers are kernels, as in `quantization_aware`.

    Returns:
        Dict from the path of each kernel (the one that it has in the plain model) to its `Codebook`.
        Where several kernels have one path, as in two models of one architecture, the names of what
        they are inside of stand before it.

    Raises:
        ValueError: If the model is unbuilt.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="fc")])
    >>> found = qareg.codebooks(qareg.share_weights(model, levels=4, verbose=0))
    >>> [book.centroids.shape for book in found.values()]
    [(4,)]

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#few-values
    """
    return {path: book for path, _, book in kernel_codebooks(model, weights) if book is not None}


def kernel_codebooks(
    model: keras.Model, weights: Weights = None
) -> Iterator[tuple[str, keras.Variable, Codebook | None]]:
    """Path, variable and codebook (or None) of every kernel of a built model, in order.

    In a shared model the variable holds the weights from before sharing, in a WNQ layer the latent ones.
    Kernels that a wrapper leaves as they are, are among them.
    """
    check_built(model)
    of, books = None, {}
    for path, kernel, layer in every_kernel(model, weights, left=True):
        if layer is not of:
            of, books = layer, _layer_codebooks(layer)
        if id(kernel) in books:
            yield path, kernel, books[id(kernel)]
        else:
            axes = channel_axes(inner_layer(layer), kernel)
            yield path, kernel, Codebook.exact(ops.convert_to_numpy(kernel), axes)


def kernel_paths(model: keras.Model, weights: Weights = None) -> dict[int, str]:
    """The path of every kernel of a model by the identity of its variable, in order."""
    return {id(kernel.variable): kernel.path for kernel in every_kernel(model, weights)}


def unique_names(
    model: keras.Model, layers: list[Layer], names: list[str], deep: bool = False
) -> list[str]:
    """Names that are of several layers get the names of what these are inside of, or a number.

    Args:
        model: A model.
        layers: Layers in it.
        names: A name or path for each.
        deep: Whether the layers are those of a walk that is `deep`.

    Returns:
        Names, each once.
    """
    counts, inside = Counter(names), scopes(model, deep)
    seen: Counter[str] = Counter()
    unique = []
    for name, layer in zip(names, layers, strict=True):
        scope = inside[id(layer)]
        if counts[name] > 1 and scope and not name.startswith(f"{scope}/"):
            name = f"{scope}/{name}"
        seen[name] += 1
        unique.append(f"{name}_{seen[name] - 1}" if seen[name] > 1 else name)
    return unique


def every_kernel(
    model: keras.Model, weights: Weights = None, *, deep: bool = False, left: bool = False
) -> list[Kernel]:
    """Every kernel of a built model, in order.

    Args:
        model: The model.
        weights: Which weights are kernels; a wrapper has its own.
        deep: Whether layers that are made of layers are entered.
        left: Whether kernels that a wrapper leaves as they are count too.
    """
    found: list[tuple[keras.Variable, Layer]] = []
    paths: list[str] = []
    for layer in leaf_layers(model, deep):
        variables = kernels(layer, weights)
        if isinstance(layer, KernelWrapper):
            if left:
                known = {id(kernel) for kernel in (*variables, *kernels(layer.layer, weights))}
                variables = [weight for weight in layer.layer.weights if id(weight) in known]
            paths += layer.paths_of(variables)
        else:
            paths += [kernel.path for kernel in variables]
        found += [(kernel, layer) for kernel in variables]
    unique = unique_names(model, [layer for _, layer in found], paths, deep)
    return [Kernel(path, *parts) for path, parts in zip(unique, found, strict=True)]


def _layer_codebooks(layer: Layer) -> dict[int, Codebook]:
    """The codebooks of what a layer of this package quantizes, by the identities of the kernels."""
    if not isinstance(layer, QUANTIZED):
        return {}
    return {id(k): book for k, book in zip(kernels(layer), layer.codebooks(), strict=True)}
