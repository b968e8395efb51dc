"""Networks that are made to fit into an archive of some bytes, by what they are alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import kernels
from keras_qareg.models import share_weights
from keras_qareg.models.selection import select
from keras_qareg.models.stripping import unquantized
from keras_qareg.numerics.rate_distortion import FURTHEST, lowest_price


def fitted(
    model: keras.Model, most: int, size: Callable[[keras.Model], int], scale: str
) -> keras.Model:
    """A network in an archive of no more than some bytes: kernels clustered by the lowest rate.

    The rate of each layer is in proportion to the sum of the squares of its weights: the squared error,
    relative to that, costs the same in each, as noise in the outputs of a layer is relative to them.

    Args:
        model: A built model. It stays as it is.
        most: The most bytes.
        size: The bytes of the archive of a model.
        scale: As in `share_weights`.

    Returns:
        The model itself, where it is small enough; else a shared one.

    Raises:
        ValueError: If one value a kernel is not enough, or as `share_weights`.
    """
    if size(model) <= most:
        return model
    plain = unquantized(model)
    chosen = select(plain, "all")
    weights = sum(math.prod(kernel.shape) for layer in chosen for kernel in kernels(layer))

    def at(price: float) -> keras.Model:
        return share_weights(
            plain,
            method="rate-distortion",
            rate=lambda layer: 2.0**price * _energy(layer) / weights,
            scale=scale,
            verbose=0,
        )

    # A kernel of `b` bits a weight has an error of about `4^-b` of its variance, and a rate like that.
    start = float(np.clip(1 - 16 * most / weights, -FURTHEST, 0.0))
    price = lowest_price(lambda price: size(at(price)), most, weights, start)
    if price is None:
        raise ValueError(
            f"Expected target_bytes of at least {size(at(FURTHEST)):,}, which the archive of model "
            f"'{plain.name}' takes with one value a kernel. Received: {most:,} bytes."
        )
    return at(price)


def _energy(layer: Layer) -> float:
    """The sum of the squares of the kernels of a layer, or a tiny number."""
    arrays = [ops.convert_to_numpy(kernel).astype("float64") for kernel in kernels(layer)]
    return max(sum(float(np.square(array).sum()) for array in arrays), 1e-30)
