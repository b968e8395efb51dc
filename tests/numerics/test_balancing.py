"""Errors that do not add up: against all choices of the level on the other side."""

from itertools import product

import numpy as np
import pytest

from keras_qareg.numerics.balancing import balanced
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import grid_codes, nearest_codes, snapped

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)


def harms(weights, book):
    errors = (book.weights - weights.astype("float64")).reshape(-1, weights.shape[-1])
    return np.square(errors).sum(axis=0) + 0.47 * np.square(errors.sum(axis=0))


def test_near_the_best_of_all_choices():
    weights = RNG.normal(size=(8, 20)).astype("float32")
    book = Codebook.nearest(weights, [-1.5, -0.5, 0.2, 0.6])
    found = harms(weights, balanced(weights, book, 1))
    assert (found <= harms(weights, book) + 1e-6).all()
    below = np.searchsorted(book.centroids, weights).clip(1, 3)
    best = np.full(20, np.inf)
    for sides in product((0, 1), repeat=8):
        choice = Codebook(book.centroids, below - np.array(sides)[:, None])
        best = np.minimum(best, harms(weights, choice))
    assert found.sum() <= 1.1 * best.sum() < 0.9 * harms(weights, book).sum()


@pytest.mark.parametrize("axes", [1, 2])
def test_even_grids_lose_little_and_keep_zeros(axes):
    weights = RNG.normal(size=(9, 40, 6, 4)).astype("float32")
    weights[:, :10] = 0.0
    steps = snapped(weights, 4, axes)
    table = np.multiply.outer(grid_codes(4).astype("float32"), steps)
    book = Codebook(table, nearest_codes(weights, steps, 4))
    found = balanced(weights, book, axes)
    np.testing.assert_array_equal(found.centroids, book.centroids)
    assert not found.weights[:, :10].any()
    sums = [np.square((b.weights - weights).sum(axis=(0, 1))).sum() for b in (book, found)]
    assert sums[1] < 0.2 * sums[0]
    assert found.relative_error(weights) < 1.1 * book.relative_error(weights)
    again = balanced(found.weights, found, axes)
    np.testing.assert_array_equal(again.indices, found.indices)
