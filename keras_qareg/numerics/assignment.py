"""Assignment: the nearest centroid of each weight, and what trains straight through it.

Where XLA compiles and centroids are few, a weight is compared with all midpoints in one pass. With more,
a search among sorted midpoints takes a pass of memory for each bisection. Instead the range is cut into
thousands of bins of equal width. A bin has at most one midpoint between neighbors in it, so a look-up
gives the two candidates, and one comparison the nearest. Should centroids be so near one another that a
bin has two midpoints, the search is done after all.

See also: https://keras-qareg.github.io/keras-qareg/method.html#what-is-computed
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_qareg.numerics.codebook import lookup
from keras_qareg.numerics.compiled import (
    COMPARED_LEVELS,
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

# Cells of the look-up.
BINS = 4096
# What basins must be apart, all together, to be told apart.
NARROWEST = 1e-30


def nearest(weights: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each weight, passed straight through.

    Args:
        weights: Tensor of any shape.
        centroids: Tensor of shape `(levels,)`, in any order, equal values allowed.

    Returns:
        A float32 tensor in the shape of the weights (at a tie, the lower of two centroids). Weights get
        its gradient as if they were it, and each centroid the sum over its members.

    Example:

    >>> ops.convert_to_numpy(nearest([0.1, 0.7, 3.0], [1.0, 0.0])).tolist()
    [0.0, 1.0, 1.0]
    """

    def quantize(weights: Tensor, centroids: Tensor) -> Tensor:
        values, places, ranks = _nearest_values()(weights, centroids)

        def grad(upstream: Tensor) -> Tensor:
            sums = segment_sums(upstream, places, centroids.shape[0])
            return upstream, ops.take(sums, ranks)

        return values, grad

    return custom_gradient(quantize)(float_tensor(weights), float_tensor(centroids))


def assigned(weights: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each weight, and which one it is.

    Args:
        weights: Tensor of any shape; they get no gradient.
        centroids: Tensor of shape `(levels,)`, at most 256, in any order, equal values allowed.

    Returns:
        A float32 tensor in the shape of the weights (at a tie, the lower of two centroids), in which
        each centroid gets the sum of the gradients of its members; and the places of these centroids,
        a uint8 tensor of the same shape.

    Example:

    >>> values, places = assigned([0.1, 0.7, 3.0], [1.0, 0.0])
    >>> ops.convert_to_numpy(places).tolist()
    [1, 0, 0]
    """
    centroids = float_tensor(centroids)
    fixed = ops.stop_gradient(float_tensor(weights)), ops.stop_gradient(centroids)
    if not are_few(centroids):
        # One program of both would search twice.
        places = _sought()(*fixed)
        return lookup(centroids, places), places
    values, places = _compared()(*fixed)

    def look_up(centroids: Tensor) -> Any:
        return values, lambda upstream: (segment_sums(upstream, places, centroids.shape[0]),)

    return custom_gradient(look_up)(centroids), places


def stand_ins(weights: Tensor, values: Tensor) -> Tensor:
    """Values in the place of weights: these get the same gradient, as if they were the values.

    Args:
        weights: Tensor.
        values: Tensor of the same shape and dtype.

    Returns:
        The values.
    """

    def exchange(weights: Tensor, values: Tensor) -> Any:
        return ops.copy(values), lambda upstream: (upstream, upstream)

    return custom_gradient(exchange)(weights, values)


def float_tensor(x: Tensor) -> Tensor:
    """A float32 tensor of its own: `custom_gradient` does not reach a variable that it is given."""
    return ops.cast(ops.convert_to_tensor(x), "float32")


def are_few(centroids: Tensor) -> bool:
    """Whether a comparison with each midpoint, all in one pass, is quicker than a look-up."""
    return bool(centroids.shape[0] <= COMPARED_LEVELS) and not on_torch()


def in_order(centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The order of centroids, centroids in it, and the midpoints between neighbors."""
    order = ops.argsort(centroids)
    ascending = ops.take(centroids, order)
    return order, ascending, 0.5 * ascending[:-1] + 0.5 * ascending[1:]


class Cells(NamedTuple):
    """Centroids in ascending order, and which of them may be the nearest in each bin of their range."""

    order: Tensor
    ascending: Tensor
    midpoints: Tensor
    bin_of: Callable[[Tensor], Tensor]
    # The centroids below the first and above the last midpoint of each bin.
    below: Tensor
    above: Tensor

    @property
    def tell_apart(self) -> Tensor:
        """Whether no bin has more than one midpoint, so that one comparison decides."""
        return ops.max(self.above - self.below) <= 1


def cells_of(centroids: Tensor) -> Cells:
    """The cells of centroids in any order."""
    order, ascending, midpoints = in_order(centroids)
    bin_of = _binning(ascending)
    bins, of_midpoints = ops.arange(BINS, dtype="int32"), bin_of(midpoints)
    below = ops.searchsorted(of_midpoints, bins, side="left")
    above = ops.searchsorted(of_midpoints, bins, side="right")
    return Cells(order, ascending, midpoints, bin_of, below, above)


@functools.lru_cache
def _nearest_values() -> Callable[..., Any]:
    def values(weights: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest centroid of each weight, its place in ascending order, and the places of all."""
        if are_few(centroids):
            order, ascending, midpoints = in_order(centroids)
            places = compared(weights, midpoints, np.arange(centroids.shape[0], dtype="int32"))
            return compared(weights, midpoints, ascending), places, ops.argsort(order)
        cells = cells_of(centroids)
        places = _found_places(weights, cells)
        return take(cells.ascending, places), places, ops.argsort(cells.order)

    return compiled(values)


@functools.lru_cache
def _compared() -> Callable[..., Any]:
    def found(weights: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest of a few centroids of each weight, and its place in the given order."""
        order, ascending, midpoints = in_order(centroids)
        places = compared(weights, midpoints, ops.cast(order, "uint8"))
        return compared(weights, midpoints, ascending), places

    return compiled(found)


@functools.lru_cache
def _sought() -> Callable[..., Any]:
    def found(weights: Tensor, centroids: Tensor) -> Tensor:
        """The nearest centroid of each weight, by its place in the given order."""
        cells = cells_of(centroids)
        return take(ops.cast(cells.order, "uint8"), _found_places(weights, cells))

    return compiled(found)


def _found_places(weights: Tensor, cells: Cells) -> Tensor:
    """The place of each weight's nearest centroid in ascending order, by a look-up or by search."""
    lower, upper = take(cells.ascending, cells.below), take(cells.ascending, cells.above)
    between = 0.5 * lower + 0.5 * upper

    def look_up(part: Tensor) -> Tensor:
        bins = cells.bin_of(part)
        below, above = take(cells.below, bins), take(cells.above, bins)
        return ops.where(part > take(between, bins), above, below), ()

    def search(part: Tensor) -> Tensor:
        return ops.searchsorted(cells.midpoints, part, side="left"), ()

    return quick_or_sure(
        cells.tell_apart,
        lambda: in_chunks(look_up, weights, fused=True)[0],
        lambda: in_chunks(search, weights, fused=True)[0],
    )


def _binning(ascending: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that never falls, from values to bins."""
    low, width = ascending[0], ascending[-1] - ascending[0]
    # Bins so narrow that their number in a unit overflows are not told apart.
    per_unit = BINS / ops.where(width > NARROWEST, width, ops.ones_like(width))
    return lambda x: ops.cast(ops.clip((x - low) * per_unit, 0.0, BINS - 1.0), "int32")
