"""Penalties: what weights pay, all together, for being away from their closest basins.

Every penalty takes the weights and the basins and returns one number, the sum over the weights, in
float32. Value and gradients are computed together, in about the time of a few passes over the weights,
whatever the number of basins, and nothing larger than the gradient itself stays in memory
(`python -m benchmarks.penalty` has ratios to Keras's L2).

How the nearest centroid is found is in `assignment`. Gradients of centroids are sums over members; where
a look-up finds them, weights are summed by bin and side, then the bins by centroid. All of it runs by
XLA in chunks of the weights, so that what lies between the operations stays in the cache; TensorFlow
does not compile on CPUs unless told to. Basins that are evenly spaced need no look-up: sine and cosine
of an offset within half a turn are polynomials, which XLA computes at the speed of memory.

Sources: Malchiodi, Ferraretto, Frasca, "Quantization-Aware Regularizers for Deep Neural Networks
Compression" (arXiv 2602.03614).

See also: https://keras-qareg.github.io/keras-qareg/method.html#what-is-computed
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_qareg.numerics.assignment import (
    BINS,
    NARROWEST,
    Cells,
    are_few,
    cells_of,
    float_tensor,
    in_order,
)
from keras_qareg.numerics.compiled import (
    Tensor,
    compared,
    compiled,
    custom_gradient,
    in_chunks,
    on_torch,
    quick_or_sure,
    segment_sums,
    take,
)

OUTSIDE = ("linear", "periodic")
# Taylor series in the square of an angle up to pi/2: to 6e-8 and 7e-9.
_SINE = [(-1) ** n / math.factorial(2 * n + 1) for n in range(6)]
_COSINE = [(-1) ** n / math.factorial(2 * n) for n in range(7)]


def evenly_spaced(
    weights: Tensor, low: Tensor, high: Tensor, levels: int, *, outside: str = "linear"
) -> Tensor:
    """Penalty of basins at `levels` evenly spaced values from `low` to `high`, both included.

    With `u = (levels - 1) (w - low) / (high - low)` and `d` the distance of `u` to its closest
    basin `0, 1, ... levels - 1`, a weight pays `|sin(pi d)|`: the sine regularizer of the paper
    over its range, and its cosine regularizer too, whose basins are evenly spaced as well.

    Args:
        weights: Tensor of any shape.
        low: Scalar, the lowest basin.
        high: Scalar, the highest basin; where it equals `low`, all basins are one.
        levels: Integer >= 2, the number of basins.
        outside: `"linear"` lets the penalty grow beyond the outermost basins with the slope that it
            has there, so that there are exactly `levels` basins; `"periodic"` repeats the basins
            for ever, as the formula of the paper does.

    Returns:
        A float32 scalar, the sum: a weight pays 0 in a basin, 1 halfway between two. Its gradient
        reaches the weights; the range of these basins is fixed, not learned.

    Example:

    >>> round(float(evenly_spaced([0.0, 0.5, 1.0], 0.0, 1.0, levels=2)), 2)
    1.0
    """
    return _differentiable(_evenly_spaced(levels, outside), weights, low, high)


def nearest_squared(weights: Tensor, centroids: Tensor) -> Tensor:
    """Squared distance to the nearest centroid: `sum_i min_j (w_i - c_j)^2`.

    Args:
        weights: Tensor of any shape.
        centroids: Tensor of shape `(levels,)`, in any order, equal values allowed.

    Returns:
        A float32 scalar. Gradients reach the weights and, of the centroids, the nearest one of each
        weight (at a tie, the lower of the two).

    Example:

    >>> float(nearest_squared([0.0, 0.5, 3.0], [1.0, 0.0]))
    4.25
    """
    return _differentiable(_nearest("squared", 1.0), weights, centroids)


def nearest_exponential(weights: Tensor, centroids: Tensor, sharpness: float = 1.0) -> Tensor:
    """Saturating distance to the nearest centroid: `sum_i 1 - exp(-sharpness min_j |w_i - c_j|)`.

    Args:
        weights: Tensor of any shape.
        centroids: Tensor of shape `(levels,)`, in any order, equal values allowed.
        sharpness: Positive float; the larger, the narrower the basins.

    Returns:
        A float32 scalar; each weight pays a value in [0, 1). Gradients reach the weights and the
        nearest centroid of each; where a weight equals its centroid they are 0.

    Example:

    >>> round(float(nearest_exponential([0.0, 1.0], [0.0, 9.0])), 3)
    0.632
    """
    return _differentiable(_nearest("exponential", float(sharpness)), weights, centroids)


def _differentiable(function: Callable[..., Any], *inputs: Tensor) -> Tensor:
    """The first result of a function; the others are its gradients, of the first inputs or of all."""

    def penalize(*inputs: Tensor) -> Tensor:
        value, *slopes = function(*inputs)
        none = [None] * (len(inputs) - len(slopes))
        return value, lambda upstream: (*(upstream * slope for slope in slopes), *none)

    return custom_gradient(penalize)(*(float_tensor(x) for x in inputs))


@functools.lru_cache
def _evenly_spaced(levels: int, outside: str) -> Callable[..., Any]:
    sine, cosine = (ops.sin, ops.cos) if on_torch() else (_sine, _cosine)

    def penalty(weights: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        # A range of no width is one basin, with the slope of a range of unit width.
        wide = high - low > NARROWEST
        scale = (levels - 1) / ops.where(wide, high - low, ops.ones_like(high))
        last = ops.where(wide, levels - 1.0, 0.0)

        def part_of(part: Tensor) -> Tensor:
            position = (part - low) * scale
            basin = ops.round(position)
            if outside == "linear":
                basin = ops.clip(basin, 0.0, last)
            # Within float32, the offset from the basin's own weight is more exact than position - basin.
            offset = (part - (low + basin / scale)) * (scale * math.pi)
            # Rounding takes weights many periods away out of the range of the series.
            near = ops.clip(offset, -0.5 * math.pi, 0.5 * math.pi)
            value, turn = ops.abs(sine(near)), cosine(near)
            if outside == "linear":
                beyond = ops.logical_or(position < 0.0, position > last)
                value = ops.where(beyond, ops.abs(offset), value)
                turn = ops.where(beyond, ops.ones_like(turn), turn)
            return (math.pi * scale) * ops.sign(offset) * turn, (ops.sum(value),)

        slopes, (value,) = in_chunks(part_of, weights, fused=True)
        return value, slopes

    return compiled(penalty)


def _sine(angle: Tensor) -> Tensor:
    return angle * _series(ops.square(angle), _SINE)


def _cosine(angle: Tensor) -> Tensor:
    return _series(ops.square(angle), _COSINE)


def _series(square: Tensor, coefficients: list[float]) -> Tensor:
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * square + coefficient
    return total


@functools.lru_cache
def _nearest(kind: str, sharpness: float) -> Callable[..., Any]:
    return compiled(functools.partial(_nearest_penalty, functools.partial(_pay, kind, sharpness)))


def _pay(kind: str, sharpness: float, distance: Tensor) -> tuple[Tensor, Tensor]:
    """The penalty of each distance, and its slope."""
    if kind == "squared":
        return ops.square(distance), 2.0 * distance
    decay = ops.exp(-sharpness * ops.abs(distance))
    return 1.0 - decay, sharpness * decay * ops.sign(distance)


def _nearest_penalty(
    pay: Tensor, weights: Tensor, centroids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The total penalty, and its gradients by weights and centroids."""
    if are_few(centroids):
        levels = centroids.shape[0]
        order, ascending, midpoints = in_order(centroids)

        def compare(part: Tensor) -> tuple[Tensor, Tensor]:
            nearest = compared(part, midpoints, ascending)
            return part - nearest, compared(part, midpoints, np.arange(levels, dtype="int32"))

        value, slopes, members = _summed(weights, compare, pay, levels)
    else:
        cells = cells_of(centroids)
        order = cells.order
        value, slopes, members = _summed_by_cells(pay, weights, cells)
    return value, slopes, -ops.take(members, ops.argsort(order))


def _summed_by_cells(pay: Tensor, weights: Tensor, cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
    """As `_summed`, by a look-up in bins, or by search."""
    lower, upper = take(cells.ascending, cells.below), take(cells.ascending, cells.above)
    owners = ops.reshape(ops.stack([cells.below, cells.above], axis=1), (-1,))
    levels = cells.ascending.shape[0]

    def look_up(part: Tensor) -> tuple[Tensor, Tensor]:
        place = cells.bin_of(part)
        low, high = take(lower, place), take(upper, place)
        beyond = part > 0.5 * low + 0.5 * high
        return part - ops.where(beyond, high, low), 2 * place + ops.cast(beyond, "int32")

    def search(part: Tensor) -> tuple[Tensor, Tensor]:
        index = ops.searchsorted(cells.midpoints, part, side="left")
        return part - take(cells.ascending, index), index

    def looked_up() -> tuple[Tensor, Tensor, Tensor]:
        value, slopes, sums = _summed(weights, look_up, pay, 2 * BINS)
        return value, slopes, segment_sums(sums, owners, levels)

    found: tuple[Tensor, Tensor, Tensor] = quick_or_sure(
        cells.tell_apart, looked_up, lambda: _summed(weights, search, pay, levels)
    )
    return found


def _summed(
    weights: Tensor, locate: Tensor, pay: Tensor, places: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The total penalty, the slope of each weight, and the sums of slopes by place.

    `locate` gives the distances of weights from their centroids, and the places to sum them up at.
    """

    def part_of(part: Tensor) -> Tensor:
        distance, place = locate(part)
        value, slope = pay(distance)
        return slope, (ops.sum(value), segment_sums(slope, place, places))

    slopes, (value, sums) = in_chunks(part_of, weights, sums=((), (places,)))
    return value, slopes, sums
