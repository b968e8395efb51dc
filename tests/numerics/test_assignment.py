"""The nearest centroid of each weight: by comparison, by look-up in bins and by search."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_qareg.numerics.assignment import assigned, nearest
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.compiled import COMPARED_LEVELS
from tests.helpers import gradients, program

RNG = np.random.default_rng(0)
# Eighths: there are ties among them, and nothing so small that a processor takes it for zero.
EIGHTHS = st.integers(-999, 999).map(lambda count: count / 8)
WEIGHTS = hnp.arrays("float32", 40, elements=EIGHTHS)
# Too many to compare with each, and two midpoints in one bin.
CROWDED = np.concatenate([[1e-7, 2e-7], np.linspace(-1, 1, 18)]).astype("float32")
CENTROIDS = hnp.arrays("float32", st.sampled_from([2, 5, 20]), elements=EIGHTHS)


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, CENTROIDS, st.booleans())
@example(np.linspace(-1, 1, 40, dtype="float32"), np.array([1.0, 1.0], "float32"), True)
@example(
    np.linspace(-1, 1, 40, dtype="float32"), np.array([0, 1e-7, 2e-7, 0.5, 1], "float32"), True
)
@example(np.linspace(-1, 1, 40, dtype="float32"), CROWDED, True)
def test_each_weight_takes_its_nearest_centroid(weights, centroids, graph):
    slopes = np.arange(40, dtype="float32")
    _, (of_weights, of_centroids) = gradients(
        lambda w, c: ops.sum(ops.multiply(nearest(w, c), slopes)), weights, centroids, graph=graph
    )
    found = ops.convert_to_numpy(nearest(weights, centroids))
    book = Codebook.nearest(weights, centroids)
    np.testing.assert_array_equal(found, book.weights)
    np.testing.assert_array_equal(of_weights, slopes)
    # Of equal centroids, any may have the members.
    for value in np.unique(centroids):
        assert of_centroids[centroids == value].sum() == slopes[book.weights == value].sum()


def test_a_large_kernel_keeps_its_shape():
    weights = RNG.normal(size=(3, 70_001, 2)).astype("float32")
    centroids = np.sort(RNG.normal(size=256)).astype("float32")
    found = ops.convert_to_numpy(nearest(weights, centroids))
    np.testing.assert_array_equal(found, Codebook.nearest(weights, centroids).weights)


@pytest.mark.parametrize("levels", [2, COMPARED_LEVELS, COMPARED_LEVELS + 1, 256])
def test_weights_are_assigned_by_place_in_the_given_order(levels):
    weights = RNG.integers(-99, 99, (7, 300)).astype("float32") / 8
    centroids = RNG.permutation(np.arange(levels)).astype("float32") / 4 - 5
    values, places = program(assigned)(weights, centroids)
    found = ops.convert_to_numpy(places)
    assert found.dtype == "uint8" and found.shape == weights.shape
    best = Codebook.nearest(weights, centroids).weights
    np.testing.assert_array_equal(centroids[found], best)
    np.testing.assert_array_equal(values, best)
    slopes = np.arange(weights.size, dtype="float32").reshape(weights.shape) / weights.size
    _, (of_weights, of_centroids) = gradients(
        lambda w, c: ops.sum(ops.multiply(assigned(w, c)[0], slopes)),
        weights,
        centroids,
        graph=True,
    )
    assert of_weights is None or not np.any(of_weights)
    sums = np.bincount(found.reshape(-1), slopes.reshape(-1), levels)
    np.testing.assert_allclose(of_centroids, sums, rtol=1e-4)
