"""Grids: whole numbers times a step, found from weights and found again in them."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import (
    grid_codes,
    integer_grid,
    integer_weights,
    nearest_codes,
    snapped,
)

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16, 256])
def test_the_best_step(levels):
    weights = (0.05 * RNG.standard_t(5, 20_000)).astype("float32")
    codes, (step,) = grid_codes(levels), snapped(weights, levels)
    assert codes.tolist() == (
        [-1, 1] if levels == 2 else list(range(-(levels // 2), -(-levels // 2)))
    )

    def error(step):
        chosen = np.abs(weights[:, None] - codes * np.float32(step)).min(axis=1)
        return np.square(chosen).sum()

    if levels <= 16:
        steps = np.linspace(0.1, 1.2, 300) * np.abs(weights).max() / np.abs(codes).max()
        assert error(step) <= 1.003 * min(map(error, steps))


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_the_best_step_of_each_channel(levels):
    weights = (RNG.standard_t(5, (200, 6)) * RNG.uniform(0.01, 1.0, 6)).astype("float32")
    steps = snapped(weights.reshape(10, 20, 3, 2), levels, channel_axes=2)
    assert steps.shape == (3, 2) and steps.dtype == np.float32
    alone = np.array([snapped(column, levels)[0] for column in weights.T])

    def errors(steps):
        chosen = grid_codes(levels)[nearest_codes(weights, steps, levels)] * steps
        return np.square(chosen - weights).sum(axis=0)

    assert (errors(steps.reshape(-1)) <= 1.02 * errors(alone)).all()


def test_special_weights():
    assert snapped(np.zeros(9), 4)[0] > 0
    weights = np.float32(0.3) * np.array([-2, -1, 0, 1, 1, 0, -2])
    np.testing.assert_allclose(snapped(weights, 4), [0.3], rtol=1e-6)
    for axes in (0, 1):
        with pytest.raises(ValueError, match="Expected finite weights"):
            snapped([np.nan], 4, axes)
    columns = np.stack([weights, np.zeros(7), weights * 5], axis=1)
    np.testing.assert_allclose(snapped(columns, 4, 1)[[0, 2]], [0.3, 1.5], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(2, 16), st.integers(0, 10_000))
@example(2, 5, 1270)
def test_grids_are_found_again_to_the_bit(channels, levels, seed):
    random = np.random.default_rng(seed)
    codes = random.choice(grid_codes(levels), (6 * levels, channels)).astype("float32")
    steps = random.lognormal(size=channels).astype("float32")
    weights = codes * steps
    found = integer_weights(weights, 1)
    if found is None:  # too few of them are not zero
        assert not weights.any()
        return
    np.testing.assert_array_equal(found[0].astype("float32") * found[1], weights)
    book = Codebook.exact(weights, channel_axes=1)
    np.testing.assert_array_equal(book.weights, weights)
    # One table for all channels may have more values, where their indices take no more bits.
    assert (len(book.centroids) - 1).bit_length() <= (levels - 1).bit_length()
    table = np.multiply.outer(grid_codes(levels).astype("float32"), steps)
    codes_again, steps_again = integer_grid(table)
    np.testing.assert_array_equal(codes_again, grid_codes(levels))
    np.testing.assert_array_equal(steps_again, steps)


def test_what_is_on_no_grid():
    weights = RNG.normal(size=(40, 5)).astype("float32")
    assert integer_weights(weights, 1) is None
    assert integer_weights(np.sign(weights[:3]), 1) is None  # three weights a channel say nothing
    assert integer_weights(np.zeros((9, 2), "float32"), 1) is None
    assert Codebook.exact(np.repeat(weights, 2, axis=0), channel_axes=1).centroids.ndim == 1
    changed = np.round(weights * 3) * np.float32(0.2)
    assert integer_weights(changed, 1) is not None
    changed[7, 3] += 1e-3
    assert integer_weights(changed, 1) is None
    assert integer_grid(RNG.normal(size=(6, 1)).astype("float32")) is None
    wide = np.array([[0.0], [1.0], [300.0]], "float32")
    assert integer_grid(wide) is None


def test_a_table_on_a_grid_costs_its_steps():
    steps = np.linspace(0.5, 1.0, 50, dtype="float32")
    book = Codebook(
        np.multiply.outer(np.arange(-2, 2, dtype="float32"), steps), np.zeros((9, 50), int)
    )
    assert book.table_bytes == 4 + 4 * 50
    assert Codebook([0.1, 0.7, 0.9], [0, 1, 2]).table_bytes == 3 + 4
    assert Codebook([0.1, 0.7123, 0.9], [0, 1, 2]).table_bytes == 12
