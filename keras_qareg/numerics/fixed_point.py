"""Arithmetic with 32-bit fixed-point numbers, as integer runtimes of TensorFlow Lite compute.

NumPy, int64 arrays that hold 32-bit numbers. The formulas are those of gemmlowp's `fixedpoint.h`, which
TensorFlow Lite's reference kernels and TFLite Micro use: a number with so many integer bits is the whole
number times 2 to the power of these less 31.

See also: https://keras-qareg.github.io/keras-qareg/formats.html#full-integer
"""

from __future__ import annotations

import numpy as np

_MOST = 2**31 - 1
# e to the power of -2 ** exponent, as numbers without integer bits.
_EXPONENTIALS = (
    *((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308)),
    *((2, 39332535), (3, 720401), (4, 242)),
)
_EXP_EIGHTH, _THIRD = 1895147668, 715827883
# 48/17 and -32/17 with two integer bits: the first guess of Newton's division.
_GUESS, _SLOPE = 1515870810, -1010580540


def high_product(a: np.ndarray | int, b: np.ndarray | int) -> np.ndarray:
    """The product of two numbers without integer bits, rounded: `round(2 a b / 2 ** 32)`.

    Ties go away from zero on the positive side, and towards zero on the negative one.

    Args:
        a: Int array of 32-bit numbers.
        b: The same; they broadcast.

    Returns:
        Int64 array.
    """
    product = np.asarray(a, "int64") * np.asarray(b, "int64")
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return np.minimum(_truncated(nudged, 1 << 31), _MOST)


def rounded_shift(x: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """Division by 2 to the power of `exponent`, rounded, ties away from zero.

    Args:
        x: Int array.
        exponent: Whole numbers of 0 or more; they broadcast.

    Returns:
        Int64 array.
    """
    x, exponent = np.asarray(x, "int64"), np.asarray(exponent, "int64")
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def exponential(x: np.ndarray, integer_bits: int) -> np.ndarray:
    """e to the power of numbers of at most 0.

    Args:
        x: Int array, negative or 0, with `integer_bits` integer bits, at most 5.
        integer_bits: How many.

    Returns:
        Int64 array without integer bits.
    """
    fraction = 31 - integer_bits
    quarter = 1 << (fraction - 2)
    within = (x & (quarter - 1)) - quarter
    result = _exponential_of_quarter(_shifted_left(within, integer_bits))
    rest = within - x
    for exponent, factor in _EXPONENTIALS:
        if exponent < integer_bits:
            chosen = (rest >> (fraction + exponent)) & 1
            result = np.where(chosen == 1, high_product(result, factor), result)
    return np.where(x == 0, _MOST, result)


def _exponential_of_quarter(x: np.ndarray) -> np.ndarray:
    """That of numbers from -1/4 to 0: a Taylor polynomial around -1/8."""
    x = x + (1 << 28)
    square = high_product(x, x)
    cube, fourth = high_product(square, x), high_product(square, square)
    inner = high_product(rounded_shift(fourth, 2) + cube, _THIRD) + square
    return _EXP_EIGHTH + high_product(_EXP_EIGHTH, x + rounded_shift(inner, 1))


def inverse_of_one_plus(x: np.ndarray) -> np.ndarray:
    """`1 / (1 + x)` of numbers from 0 to 1, by three steps of Newton's division.

    Args:
        x: Int array without integer bits.

    Returns:
        Int64 array without integer bits.
    """
    total = x + _MOST
    half = _truncated(total + np.where(total >= 0, 1, -1), 2)
    guess = _GUESS + high_product(half, _SLOPE)
    for _ in range(3):
        error = (1 << 29) - high_product(half, guess)
        guess = guess + _shifted_left(high_product(guess, error), 2)
    return _shifted_left(guess, 1)


def _shifted_left(x: np.ndarray, bits: int) -> np.ndarray:
    return np.clip(x << bits, -_MOST - 1, _MOST)


def _truncated(x: np.ndarray, divisor: int) -> np.ndarray:
    """Division towards zero."""
    return np.sign(x) * (np.abs(x) // divisor)
