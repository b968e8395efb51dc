"""Clusters of sorted weights as intervals: their sums, the places where they may begin, better borders.

In one dimension the best clusters are intervals of the sorted weights, and what a cluster costs follows
from the sums of all weights before its two ends. `clustering` and `rate_distortion` look for the best
intervals of bins by dynamic programs; here is what they share: bins that are dense where borders are,
the way from bins to single weights, and the means.

See also: https://keras-qareg.github.io/keras-qareg/method.html#clustering-by-rate-and-distortion
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# How many steps to either side a border may move at once, and how often at each size of step.
_REACH, _MOVES = 16, 20


class Ordered(NamedTuple):
    """Sorted weights, and sums over those before each place.

    Attributes:
        weights: The n weights, ascending.
        sums: Float64 array `(n + 1,)` of the weights less `origin`, each times its importance.
        masses: Float64 array `(n + 1,)` of the importance; `None` where each weight counts once.
        origin: What is taken from the weights before they are added up.
    """

    weights: np.ndarray
    sums: np.ndarray
    masses: np.ndarray | None
    origin: float

    @classmethod
    def of(cls, weights: np.ndarray, importance: ArrayLike | None, around_zero: bool) -> Ordered:
        """Sorts weights `(n,)`, with an importance `(n,)` or `None`.

        Sums around the mean keep the digits of a tensor that is far from zero; a centroid held at
        zero needs the sums as they are.
        """
        masses = None
        if importance is None:
            ordered = np.sort(weights)
        else:
            order = np.argsort(weights)
            ordered, masses = weights[order], np.zeros(weights.size + 1)
            masses[1:] = np.asarray(importance)[order]
        origin = 0.0 if around_zero else float(ordered.mean(dtype="float64"))
        sums = np.zeros(ordered.size + 1)
        np.subtract(ordered, origin, out=sums[1:])
        if masses is not None:
            sums *= masses
            np.cumsum(masses, out=masses)
        np.cumsum(sums[1:], out=sums[1:])
        return cls(ordered, sums, masses, origin)

    def places(self, bins: int) -> np.ndarray:
        """Where the intervals of a dynamic program may begin and end, the ends of all included."""
        return np.append(_bin_starts(self.weights, bins), self.weights.size)

    def total(self, places: np.ndarray) -> np.ndarray:
        """The importance of all weights before some places."""
        return places if self.masses is None else self.masses[places]

    def means(self, borders: np.ndarray, zero: int | None) -> np.ndarray:
        """The mean of each interval between borders; 0 for the one held there, any for empty ones."""
        counts = np.diff(borders)
        total = np.diff(self.total(borders))
        means = np.diff(self.sums[borders]) / np.where(counts > 0, total, 1) + self.origin
        # Equal weights are their own mean, to the bit: what had few values keeps them, and its zeros.
        last = self.weights.size - 1
        lowest, highest = self.weights[borders[:-1].clip(max=last)], self.weights[borders[1:] - 1]
        means = np.where((counts > 0) & (lowest == highest), lowest, means)
        if zero is not None:
            means[zero] = 0.0
        return means.astype("float32")

    def refined(
        self, borders: np.ndarray, zero: int | None, bin_size: int, rate: float = 0.0
    ) -> np.ndarray:
        """The best borders near those found between bins, in ever finer steps down to one weight.

        Each step is a dynamic program of its own, in which every border may move to any of the places
        around it, all at once. Where every distinct weight had its bin there is nothing to move.

        Args:
            borders: Int array `(clusters + 1,)`, from 0 to n.
            zero: The cluster whose centroid is held at zero, if there is one.
            bin_size: How many weights the largest bin has.
            rate: What a bit of the weights' code costs. Defaults to 0.

        Returns:
            Better borders; clusters may be empty.
        """
        gain = -np.inf
        stride = 4 ** int(np.ceil(np.log(4 * bin_size) / np.log(4)))
        while stride >= 1:
            for _ in range(_MOVES):
                moved, moved_gain = self._best_nearby(borders, zero, rate, stride)
                if not moved_gain > gain:
                    break
                borders, gain = moved, moved_gain
            stride //= 4
        return borders

    def _best_nearby(
        self, borders: np.ndarray, zero: int | None, rate: float, stride: int
    ) -> tuple[np.ndarray, float]:
        size = self.weights.size
        nearby = borders[1:-1, None] + stride * np.arange(-_REACH, _REACH + 1)
        places = [np.zeros(1, "int64"), *nearby.clip(0, size), np.array([size])]
        gain, choices = np.zeros(1), []
        for j, (left, right) in enumerate(itertools.pairwise(places)):
            count = right - left[:, None]
            mass = self.total(right) - self.total(left)[:, None]
            moment = self.sums[right] - self.sums[left][:, None]
            fixed = 0.0 if j == zero else moment * moment / np.where(count > 0, mass, 1)
            if rate:
                fixed = fixed - rate * code_bits(np.maximum(count, 0), size)
            total = np.where(count >= 0, gain[:, None] + fixed, -np.inf)
            choices.append(total.argmax(0))
            gain = total.max(0)
        at, moved = 0, [size]
        for place, choice in zip(reversed(places[:-1]), reversed(choices), strict=True):
            at = choice[at]
            moved.append(place[at])
        return np.array(moved[::-1]), float(gain[0])


def code_bits(counts: np.ndarray, size: int) -> np.ndarray:
    """The bits of an ideal code for clusters of n of `size` weights: `n log2(size / n)`, 0 for none."""
    return counts * np.log2(size / np.maximum(counts, 1))


def _bin_starts(ordered: np.ndarray, bins: int) -> np.ndarray:
    """Index of the first weight of each bin of the sorted weights; equal weights share a bin."""
    differs = ordered[1:] != ordered[:-1]
    if np.count_nonzero(differs) < bins:
        return np.append(0, np.flatnonzero(differs) + 1)
    # Ranks of edges, half of them at equal distances and half ever closer towards both ends, so that
    # each of the outermost weights has a bin of its own.
    half, last = bins // 2, ordered.size - 1
    towards = np.geomspace(1, last / 2, half // 4)
    ranks = np.concatenate([np.linspace(0, last, half // 2), towards - 1, last + 1 - towards])
    ranks = np.unique(ranks.astype("int64"))
    counts, widths = np.diff(ranks), np.diff(ordered[ranks].astype("float64"))
    # The best centroids of a density f are as dense as f^(1/3), so that between two edges there
    # should be a share of width * (count / width)^(1/3) of the bins, and no more than weights:
    # otherwise one outlier would take them all.
    shares = widths ** (2 / 3) * counts ** (1 / 3)
    for _ in range(10):
        shares = np.minimum(shares, shares.sum() / half * counts)
    filled = np.append(0.0, shares.cumsum() / shares.sum())
    wanted = np.interp(np.linspace(0, 1, half), filled, ordered[ranks])
    edges = np.concatenate([ordered[ranks], wanted.astype(ordered.dtype)])
    # Edges between the same two neighbours start at the same weight.
    return np.unique(np.searchsorted(ordered, edges, side="left").clip(0, ordered.size - 1))
