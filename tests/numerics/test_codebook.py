"""Codebooks, and the lookup that tuning differentiates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_qareg import Codebook
from keras_qareg.numerics.codebook import lookup
from tests.helpers import gradients

RNG = np.random.default_rng(0)
WEIGHTS = hnp.arrays(
    "float32",
    hnp.array_shapes(max_dims=4, max_side=5),
    elements=st.floats(-100, 100, width=32),
)
CENTROIDS = hnp.arrays("float32", st.integers(1, 9), elements=st.floats(-100, 100, width=32))


@pytest.mark.one_backend
@settings(max_examples=100, deadline=None)
@given(WEIGHTS, CENTROIDS)
def test_nearest_takes_a_nearest_centroid_for_each_weight(weights, centroids):
    book = Codebook.nearest(weights, centroids)
    assert book.indices.shape == weights.shape and book.indices.dtype == np.uint8
    distance = np.abs(np.float64(weights) - book.weights)
    least = np.abs(np.float64(weights)[..., None] - centroids).min(-1)
    np.testing.assert_allclose(distance, least, rtol=1e-6, atol=1e-5)


@pytest.mark.one_backend
@settings(max_examples=100, deadline=None)
@given(WEIGHTS, CENTROIDS)
def test_what_holds_for_every_codebook(weights, centroids):
    book = Codebook.nearest(weights, centroids)
    assert book.counts.sum() == weights.size
    assert 1 <= book.levels_used == np.unique(book.weights).size <= centroids.size
    assert 0.0 <= book.entropy <= np.log2(max(book.levels_used, 1)) + 1e-9
    means = book.with_member_means(weights)
    assert means.relative_error(weights) <= book.relative_error(weights) + 1e-6
    again = Codebook.exact(book.weights)
    np.testing.assert_array_equal(again.weights, book.weights)
    assert again.entropy == pytest.approx(book.entropy)


@pytest.mark.one_backend
def test_entropy_of_known_frequencies():
    book = Codebook(np.array([0.0, 1.0, 2.0]), np.repeat([0, 1, 2], [2, 1, 1]))
    assert book.entropy == pytest.approx(1.5)


@pytest.mark.one_backend
def test_relative_error_is_the_squared_norm_ratio():
    weights = np.array([3.0, 4.0], "float32")
    book = Codebook.nearest(weights, [3.0, 5.0])
    assert book.relative_error(weights) == pytest.approx(1 / 25)
    assert Codebook.nearest(np.zeros(3), [0.0]).relative_error(np.zeros(3)) == 0.0


@pytest.mark.one_backend
def test_member_means_leave_a_zero_and_an_empty_centroid_alone():
    weights = np.array([-0.2, 0.1, 1.0, 1.4], "float32")
    book = Codebook.nearest(weights, [0.0, 1.0, 9.0])
    np.testing.assert_allclose(book.with_member_means(weights).centroids, [-0.05, 1.2, 9.0])
    kept = book.with_member_means(weights, keep_zero=True)
    np.testing.assert_allclose(kept.centroids, [0.0, 1.2, 9.0])


@pytest.mark.one_backend
def test_256_levels_fit_uint8_and_257_are_no_codebook():
    weights = np.arange(256, dtype="float32")
    book = Codebook.exact(weights)
    np.testing.assert_array_equal(book.weights, weights)
    assert book.entropy == pytest.approx(8.0)
    assert Codebook.exact(np.arange(257.0)) is None
    assert Codebook.exact(RNG.normal(size=100_000)) is None


@pytest.mark.one_backend
def test_bad_codebooks():
    with pytest.raises(ValueError, match=r"Expected `centroids` of shape \(levels,\)"):
        Codebook(np.zeros(257), np.zeros(3, "int64"))
    with pytest.raises(
        ValueError, match="Expected `indices` from 0 to 1. Received: indices from 0"
    ):
        Codebook(np.zeros(2), np.array([0, 2]))


def test_lookup_sums_the_gradients_of_the_members():
    indices = RNG.integers(0, 5, (7, 6))
    centroids, upstream = RNG.normal(size=5), RNG.normal(size=(7, 6))
    value, (grad,) = gradients(
        lambda c: ops.sum(ops.multiply(lookup(c, indices), upstream.astype("float32"))),
        centroids.astype("float32"),
    )
    assert value == pytest.approx((centroids[indices] * upstream).sum(), rel=1e-4)
    expected = [upstream[indices == j].sum() for j in range(5)]
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.one_backend
def test_a_table_for_each_channel():
    indices = RNG.integers(0, 4, (5, 3, 2))
    tables = RNG.normal(size=(4, 3, 2)).astype("float32")
    tables[3, 0, 0] = tables[2, 0, 0]
    book = Codebook(tables, indices)
    expected = np.empty((5, 3, 2), "float32")
    for place in np.ndindex(5, 3, 2):
        expected[place] = tables[(indices[place], *place[1:])]
    np.testing.assert_array_equal(book.weights, expected)
    columns = expected.reshape(5, 6).T
    assert book.levels_used == max(np.unique(column).size for column in columns)
    np.testing.assert_array_equal(book.counts, np.bincount(indices.reshape(-1), minlength=4))
    last = Codebook(tables[:, 0], indices)
    np.testing.assert_array_equal(last.weights[..., 1], tables[:, 0, 1][indices[..., 1]])
    assert Codebook(tables, indices).relative_error(expected) == 0.0
    with pytest.raises(ValueError, match="Expected one table of shape"):
        book.with_member_means(expected)
    with pytest.raises(ValueError, match="last sizes of indices of shape"):
        Codebook(tables, indices[..., :1])
    with pytest.raises(ValueError, match="Expected `indices` from 0 to 3"):
        Codebook(tables, indices + 1)
