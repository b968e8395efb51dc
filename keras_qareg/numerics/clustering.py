"""Where centroids start: NumPy functions from a tensor of weights to its representatives.

`kmeans` is the globally optimal clustering in one dimension, not a local optimum of Lloyd's
iteration. A cluster of an optimal solution is an interval of the sorted weights, so dynamic
programming over the right ends of the intervals finds it; the best left end moves one way only as
the right end does, so each row of the program is searched by divide and conquer. With more distinct
weights than `BINS`, the program runs over bins of sorted weights, which follow the density that the
best centroids have and reach single weights at both tails, and is then repeated around the borders
that it found, in ever finer steps down to single weights.

See also: https://keras-qareg.github.io/keras-qareg/method.html#exact-clustering
"""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from keras_qareg.numerics.intervals import Ordered

MIN_LEVELS, MAX_LEVELS = 2, 256
# The share of exact zeros from which on they stay zeros.
_MANY_ZEROS = 0.1
_DEAD = 1e-5
BINS = 10_240


def check_levels(levels: SupportsIndex) -> int:
    """`levels` as an `int`.

    Raises:
        ValueError: If it is not an integer from 2 to 256.
    """
    try:
        value = operator.index(levels)
    except TypeError:
        value = 0
    if not MIN_LEVELS <= value <= MAX_LEVELS:
        raise ValueError(
            f"Expected `levels` to be an integer from {MIN_LEVELS} to {MAX_LEVELS}. "
            f"Received: levels={levels!r}"
        )
    return value


def dead_channels(weights: ArrayLike, channel_axes: int) -> np.ndarray:
    """Which channels of a kernel do nothing, so that nothing need be spent on them.

    A channel is dead where all its weights are below 1e-5 of the kernel's largest. A batch
    normalization that follows makes no more than a few thousandths of that: it divides by
    `sqrt(variance + epsilon)`, of which `epsilon` alone is 1e-3 by default.

    Args:
        weights: Array of any shape.
        channel_axes: How many of its last axes count channels; 0: none, and nothing is dead.

    Returns:
        Bool array in the shape of these axes.

    Example:

    >>> dead_channels([[1.0, 1e-6], [0.5, -1e-7]], channel_axes=1).tolist()
    [False, True]
    """
    weights = np.asarray(weights)
    if not 0 < channel_axes < weights.ndim:
        return np.zeros((), "bool")
    largest = np.abs(weights).max(axis=tuple(range(weights.ndim - channel_axes)))
    dead: np.ndarray = largest < _DEAD * largest.max()
    return dead


def many_zeros(weights: ArrayLike, levels: int) -> bool:
    """Whether weights have so many exact zeros, as pruned ones, that these are worth a level.

    Args:
        weights: Array of any shape.
        levels: How many levels there are: of two, one is too much for a few zeros.

    Example:

    >>> many_zeros([0.0, 0.1, 0.1, -0.2], levels=4), many_zeros([0.0, 0.1, 0.1, -0.2], levels=2)
    (True, False)
    """
    share = float(np.mean(np.asarray(weights) == 0))
    return share >= (0.5 if levels == 2 else _MANY_ZEROS)


def with_zero(centroids: ArrayLike) -> np.ndarray:
    """Centroids of which the nearest to 0 is 0."""
    found = np.array(centroids, "float32")
    found[np.argmin(np.abs(found))] = 0.0
    return found


def uniform(weights: ArrayLike, levels: int) -> np.ndarray:
    """`levels` evenly spaced values from the smallest weight to the largest.

    Args:
        weights: Array of any shape, finite.
        levels: Integer from 2 to 256.

    Returns:
        Float32 array of shape `(levels,)`, ascending.

    Raises:
        ValueError: If `levels` is out of range, or the weights are empty or not finite.
    """
    levels, weights = check_levels(levels), flat(weights)
    return np.linspace(weights.min(), weights.max(), levels, dtype="float32")


def quantile(weights: ArrayLike, levels: int) -> np.ndarray:
    """The middles of `levels` groups of equally many weights. Arguments as in `uniform`."""
    levels, weights = check_levels(levels), flat(weights)
    return np.quantile(weights, (np.arange(levels) + 0.5) / levels).astype("float32")


def kmeans(
    weights: ArrayLike,
    levels: int,
    *,
    zero_centroid: bool = False,
    importance: ArrayLike | None = None,
) -> np.ndarray:
    """Centroids with the least sum of squared distances, exactly (1-D k-means).

    Globally optimal wherever there are at most `BINS` distinct weights. Above that, optimal over
    bins and then over the weights around each border: against an exact program over 300,000 weights
    of normal, Laplace and Student's t distribution the sum of squares was the same to 1e-6 up to 64
    levels, and to 6e-6 at 256.

    Args:
        weights: Array of any shape, finite. 10^8 weights are fine: beside the input
            it takes about three times its memory.
        levels: Integer from 2 to 256.
        zero_centroid: Whether one centroid is held at exactly 0, and the others are the best beside it.
        importance: What the squared distance of each weight is multiplied by: positive numbers, an array
            in the shape of the weights or one that broadcasts to it. `None` (default): 1.

    Returns:
        Float32 array, ascending, of at most `levels` values: fewer only where the weights have
        fewer distinct values, which then are these to the bit.

    Raises:
        ValueError: If `levels` is out of range, or the weights are empty or not finite.

    Example:

    >>> kmeans([1.0, 1.2, 5.0, 5.2], levels=2).tolist()
    [1.100000023841858, 5.099999904632568]
    """
    levels, values = check_levels(levels), flat(weights)
    if importance is not None:
        importance = np.broadcast_to(importance, np.shape(weights)).reshape(-1)
    ordered = Ordered.of(values, importance, around_zero=zero_centroid)
    places = ordered.places(BINS)
    total, sums = ordered.total(places), ordered.sums[places]
    ends, zero = _best_partition(total, sums, levels, zero_centroid)
    borders = places[np.append(0, ends)]
    borders = ordered.refined(borders, zero, int(np.diff(places).max()))
    kept = np.diff(borders) > 0
    if zero is not None:
        kept[zero] = True
    return np.unique(ordered.means(borders, zero)[kept])


METHODS = {"kmeans": kmeans, "quantile": quantile, "uniform": uniform}


def flat(weights: ArrayLike) -> np.ndarray:
    """Weights as one axis, in their precision; raises a `ValueError` if there are none, or NaN."""
    weights = np.asarray(weights)
    if weights.dtype != np.float64:
        weights = weights.astype("float32", copy=False)
    weights = weights.reshape(-1)
    if weights.size == 0:
        raise ValueError("Expected at least one weight. Received: an empty array.")
    check_finite(weights)
    return weights


def check_finite(weights: np.ndarray) -> None:
    """Raises a `ValueError` where there are NaN or infinite weights."""
    # NaN and infinity both survive into these two, at no cost in memory.
    if not (np.isfinite(weights.min()) and np.isfinite(weights.max())):
        raise ValueError(
            "Expected finite weights. Received: an array with NaN or infinite values. "
            "Train again with a lower learning rate, or restore an earlier checkpoint."
        )


def _best_partition(
    total_count: np.ndarray, total_sum: np.ndarray, levels: int, zero_centroid: bool
) -> tuple[np.ndarray, int | None]:
    """Right ends (exclusive) of the best intervals of bins, and which interval is the zero's.

    Counts and sums are those of all weights before each bin.

    The sum of squares within clusters is the sum of w^2, a constant, less each cluster's
    sum(w)^2 / count: the gain maximized here. A cluster that is held at zero gains nothing.
    """
    bins = total_count.size - 1
    free = min(levels - zero_centroid, bins)
    start = np.full(bins + 1, -np.inf)
    start[0] = 0.0
    # One row of gains a number of clusters; the second state has the zero's interval behind it.
    plain, passed = start, np.zeros(bins + 1) if zero_centroid else start
    steps: list[np.ndarray] = []
    steps_passed: list[np.ndarray] = []
    jumps: list[np.ndarray] = [np.zeros(bins + 1, "int64")]
    for _ in range(free):
        plain, choice = _next_row(plain, total_count, total_sum)
        steps.append(choice)
        if zero_centroid:
            extended, choice = _next_row(passed, total_count, total_sum)
            steps_passed.append(choice)
            best_so_far = np.maximum.accumulate(plain)
            improved = best_so_far > extended
            passed = np.where(improved, best_so_far, extended)
            # Where the zero's interval ends here: the place at which it began. Elsewhere: -1.
            began = np.maximum.accumulate(np.where(plain >= best_so_far, np.arange(bins + 1), 0))
            jumps.append(np.where(improved, began, -1))
    ends = [bins]
    if not zero_centroid:
        for choice in reversed(steps):
            ends.append(int(choice[ends[-1]]))
        return np.array(ends[-2::-1]), None
    return _trace_with_zero(bins, free, steps, steps_passed, jumps)


def _trace_with_zero(
    bins: int,
    free: int,
    steps: list[np.ndarray],
    steps_passed: list[np.ndarray],
    jumps: list[np.ndarray],
) -> tuple[np.ndarray, int]:
    ends, row, behind, zero_from_end = [bins], free, True, 0
    while row > 0 or behind:
        place = ends[-1]
        if behind and jumps[row][place] >= 0:
            zero_from_end = len(ends)
            ends.append(int(jumps[row][place]))
            behind = False
        else:
            ends.append(int((steps_passed if behind else steps)[row - 1][place]))
            row -= 1
    return np.array(ends[-2::-1]), len(ends) - 1 - zero_from_end


def _next_row(
    previous: np.ndarray, count: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best gain of one more cluster that ends at each place, and where that cluster begins."""
    size = count.size
    gain, choice = np.full(size, -np.inf), np.zeros(size, "int64")
    stride = 1 << (size - 1).bit_length()
    while stride >= 1:
        rows = np.arange(stride, size, 2 * stride)
        low = choice[rows - stride]
        after = rows + stride
        high = np.where(after < size, choice[np.minimum(after, size - 1)], size)
        high = np.minimum(high, rows - 1)
        low = np.minimum(low, high)
        gain[rows], choice[rows] = _best_of_ranges(previous, count, total, rows, low, high)
        stride //= 2
    return gain, choice


def _best_of_ranges(
    previous: np.ndarray,
    count: np.ndarray,
    total: np.ndarray,
    rows: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    if rows.size == 0:
        return np.empty(0), np.empty(0, "int64")
    lengths = high - low + 1
    offsets = np.append(0, np.cumsum(lengths)[:-1])
    place = np.arange(lengths.sum()) - np.repeat(offsets - low, lengths)
    mass = np.repeat(count[rows], lengths) - count[place]
    moment = np.repeat(total[rows], lengths) - total[place]
    gain = previous[place] + moment * moment / mass
    best = np.maximum.reduceat(gain, offsets)
    hits = np.flatnonzero(gain == np.repeat(best, lengths))
    first = hits[np.searchsorted(hits, offsets)]
    return best, place[first]
