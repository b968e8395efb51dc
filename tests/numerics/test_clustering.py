"""Exact clustering: against brute force on small inputs, against scikit-learn on large ones."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans

from keras_qareg.numerics import clustering
from keras_qareg.numerics.codebook import Codebook

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)


def sum_of_squares(weights, found):
    return float(np.square(np.asarray(weights, "float64") - nearest(weights, found)).sum())


def nearest(weights, found):
    weights = np.asarray(weights, "float64")
    return np.asarray(found, "float64")[np.abs(weights[:, None] - found).argmin(-1)]


def best_by_trial(weights, levels, zero=False):
    """The least sum of squares over all ways to cut the sorted weights."""
    ordered = np.sort(np.asarray(weights, "float64"))
    best = np.inf
    for cuts in combinations(range(ordered.size + 1), levels - 1):
        parts = np.split(ordered, cuts)
        costs = [np.square(p - p.mean()).sum() if p.size else 0.0 for p in parts]
        if zero:
            costs = [
                sum(costs) - cost + np.square(part).sum()
                for cost, part in zip(costs, parts, strict=True)
            ]
            best = min(best, *costs)
        else:
            best = min(best, sum(costs))
    return best


SMALL = hnp.arrays("float32", st.integers(1, 9), elements=st.floats(-8, 8, width=16))


@settings(max_examples=150, deadline=None)
@given(SMALL, st.integers(2, 4))
def test_kmeans_is_optimal(weights, levels):
    found = clustering.kmeans(weights, levels)
    assert found.size <= levels and (np.diff(found) > 0).all()
    assert sum_of_squares(weights, found) <= best_by_trial(weights, levels) + 1e-4


@settings(max_examples=150, deadline=None)
@given(SMALL, st.integers(2, 4))
def test_kmeans_beside_a_zero_is_optimal(weights, levels):
    found = clustering.kmeans(weights, levels, zero_centroid=True)
    assert 0.0 in found and found.size <= levels
    best = best_by_trial(weights, levels, zero=True)
    assert sum_of_squares(weights, found) <= best + 1e-4


@pytest.mark.parametrize("levels", [2, 4, 16, 64])
@pytest.mark.parametrize(
    "weights",
    [
        RNG.laplace(scale=0.05, size=60_000),
        np.concatenate([RNG.normal(scale=0.02, size=60_000), [9.0, -11.0, 30.0]]),
        RNG.standard_t(2, size=60_000),
        np.round(RNG.normal(size=60_000), 2),
    ],
    ids=["laplace", "outliers", "student", "ties"],
)
def test_kmeans_is_never_worse_than_scikit_learn(weights, levels):
    weights = weights.astype("float32")
    found = clustering.kmeans(weights, levels)
    reference = KMeans(levels, n_init=2, random_state=0).fit(weights[:, None])
    ours = Codebook.nearest(weights, found).relative_error(weights)
    theirs = Codebook.nearest(weights, reference.cluster_centers_[:, 0]).relative_error(weights)
    assert ours <= theirs * (1 + 1e-6)


def test_bins_cost_nothing_measurable(monkeypatch):
    weights = RNG.laplace(size=30_000).astype("float32")
    monkeypatch.setattr(clustering, "BINS", 10**6)  # every weight its own bin: exact
    exact = sum_of_squares(weights, clustering.kmeans(weights, 16))
    monkeypatch.setattr(clustering, "BINS", 4096)
    assert sum_of_squares(weights, clustering.kmeans(weights, 16)) <= exact * (1 + 1e-6)


def test_fewer_distinct_weights_than_levels_are_kept_exactly():
    weights = np.array([3.0, -1.0, 3.0, 0.5], "float32")
    np.testing.assert_array_equal(clustering.kmeans(weights, 8), [-1.0, 0.5, 3.0])
    np.testing.assert_array_equal(clustering.kmeans(np.full(10, 7.0), 4), [7.0])


def test_256_levels_and_a_far_offset():
    weights = (1000 + RNG.normal(size=50_000)).astype("float32")
    found = clustering.kmeans(weights, 256)
    assert found.size == 256
    book = Codebook.nearest(weights, found)
    assert np.square(weights - book.weights).mean() < 5e-4


def test_uniform_and_quantile():
    weights = np.array([-2.0, 0.0, 1.0, 4.0], "float32")
    np.testing.assert_allclose(clustering.uniform(weights, 4), [-2, 0, 2, 4])
    np.testing.assert_allclose(clustering.quantile(np.arange(101.0), 2), [25, 75])


@pytest.mark.parametrize("levels", [0, 1, 257, 2.5, "4", None])
@pytest.mark.parametrize("function", [clustering.kmeans, clustering.uniform, clustering.quantile])
def test_levels_out_of_range(function, levels):
    with pytest.raises(ValueError) as error:
        function([1.0, 2.0], levels)
    assert str(error.value) == (
        f"Expected `levels` to be an integer from 2 to 256. Received: levels={levels!r}"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [clustering.kmeans, clustering.uniform, clustering.quantile])
def test_weights_that_are_not_finite(function, bad):
    with pytest.raises(ValueError, match="Expected finite weights. Received: an array with NaN"):
        function([1.0, bad, 2.0], 2)
    with pytest.raises(ValueError, match="Expected at least one weight. Received: an empty array."):
        function([], 2)


@pytest.mark.parametrize(
    "values",
    [[-0.3, 0.0, 0.7], [0.1, 0.2, 0.3, 0.7], RNG.normal(size=200)],
    ids=["ternary", "four", "two hundred"],
)
@pytest.mark.parametrize("zero_centroid", [False, True])
def test_weights_of_few_values_keep_them_to_the_bit(values, zero_centroid):
    values = np.sort(np.array(values, "float32"))
    weights = np.random.default_rng(3).permutation(np.repeat(values, 40))
    found = clustering.kmeans(weights, values.size + 1, zero_centroid=zero_centroid)
    assert np.isin(values, found).all()
    np.testing.assert_array_equal(Codebook.nearest(weights, found).weights, weights)
