"""Fitting kernels that have been trained into the bytes of an archive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_qareg.export.archive.archive import size_of
from keras_qareg.layers import QuantizationAware, kernels
from keras_qareg.models.selection import wrappers
from keras_qareg.models.training import assign
from keras_qareg.numerics.rate_distortion import FURTHEST, lowest_price
from keras_qareg.plans import Plan

# The price of a bit that is tried first, in squared distances between neighbouring levels: 1/16.
_START = -4.0

# What is left of the bytes, and at least: measured anew or tuned, the other numbers of a file take a few
# more.
_SPARE, _LEAST_SPARE = 1000, 4

# What makes the shared model, with the rate of each kernel by path; `None`: as it was trained.
Share = Callable[[Mapping[str, float] | None], keras.Model]


def keep_within(
    model: keras.Model, plan: Plan | None, before: Sequence[list[np.ndarray]] = ()
) -> None:
    """Sees that the archive of a model takes no more bytes than its plan.

    Args:
        model: A shared model.
        plan: Its plan, for an archive; of others nothing is asked.
        before: The weights that it had, the last ones first: it goes back to the first that fit.

    Raises:
        ValueError: If the archive is too large even then.
    """
    if plan is None or plan.weights != "archive":
        return
    size = size_of(model)
    for weights in before:
        if size > plan.bytes:
            assign(model, weights)
            size = size_of(model)
    if size > plan.bytes:
        raise ValueError(
            f"Expected an archive of no more than {plan.bytes:,} bytes. Received: one of "
            f"{size:,} after training. Ask for more bytes, or fewer levels."
        )


def fit_archive(student: keras.Model, share: Share, most: int) -> keras.Model:
    """The shared model of a trained one, in an archive of no more than some bytes.

    How often a trained kernel has each of its levels is not known before. Where the archive is too
    large, its kernels are clustered anew, by the lowest rate at which it is not: the same for all, in
    squares of the distance between the levels of each.

    Args:
        student: A model of `quantization_aware`, which has float kernels from here on.
        share: What makes the shared model of it.
        most: The most bytes of the archive.

    Returns:
        What `share` made; with more bytes where even the highest rate is not enough.
    """
    most -= max(_LEAST_SPARE, most // _SPARE)
    found = share(None)
    if size_of(found) <= most:
        return found
    layers = [layer for layer in wrappers(student) if isinstance(layer, QuantizationAware)]
    gaps = {
        path: float(np.ptp(table)) / max(1, len(table) - 1)
        for layer in layers
        for path, table in zip(layer.kernel_paths, layer.tables(), strict=True)
    }
    for layer in layers:
        layer.placed.assign(0.0)

    def at(price: float) -> keras.Model:
        return share({path: 2.0**price * gap**2 for path, gap in gaps.items()})

    weights = sum(math.prod(kernel.shape) for layer in layers for kernel in kernels(layer))
    price = lowest_price(lambda price: size_of(at(price)), most, weights, _START)
    return at(FURTHEST if price is None else price)
