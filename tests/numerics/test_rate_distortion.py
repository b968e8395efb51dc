"""Clustering for entropy coding: against all partitions of small inputs, and against k-means."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_qareg.numerics import rate_distortion as rd
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.codebook import Codebook

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)


def cost(weights, book, rate, importance=1.0, level_bits=0.0, free=0):
    squares = (importance * np.square(weights.astype("float64") - book.weights)).sum()
    return squares + rate * (
        book.entropy * weights.size + level_bits * (len(book.centroids) - free)
    )


def least_by_trial(weights, rate, levels, zero, importance, level_bits):
    """The least cost over all partitions of the distinct weights into intervals.

    Where a zero is held, weights of 0 are in its interval.
    """
    order = np.argsort(weights)
    weights, importance = weights[order].astype("float64"), importance[order]
    size, best = weights.size, np.inf
    distinct = [i for i in range(1, size) if weights[i] != weights[i - 1]]
    for count in range(len(distinct) + 1):
        for cuts in combinations(distinct, count):
            parts = [slice(*ends) for ends in pairwise((0, *cuts, size))]
            lengths = np.array([part.stop - part.start for part in parts])
            means = [np.average(weights[p], weights=importance[p]) for p in parts]
            about = [
                [(importance[p] * np.square(weights[p] - c)).sum() for c in (mean, 0)]
                for p, mean in zip(parts, means, strict=True)
            ]
            free = sum(mean for mean, _ in about)
            needs_zero = [zero and bool((weights[p] == 0).any()) for p in parts]
            found = [] if any(needs_zero) else [(free, len(parts) + zero)]
            if zero:
                found += [
                    (free - mean + held, len(parts))
                    for (mean, held), needed in zip(about, needs_zero, strict=True)
                    if needed or not any(needs_zero)
                ]
            bits = rate * (lengths * np.log2(size / lengths)).sum()
            for squares, used in found:
                if used <= levels:
                    best = min(best, squares + bits + rate * level_bits * (used - zero))
    return best


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]),
    st.sampled_from([2, 3, 256]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 2.5]),
)
def test_no_partition_costs_less(size, seed, rate, levels, zero, weighted, level_bits):
    random = np.random.default_rng(seed)
    weights = random.normal(size=size).astype("float32")
    weights = np.round(2 * weights) / 2 if seed % 2 else weights
    importance = random.uniform(0.1, 3, size) if weighted else np.ones(size)
    book = rd.rate_distortion(
        weights,
        rate,
        levels=levels,
        zero_centroid=zero,
        importance=importance,
        level_bits=level_bits,
    )
    assert len(book.centroids) <= levels and (np.diff(book.centroids) > 0).all()
    assert (book.counts[book.centroids != 0] > 0).all() and (not zero or 0 in book.centroids)
    least = least_by_trial(weights, rate, levels, zero, importance, level_bits)
    assert cost(weights, book, rate, importance, level_bits, zero) <= least + 1e-5


@pytest.mark.parametrize("levels, gain", [(4, 1.2), (16, 1.3)])
def test_less_error_than_kmeans_at_equal_entropy(levels, gain):
    weights = (0.05 * np.random.default_rng(1).standard_t(5, (100, 300))).astype("float32")
    best = Codebook.nearest(weights, kmeans(weights, levels))
    rate = rd.rate_for_bits(weights, best.entropy)
    book = rd.rate_distortion(weights, rate)
    assert best.entropy - 0.02 < book.entropy <= best.entropy
    assert best.relative_error(weights) > gain * book.relative_error(weights)
    # A little less of a rate is too many bits.
    assert rd.rate_distortion(weights, 0.99 * rate).entropy > best.entropy


def test_without_a_rate_it_is_kmeans():
    weights = RNG.normal(size=(40, 50)).astype("float32")
    found = rd.rate_distortion(weights, 0.0, levels=8)
    np.testing.assert_allclose(found.centroids, kmeans(weights, 8), rtol=1e-6)
    np.testing.assert_array_equal(found.indices, Codebook.nearest(weights, found.centroids).indices)
    assert rd.rate_for_bits(weights, 3.0, levels=8) == 0.0
    assert rd.rate_for_bits(np.repeat(RNG.normal(size=4), 9), 2.0) == 0.0


def test_weights_go_where_they_cost_least():
    weights = RNG.normal(size=(500, 3)).astype("float32")
    book = rd.rate_distortion(weights, 0.02, zero_centroid=True)
    # What the program found stays, and rounded centroids get the weights that they are best for.
    again = rd.assigned(weights, book, 0.02)
    assert np.count_nonzero(again.indices != book.indices) <= 3
    table = np.append(np.round(book.centroids, 1), [9.0, 0.0])
    rough, rates = Codebook(table, book.indices), np.array([1e-3, 0.02, 0.3])
    found = rd.assigned(weights, rough, rates)
    counts = np.array([rough.counts[rough.centroids == c].sum() for c in found.centroids])
    with np.errstate(divide="ignore"):
        lengths = np.log2(weights.size / counts)
    costs = np.square(weights[..., None] - found.centroids) + rates[:, None] * lengths
    taken = np.take_along_axis(costs, found.indices[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(taken, costs.min(axis=-1), atol=1e-6)
    assert 9.0 not in found.centroids and 0.0 in found.centroids


def test_arguments():
    for rate in (-1.0, np.nan, "a"):
        with pytest.raises(
            ValueError, match=r"Expected `rate` to be a number, 0 or more\. Received"
        ):
            rd.rate_distortion([1.0, 2.0], rate)
    with pytest.raises(ValueError, match=r"Expected `bits` above 0\. Received: bits=0"):
        rd.rate_for_bits([1.0, 2.0], 0)
    with pytest.raises(ValueError, match="Expected finite weights"):
        rd.rate_distortion([1.0, np.inf], 0.1)
    book = rd.rate_distortion(np.full((2, 3), 0.5), 0.1)
    assert book.centroids.tolist() == [0.5] and not book.indices.any()


@pytest.mark.parametrize("levels", [2, 4, 256])
@pytest.mark.parametrize("rate", [0.01, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("size", [500, 20_000])
def test_zeros_stay_at_the_zero_whatever_they_cost(size, rate, levels):
    weights = np.abs(np.random.default_rng(0).normal(size=size)).astype("float32")
    weights[weights < np.quantile(weights, 0.3)] = 0
    book = rd.rate_distortion(weights, rate, levels=levels, zero_centroid=True)
    assert not book.weights[weights == 0].any() and len(book.centroids) <= levels
    assert not rd.assigned(weights, book, rate).weights[weights == 0].any()
