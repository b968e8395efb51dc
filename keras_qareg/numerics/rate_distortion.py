"""Centroids for weights that will be entropy-coded: squared error and bits, weighed against each other.

K-means spends its levels where they take most from the squared error, whatever their code costs. Here
the sum of both is least, `sum (w - c)^2 + rate * sum_j n_j log2(N / n_j)` over clusters of n_j of the N
weights: few weights of great length in the tails get levels of their own, and the common level in
the middle takes in what is near it. At equal entropy the squared error of ResNet8's largest kernel is
1.1 to 1.3 times less than k-means has.

Clusters are intervals of the sorted weights, and for given intervals both terms are sums over intervals.
How many there are is free, so the dynamic program has one row: the least cost of the weights before
each place. The second term breaks the monotonicity that k-means uses, so that each entry looks at all
places before it: `BINS^2 / 2` sums, in `BINS` vector operations. What each pair of places costs is
computed once for all rates. Where the limit on levels binds, the program has a row for each of them.

Source: Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization" (IEEE Trans. ASSP, 1989).

See also: https://keras-qareg.github.io/keras-qareg/method.html#clustering-by-rate-and-distortion
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from keras_qareg.numerics.clustering import check_levels, flat
from keras_qareg.numerics.codebook import Codebook, places_of
from keras_qareg.numerics.intervals import Ordered, code_bits

BINS = 2048
# How often the range of rates is halved, from a factor of 4; less than this share of the variance is 0.
_HALVINGS, _LEAST = 16, 1e-9
# How far prices may go; tries; the share of a budget, and the difference of prices, that are not worth
# another.
FURTHEST = 24.0
_TRIES, _NEAR, _STEP = 9, 0.003, 0.1


def rate_distortion(
    weights: ArrayLike,
    rate: float,
    *,
    levels: int = 256,
    zero_centroid: bool = False,
    importance: ArrayLike | None = None,
    level_bits: float = 0.0,
) -> Codebook:
    """The codebook with the least squared error plus `rate` times the bits of its indices.

    Bits are those of an ideal code of the indices: N times their entropy. The sum is the least over all
    partitions of the sorted weights into intervals, exactly where there are at most `BINS` distinct
    weights; above that over bins, and then over the weights around each border (within 2e-8 of the
    least over four times as many bins, in a kernel of 36,864 weights).

    Weights are not all with their nearest centroid: borders lie nearer to the rarer level.

    Args:
        weights: Array of any shape, finite.
        rate: What a bit may cost, in squared weights, 0 or more: the larger, the fewer bits. At 0 it is
            k-means with so many levels.
        levels: Integer from 2 to 256, the most levels there may be. Defaults to 256. Where this
            binds, the time grows by their number.
        zero_centroid: Whether one centroid is held at exactly 0, and counts among the levels. Weights
            that are exactly 0 stay there, whatever that costs.
        importance: What the squared distance of each weight is multiplied by, as in
            `clustering.kmeans`; the bits are not. `None` (default): 1.
        level_bits: How many bits a level itself takes, its value and its frequency, which in a small
            kernel count beside those of the indices. Defaults to 0.

    Returns:
        A `Codebook` of at most `levels` centroids, ascending. Each has weights, but for a zero that is
        held and stands for none.

    Raises:
        ValueError: If `rate` or `levels` is out of range, or the weights are empty or not finite.

    Example:

    >>> weights = [-1.1, -0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 1.0]
    >>> rate_distortion(weights, rate=0.01).indices.tolist()
    [0, 1, 1, 1, 1, 1, 1, 2]
    """
    return _Program(weights, levels, zero_centroid, importance, level_bits).codebook(
        check_rate(rate)
    )


def rate_for_bits(
    weights: ArrayLike,
    bits: float,
    *,
    levels: int = 256,
    zero_centroid: bool = False,
    importance: ArrayLike | None = None,
    level_bits: float = 0.0,
) -> float:
    """The least rate at which `rate_distortion` needs no more than some bits a weight.

    Args:
        weights: Array of any shape, finite.
        bits: The most entropy that the indices may have, above 0.
        levels: As in `rate_distortion`, and so are the others.
        zero_centroid: As there.
        importance: As there.
        level_bits: As there; `bits` counts the indices alone.

    Returns:
        A rate, to a relative 3e-5; 0.0 where no rate is needed. Bits fall in steps as rates rise, of
        half a bit in a kernel of some hundred weights: so much less may be used.

    Raises:
        ValueError: If `bits` is not above 0, or as `rate_distortion`.

    Example:

    >>> weights = np.random.default_rng(0).normal(size=10_000)
    >>> rate = rate_for_bits(weights, 1.5)
    >>> round(rate_distortion(weights, rate).entropy, 2)
    1.5
    """
    if not bits > 0:
        raise ValueError(f"Expected `bits` above 0. Received: bits={bits!r}")
    program = _Program(weights, levels, zero_centroid, importance, level_bits)
    spread = program.spread
    if math.log2(min(levels, program.bins)) <= bits or not spread:
        return 0.0
    # At high resolution the error falls to a quarter with each bit, which rates follow.
    low = high = spread * 4.0**-bits
    while program.entropy(low) <= bits:
        low, high = low / 4, low
        if low < _LEAST * spread:
            return 0.0
    while program.entropy(high) > bits:
        low, high = high, high * 4
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if program.entropy(middle) <= bits else (middle, high)
    return high


def lowest_price(
    size: Callable[[float], int], most: int, weights: int, start: float = 0.0
) -> float | None:
    """The lowest price of a bit at which a file is small enough, about.

    Args:
        size: The bytes of the file at a price, which is the logarithm to the base 2 of what rates are in
            proportion to.
        most: The most bytes.
        weights: How many weights there are.
        start: The price that is tried first.

    Returns:
        A price of those that were tried; `None` where even the highest is not enough, `FURTHEST`, at
        which kernels have one value each.

    Example:

    >>> lowest_price(lambda price: round(1000 - 50 * price), 800, 800)
    4.0
    """
    low, high, price = -FURTHEST, FURTHEST, start
    best: float | None = None
    for _ in range(_TRIES):
        left = most - size(price)
        if left >= 0:
            best = high = price
            if left < _NEAR * most:
                break
        else:
            low = price
        if best is not None and high - low < _STEP:
            break
        # With each bit a weight the error falls to a quarter, and prices with it.
        guess = price - 16 * left / weights
        inside = low + 0.05 * (high - low), high - 0.05 * (high - low)
        price = float(np.clip(guess, *inside))
    if best is None and size(FURTHEST) <= most:
        return FURTHEST
    return best


def assigned(weights: ArrayLike, book: Codebook, rate: ArrayLike) -> Codebook:
    """Each weight with the level that costs least: squared distance plus `rate` times its code's length.

    Lengths are `log2(N / n)`, by how many weights each level has so far. Where centroids have been
    rounded, say, what is best for the weights has changed. Zeros stay with a level at 0.

    Args:
        weights: Array in the shape of the book's indices.
        book: A `Codebook` with one table, in any order; equal levels become one.
        rate: Squared weights a bit: a number, or an array with one for each of the channels, which the
            last axis of the weights counts.

    Returns:
        A `Codebook` of the same table, ascending, without the levels that have no weights, except 0.

    Example:

    >>> book = Codebook([0.0, 1.0], [0, 0, 0, 1, 1])
    >>> assigned([0.0, 0.1, 0.2, 0.55, 1.0], book, rate=0.2).indices.tolist()
    [0, 0, 0, 0, 1]
    """
    weights, counts = np.asarray(weights, "float32"), book.counts
    table, inverse = np.unique(book.centroids, return_inverse=True)
    counts = np.bincount(inverse.reshape(-1), counts, table.size)
    had = np.flatnonzero(counts)
    lengths = np.log2(counts.sum() / counts[had])
    rates = np.asarray(rate, "float64").reshape(-1)
    starts = _starts(table[had].astype("float64"), lengths, rates)
    indices = np.empty(weights.shape, "uint8")
    columns = weights.reshape(-1, rates.size), indices.reshape(-1, rates.size)
    for channel, start in enumerate(starts.T):
        alive = np.flatnonzero(start < np.inf)
        places = places_of(columns[0][:, channel], start[alive[1:]].astype("float32"))
        columns[1][:, channel] = had[alive].astype("uint8")[places]
    if (zero := had[table[had] == 0]).size:
        indices[weights == 0] = zero[0]
    used = (np.bincount(indices.reshape(-1), minlength=table.size) > 0) | (table == 0)
    return Codebook(table[used], (np.cumsum(used) - 1).astype("uint8")[indices])


def _starts(centroids: np.ndarray, lengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """From which weight on each level costs least, at each rate: `(levels, rates)`; inf: from none.

    Of two levels the upper one costs less above one border; of all levels one costs least between its
    highest border with a lower and its lowest border with a higher one.
    """
    starts = np.full((centroids.size, rates.size), -np.inf)
    ends = np.full(starts.shape, np.inf)
    for i in range(centroids.size - 1):
        gaps = centroids[i + 1 :] - centroids[i]
        longer = (lengths[i + 1 :] - lengths[i]) / (2 * gaps)
        borders = 0.5 * (centroids[i + 1 :] + centroids[i])[:, None] + longer[:, None] * rates
        starts[i + 1 :] = np.maximum(starts[i + 1 :], borders)
        ends[i] = borders.min(axis=0)
    return np.where(starts < ends, starts, np.inf)


def check_rate(rate: float) -> float:
    """`rate` as a float; raises a `ValueError` unless it is a number, 0 or more."""
    number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not (number and 0 <= rate < math.inf):
        raise ValueError(f"Expected `rate` to be a number, 0 or more. Received: rate={rate!r}")
    return float(rate)


class _Program:
    """The dynamic program of some weights, for any rate."""

    def __init__(
        self,
        weights: ArrayLike,
        levels: int,
        zero_centroid: bool,
        importance: ArrayLike | None,
        level_bits: float,
    ):
        self.levels, self.zero, self.level_bits = check_levels(levels), zero_centroid, level_bits
        self.weights = np.asarray(weights)
        values = flat(weights)
        if importance is not None:
            importance = np.broadcast_to(importance, self.weights.shape).reshape(-1)
        self.ordered = Ordered.of(values, importance, around_zero=zero_centroid)
        self.places = self.ordered.places(BINS)
        self.bins = self.places.size - 1
        self._tabulate()

    def _tabulate(self) -> None:
        """What each interval of bins takes from the squares, and its bits, by end and then start."""
        places, size = self.places, self.weights.size
        total, sums = self.ordered.total(places).astype("float64"), self.ordered.sums[places]
        self.gains = np.empty(self.bins * (self.bins + 1) // 2)
        self.bits = np.empty_like(self.gains)
        for end in range(1, self.bins + 1):
            row = slice(end * (end - 1) // 2, end * (end + 1) // 2)
            moments = sums[end] - sums[:end]
            np.divide(moments * moments, total[end] - total[:end], out=self.gains[row])
            self.bits[row] = code_bits(places[end] - places[:end], size)

    @property
    def spread(self) -> float:
        """About the mean squared error of one level."""
        ends = np.arange(1, self.bins + 1)
        alone = float(self.gains[ends * (ends + 1) // 2 - 1].sum())
        together = 0.0 if self.zero else float(self.gains[-self.bins])
        return max(0.0, alone - together) / self.weights.size

    def borders(self, rate: float) -> tuple[np.ndarray, int | None]:
        """The best borders of intervals, which may be empty, and which of these is held at zero."""
        bits = -rate * self.bits
        gains, zeros = self.gains + bits - rate * self.level_bits, bits if self.zero else None
        first, last = (np.searchsorted(self.ordered.weights, 0, side) for side in ("left", "right"))
        held = self.zero and last > first
        if held:  # weights of 0 are in no other interval than the zero's
            bin_of = int(np.searchsorted(self.places, first, "right")) - 1
            for end in range(bin_of + 1, self.bins + 1):
                gains[end * (end - 1) // 2 :][: bin_of + 1] = -np.inf
        ends, zero = _best_ends(gains, zeros, self.bins, None)
        if ends.size - 1 > self.levels:
            ends, zero = _best_ends(gains, zeros, self.bins, self.levels - self.zero)
        borders, ordered = self.places[ends], self.ordered.weights
        if np.array_equal(ordered[self.places[:-1]], ordered[self.places[1:] - 1]):
            return borders, zero  # each distinct weight has its bin
        borders = self.ordered.refined(borders, zero, int(np.diff(self.places).max()), rate)
        # Equal weights share a level.
        inner = borders[1:-1][borders[1:-1] < ordered.size]
        borders[1 : 1 + inner.size] = np.searchsorted(ordered, ordered[inner], side="left")
        if held and zero is not None:
            borders[: zero + 1] = borders[: zero + 1].clip(max=first)
            borders[zero + 1 :] = borders[zero + 1 :].clip(min=last)
        return borders, zero

    def entropy(self, rate: float) -> float:
        """Bits a weight at a rate."""
        counts = np.diff(self.borders(rate)[0])
        return float(code_bits(counts, self.weights.size).sum()) / self.weights.size

    def codebook(self, rate: float) -> Codebook:
        """The best codebook at a rate."""
        borders, zero = self.borders(rate)
        centroids = self.ordered.means(borders, zero)
        kept = np.diff(borders) > 0
        table = centroids[kept]
        if zero is not None and not kept[zero]:
            table = np.append(table, np.float32(0))
        table, inverse = np.unique(table, return_inverse=True)
        lasts = self.ordered.weights[borders[1:][kept][:-1] - 1]
        values = self.weights.astype(lasts.dtype, copy=False)
        return Codebook(table, inverse.reshape(-1).astype("uint8")[places_of(values, lasts)])


def _best_ends(
    gains: np.ndarray, zeros: np.ndarray | None, bins: int, levels: int | None
) -> tuple[np.ndarray, int | None]:
    """Ends of the best intervals of bins, from 0 on, and which interval is the zero's.

    Args:
        gains: What an interval gains, by its end and then its start: `(bins * (bins + 1) / 2,)`.
        zeros: What it gains where its centroid is held at zero; `None`: none is.
        bins: How many bins there are.
        levels: How many intervals there may be, beside the zero's; `None`: any.

    Returns:
        Int array from 0 to `bins`, and a place among the intervals or `None`. An interval of the zero
        may be empty.
    """
    # A row for each number of intervals, or one for all; the second state has the zero's behind it.
    step = 0 if levels is None else 1
    rows = 1 if levels is None else min(levels, bins)
    best = np.full((2, rows + step, bins + 1), -np.inf)
    began = np.zeros((2, rows + step, bins + 1), "int32")
    is_zero = np.zeros((rows + step, bins + 1), "bool")
    best[:, 0, 0], is_zero[0, 0] = 0.0, zeros is not None
    for end in range(1, bins + 1):
        row = slice(end * (end - 1) // 2, end * (end + 1) // 2)
        for state in (0,) if zeros is None else (0, 1):
            totals = best[state, :rows, :end] + gains[row]
            began[state, step:, end] = start = totals.argmax(axis=1)
            best[state, step:, end] = totals[np.arange(rows), start]
        if zeros is not None:
            totals = best[0, :, : end + 1] + np.append(zeros[row], 0.0)
            start = totals.argmax(axis=1)
            found = totals[np.arange(rows + step), start]
            better = found > best[1, :, end]
            best[1, better, end], began[1, better, end] = found[better], start[better]
            is_zero[better, end] = True
    state = int(zeros is not None)
    return _traced(int(best[state, :, -1].argmax()), bins, state, step, began, is_zero)


def _traced(
    row: int, end: int, state: int, step: int, began: np.ndarray, is_zero: np.ndarray
) -> tuple[np.ndarray, int | None]:
    """The way back from the best row at the end."""
    ends, zero_from_end = [end], None
    while ends[-1] or state:
        start = int(began[state, row, ends[-1]])
        if state and is_zero[row, ends[-1]]:
            state, zero_from_end = 0, len(ends)
        else:
            row -= step
        ends.append(start)
    zero = None if zero_from_end is None else len(ends) - 1 - zero_from_end
    return np.array(ends[::-1]), zero
