"""A new basis: against the best of many random starts of a plain reference."""

import numpy as np
import pytest

from keras_qareg.numerics.basis import best_basis

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)
COLUMNS = {
    "normal": RNG.normal(size=(400, 3)),
    "tails": RNG.standard_t(4, size=(400, 3)) * [1e-3, 1.0, 50.0],
    "few": RNG.normal(size=(40, 3)),
}


def levels_and_codes(basis):
    codes = 2.0 * ((np.arange(2 ** len(basis))[:, None] >> np.arange(len(basis))) & 1) - 1
    return codes @ basis, codes


def error_of(column, basis):
    return np.square(np.abs(column[:, None] - levels_and_codes(basis)[0]).min(axis=1)).sum()


def best_of_random(column, bits, starts=20, rounds=40):
    """The least squared error of nearest levels and least squares in turn, from random starts."""
    best, random = np.inf, np.random.default_rng(0)
    for _ in range(starts):
        basis = np.abs(random.normal(size=bits)) * column.std()
        for _ in range(rounds):
            levels, codes = levels_and_codes(basis)
            chosen = codes[np.abs(column[:, None] - levels).argmin(axis=1)]
            basis = np.linalg.lstsq(chosen, column, rcond=None)[0]
        best = min(best, error_of(column, basis))
    return best


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", list(COLUMNS))
def test_the_best_of_many_starts(name, bits):
    columns = COLUMNS[name]
    found = best_basis(columns, bits)
    assert found.shape == (bits, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found, best_basis(columns, bits))
    for column, basis in zip(columns.T, found.T, strict=True):
        tiny = 1e-12 * np.square(column).sum()
        assert error_of(column, basis) <= 1.02 * best_of_random(column, bits) + tiny


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_best_step_of_even_levels(bits):
    columns, powers = COLUMNS["tails"], 2.0 ** np.arange(bits)
    found = best_basis(columns, bits, evenly=True)
    np.testing.assert_allclose(found, found[0] * powers[:, None], rtol=1e-6)
    for column, basis in zip(columns.T, found.T, strict=True):
        steps = np.geomspace(1e-3, 1, 1000) * np.abs(column).max()
        assert error_of(column, basis) <= min(error_of(column, powers * s) for s in steps)


def test_channels_are_alone_and_zeros_stay():
    columns = np.concatenate([RNG.normal(size=(50, 300)), np.zeros((50, 1))], axis=1)
    found = best_basis(columns, 3)
    assert not found[:, -1].any() and found[:, :-1].any(axis=0).all()
    alone = best_basis(columns[:, 7:8], 3)
    # The random factors of a channel depend on which others there are.
    near = error_of(columns[:, 7], found[:, 7]) / error_of(columns[:, 7], alone[:, 0])
    assert 0.9 < near < 1.1
