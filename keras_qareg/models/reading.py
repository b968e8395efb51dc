"""Reading the codebooks of a model."""

from __future__ import annotations

from collections.abc import Iterator

import keras
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import (
    KernelWrapper,
    QuantizationAware,
    SharedWeights,
    WeightNormalized,
    channel_axes,
    kernels,
)
from keras_qareg.models.selection import check_built
from keras_qareg.models.walking import leaf_layers
from keras_qareg.numerics.codebook import Codebook


def codebooks(model: keras.Model) -> dict[str, Codebook]:
    """The codebook of each kernel that has one.

    Args:
        model: A built model. Of a shared model these are its tables and indices; of a
            quantization-aware one, each weight with its nearest centroid as of now; of a WNQ layer,
            the levels of each channel; of a plain model, the kernels that have at most 256 distinct
            values, or whole multiples of a step in each output channel.

    Returns:
        Dict from the path of each kernel (the one that it has in the plain model) to its `Codebook`.

    Raises:
        ValueError: If the model is unbuilt.
    """
    return {path: book for path, _, book in kernel_codebooks(model) if book is not None}


def kernel_codebooks(
    model: keras.Model,
) -> Iterator[tuple[str, keras.Variable, Codebook | None]]:
    """Path, variable and codebook (or None) of every kernel of a built model, in order.

    In a shared model the variable holds the weights from before sharing, in a WNQ layer the latent ones.
    """
    check_built(model)
    for layer in leaf_layers(model):
        if isinstance(layer, KernelWrapper):
            paths, found = layer.kernel_paths, layer.kernels
        else:
            found = kernels(layer)
            paths = [kernel.path for kernel in found]
        yield from zip(paths, found, _layer_codebooks(layer), strict=True)


def _layer_codebooks(layer: Layer) -> list[Codebook | None]:
    if isinstance(layer, QuantizationAware | SharedWeights | WeightNormalized):
        return list(layer.codebooks())
    return [
        Codebook.exact(ops.convert_to_numpy(kernel), channel_axes(layer, kernel))
        for kernel in kernels(layer)
    ]
