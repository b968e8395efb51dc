"""Penalties: what a weight pays for being away from its closest basin.

Every function takes the weights and the basins and returns one penalty a weight, in float32 and in
the shape of the weights. Each brings its own gradient, so that nothing larger than a few
weight-sized tensors is ever built: a nearest centroid is found by bisecting the sorted midpoints,
and the gradient of a centroid is a segment sum over its members. No tensor is weights x centroids.

Sources: Malchiodi, Ferraretto, Frasca, "Quantization-Aware Regularizers for Deep Neural Networks
Compression" (arXiv 2602.03614).
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

OUTSIDE = ("linear", "periodic")


def evenly_spaced(weights: Any, low: Any, high: Any, levels: int, outside: str = "linear") -> Any:
    """Penalty of basins at `levels` evenly spaced values from `low` to `high`, both included.

    With `u = (levels - 1) (w - low) / (high - low)` and `d` the distance of `u` to its closest
    basin `0, 1, ... levels - 1`, the penalty is `|sin(pi d)|`: the sine regularizer of the paper
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
        A float32 tensor with the shape of `weights`: 0 in a basin, 1 halfway between two.

    Example:

    >>> penalty = evenly_spaced([0.0, 0.5, 1.0, 2.0], 0.0, 1.0, levels=2)
    >>> [round(float(p), 2) for p in penalty]
    [0.0, 1.0, 0.0, 3.14]
    """
    weights, low, high = (_tensor(x) for x in (weights, low, high))

    @ops.custom_gradient
    def penalize(weights: Any, low: Any, high: Any) -> Any:
        # A range of no width is one basin, with the slope of a range of unit width.
        wide = high > low
        scale = (levels - 1) / ops.where(wide, high - low, ops.ones_like(high))
        last = ops.where(wide, levels - 1.0, 0.0)
        position = (weights - low) * scale
        basin = ops.round(position)
        if outside == "linear":
            basin = ops.clip(basin, 0.0, last)
        # Within float32, the offset from the basin's own weight is more exact than position - basin.
        offset = (weights - (low + basin / scale)) * scale * math.pi
        value, turn = ops.abs(ops.sin(offset)), ops.cos(offset)
        if outside == "linear":
            beyond = ops.logical_or(position < 0.0, position > last)
            value = ops.where(beyond, ops.abs(offset), value)
            turn = ops.where(beyond, ops.ones_like(turn), turn)

        def grad(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            slope = math.pi * scale * ops.sign(offset) * turn
            # The range of these basins is fixed, not learned.
            return upstream * slope, ops.zeros_like(low), ops.zeros_like(high)

        return value, grad

    return penalize(weights, low, high)


def nearest_squared(weights: Any, centroids: Any) -> Any:
    """Squared distance to the nearest centroid: `min_j (w - c_j)^2`.

    Args:
        weights: Tensor of any shape.
        centroids: Tensor of shape `(levels,)`, in any order, equal values allowed.

    Returns:
        A float32 tensor with the shape of `weights`. Gradients reach the weights and, of the
        centroids, the nearest one of each weight (at a tie, the lower of the two).

    Example:

    >>> ops.convert_to_numpy(nearest_squared([0.0, 0.5, 3.0], [1.0, 0.0])).tolist()
    [0.0, 0.25, 4.0]
    """

    def value_and_slope(distance: Any) -> tuple[Any, Any]:
        return ops.square(distance), 2.0 * distance

    return _nearest(weights, centroids, value_and_slope)


def nearest_exponential(weights: Any, centroids: Any, sharpness: float = 1.0) -> Any:
    """Saturating distance to the nearest centroid: `1 - exp(-sharpness min_j |w - c_j|)`.

    Args:
        weights: Tensor of any shape.
        centroids: Tensor of shape `(levels,)`, in any order, equal values allowed.
        sharpness: Positive float; the larger, the narrower the basins.

    Returns:
        A float32 tensor in [0, 1) with the shape of `weights`. Gradients reach the weights and the
        nearest centroid of each; where a weight equals its centroid they are 0.

    Example:

    >>> [round(float(p), 3) for p in nearest_exponential([0.0, 1.0], [0.0, 9.0])]
    [0.0, 0.632]
    """

    def value_and_slope(distance: Any) -> tuple[Any, Any]:
        decay = ops.exp(-sharpness * ops.abs(distance))
        return 1.0 - decay, sharpness * decay * ops.sign(distance)

    return _nearest(weights, centroids, value_and_slope)


def nearest_index(weights: Any, ascending: Any) -> Any:
    """Index of the nearest of the `ascending` centroids for each weight, at a tie the lower one."""
    midpoints = 0.5 * ascending[:-1] + 0.5 * ascending[1:]
    flat = ops.reshape(weights, (-1,))
    return ops.reshape(ops.searchsorted(midpoints, flat, side="left"), ops.shape(weights))


def _tensor(x: Any) -> Any:
    """A float32 tensor of its own: `custom_gradient` does not reach a variable that it is given."""
    return ops.copy(ops.cast(x, "float32"))


def _nearest(weights: Any, centroids: Any, value_and_slope: Any) -> Any:
    weights, centroids = _tensor(weights), _tensor(centroids)
    levels = centroids.shape[0]

    @ops.custom_gradient
    def penalize(weights: Any, centroids: Any) -> Any:
        order = ops.argsort(centroids)
        ascending = ops.take(centroids, order)
        index = nearest_index(weights, ascending)
        value, slope = value_and_slope(weights - ops.take(ascending, index))

        def grad(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            force = upstream * slope
            members = ops.segment_sum(
                ops.reshape(force, (-1,)), ops.reshape(index, (-1,)), num_segments=levels
            )
            return force, -ops.take(members, ops.argsort(order))

        return value, grad

    return penalize(weights, centroids)
