"""Moving what channels of a kernel differ in into the batch normalization behind it: nothing is lost."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops
from keras.layers import BatchNormalization, Layer

from keras_qareg.layers import channel_axes, kernels
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.surroundings import normalizations
from keras_qareg.models.walking import leaf_layers
from keras_qareg.numerics.clustering import dead_channels


def equalize(model: keras.Model) -> None:
    """Divides each channel of a kernel by its root mean square, where a normalization makes up for it.

    The channels of a kernel then have one spread, so that few values for all of them are enough; a
    scale a channel does the same, but has to be kept. Outputs stay what they are, to rounding: the
    bias, and the normalization's mean, variance and `gamma` change with the kernel (compare Nagel et
    al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
    which does it between layers).

    Args:
        model: A built model, which is changed in place. Layers that something else than one batch
            normalization reads stay as they are.

    Example:

    >>> conv, normalization = keras.layers.Conv2D(2, 1), keras.layers.BatchNormalization()
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), conv, normalization])
    >>> conv.kernel.assign(np.reshape([1.0, 4.0], (1, 1, 1, 2)))
    >>> equalize(model)
    >>> ops.convert_to_numpy(conv.kernel).ravel().tolist()
    [2.0, 2.0]
    """
    for layer, normalization in normalizations(model, leaf_layers(model)).items():
        _equalize(inner_layer(layer), normalization)


def _equalize(layer: Layer, normalization: BatchNormalization) -> None:
    found = kernels(layer)
    alone = len(normalization._inbound_nodes) == 1  # its statistics are those of this layer
    constrained = any(weight.constraint is not None for weight in layer.weights)
    if len(found) != 1 or not alone or constrained or not normalization.scale:
        return
    values = ops.convert_to_numpy(found[0]).astype("float64")
    axes = channel_axes(layer, found[0])
    if not axes:
        return
    spread = np.sqrt(np.mean(values**2, axis=tuple(range(values.ndim - axes))))
    dead = dead_channels(values, axes)
    if dead.all():
        return
    # The kernel as a whole stays about as large as it was, for the learning rate and penalties.
    factors = np.where(dead, 1.0, spread / np.exp(np.log(spread[~dead]).mean()))
    found[0].assign(values / factors)
    flat, bias = factors.reshape(-1), getattr(layer, "bias", None)
    if bias is not None:
        bias.assign(ops.convert_to_numpy(bias) / flat)
    mean, variance, gamma = (
        ops.convert_to_numpy(v).astype("float64")
        for v in (normalization.moving_mean, normalization.moving_variance, normalization.gamma)
    )
    # `epsilon` is added to the variance, which it is no part of.
    small = normalization.epsilon
    normalization.gamma.assign(
        gamma * np.sqrt((variance + small * flat**2) / (variance + small))
    )
    normalization.moving_mean.assign(mean / flat)
    normalization.moving_variance.assign(variance / flat**2)
