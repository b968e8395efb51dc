"""Integer arithmetic beside exact numbers."""

from fractions import Fraction

import numpy as np
import pytest

from keras_qareg.numerics import codes, integer
from keras_qareg.numerics.codes import Codes, Grid
from keras_qareg.numerics.fixed_point import (
    exponential,
    high_product,
    inverse_of_one_plus,
    rounded_shift,
)
from tests.helpers import error_of

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)


def nearest(value):
    """The whole number next to a `Fraction`, ties away from zero."""
    return int(abs(value) + Fraction(1, 2)) * (-1 if value < 0 else 1)


def test_products_and_shifts_are_rounded_once():
    a, b = RNG.integers(-(2**31), 2**31, (2, 500))
    exact = [Fraction(int(x) * int(y), 2**31) for x, y in zip(a, b, strict=True)]
    assert high_product(a, b).tolist() == [min(nearest(x), 2**31 - 1) for x in exact]
    assert high_product(-(2**31), -(2**31)) == 2**31 - 1
    numbers = np.concatenate([a, np.arange(-40, 40)])
    for exponent in (0, 1, 3, 15):
        want = [nearest(Fraction(int(x), 2**exponent)) for x in numbers]
        assert rounded_shift(numbers, exponent).tolist() == want


def test_exponentials_and_inverses_are_near():
    x = -RNG.integers(0, 2**31, 1000)
    found = exponential(x, 5) / 2**31
    np.testing.assert_allclose(found, np.exp(x / 2**26), atol=4e-7)
    assert exponential(np.zeros(1, "int64"), 5) == 2**31 - 1
    x = RNG.integers(0, 2**31, 1000)
    np.testing.assert_allclose(inverse_of_one_plus(x) / 2**31, 1 / (1 + x / 2**31), atol=2e-9)


def test_factors_are_31_bits_and_a_power_of_two():
    factors = np.concatenate([2.0 ** RNG.uniform(-30, 8, 200), [0.5, 1.0, 1 - 2.0**-40, 2.0**-33]])
    whole, shift = codes.quantized_multiplier(factors)
    assert (whole[:-1] >= 2**30).all() and (whole < 2**31).all() and whole[-1] == 0
    np.testing.assert_allclose(whole[:-1] * 2.0 ** (shift[:-1] - 31), factors[:-1], rtol=2**-31)


def test_layers_round_what_numbers_give():
    """Brute force in float64, with ties and doubly rounded sums a step apart at most."""
    given, output = Grid(0.05, -7), Grid(0.11, 12)
    x = Codes(RNG.integers(-128, 128, (2, 7, 8, 3)).astype("int8"), given)
    values = codes.dequantize(x).astype("float64")
    kernel = RNG.integers(-127, 128, (4, 3, 2, 3)).astype("int8")
    steps = RNG.uniform(0.001, 0.01, 4).astype("float32")
    bias = RNG.integers(-5000, 5000, 4).astype("int32")
    found = integer.conv2d(x, kernel, steps, bias, output, strides=(2, 1), activation="relu6")
    real = kernel * steps.reshape(-1, 1, 1, 1).astype("float64")
    for place in np.ndindex(found.values.shape):
        n, row, column, unit = place
        window = values[n, 2 * row : 2 * row + 3, column : column + 2]
        total = (window * real[unit]).sum() + bias[unit] * steps[unit] * np.float32(0.05)
        want = np.clip(np.rint(np.clip(total, 0, 6) / 0.11) + 12, -128, 127)
        assert abs(found.values[place] - want) <= 1
    back = codes.quantize(codes.dequantize(x), given)
    np.testing.assert_array_equal(back.values, x.values)
    means = integer.mean(x, (1, 2), output)
    np.testing.assert_allclose(codes.dequantize(means), values.mean((1, 2)), atol=0.06)
    total = integer.add(x, x, Grid(0.1, -7))
    np.testing.assert_array_equal(total.values, x.values)
    assert error_of(integer.concatenate, [x, means]).startswith("Expected parts with one grid.")
