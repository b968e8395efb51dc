"""Quantized tensors: their codes, what these stand for, and how sums become codes of another grid.

NumPy, to the bit as TensorFlow Lite's reference kernels compute (Jacob et al., arXiv 1712.05877).

See also: https://keras-qareg.github.io/keras-qareg/formats.html#full-integer
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_qareg.numerics.fixed_point import high_product, rounded_shift


class Grid(NamedTuple):
    """What the codes of a tensor stand for: `step * (code - zero_point)`.

    Attributes:
        step: Float32.
        zero_point: The code of zero.
        bits: 8 or 16.
    """

    step: float
    zero_point: int
    bits: int = 8

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest code."""
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1


class Codes(NamedTuple):
    """A quantized tensor.

    Attributes:
        values: Int array of codes.
        grid: What they stand for.
    """

    values: np.ndarray
    grid: Grid

    @property
    def centred(self) -> np.ndarray:
        """Int64 codes less the zero point."""
        return self.values.astype("int64") - self.grid.zero_point


def quantize(x: np.ndarray, grid: Grid) -> Codes:
    """The nearest codes of float32 numbers, ties away from zero.

    Example:

    >>> quantize(np.array([-0.25, 0.75], "float32"), Grid(0.5, 3)).values.tolist()
    [2, 5]
    """
    ratio = np.asarray(x, "float32") / np.float32(grid.step)
    return saturated(_rounded(ratio).astype("int64") + grid.zero_point, grid)


def dequantize(x: Codes) -> np.ndarray:
    """The float32 numbers that codes stand for."""
    return (np.float64(np.float32(x.grid.step)) * x.centred).astype("float32")


def quantized_multiplier(factors: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Positive factors as 31-bit whole numbers and powers of two: `whole / 2 ** 31 * 2 ** shift`.

    Args:
        factors: Float64 array.

    Returns:
        Int64 arrays of the whole numbers, from 2 ** 30 on, and of the shifts. What is below 2 ** -31
        is 0.
    """
    fraction, shift = np.frexp(np.asarray(factors, "float64"))
    whole, shift = _rounded(fraction * 2.0**31).astype("int64"), shift.astype("int64")
    whole, shift = (
        np.where(whole == 1 << 31, 1 << 30, whole),
        np.where(whole == 1 << 31, shift + 1, shift),
    )
    return np.where(shift < -31, 0, whole), np.where(shift < -31, 0, shift)


def rescaled(
    x: np.ndarray, factors: np.ndarray | float, bits: int = 8, once: bool = False
) -> np.ndarray:
    """Sums times positive factors, as whole numbers, in the arithmetic of so wide codes.

    Args:
        x: Int64 array of sums.
        factors: Float64 array that broadcasts.
        bits: 8: rounded twice, after a product of 32 bits and after a shift; 16: once, with factors of
            16 bits.
        once: Whether sums are rounded once, with factors of 32 bits, whatever the codes.

    Returns:
        Int64 array.
    """
    whole, shift = quantized_multiplier(factors)
    if once:
        return (x * whole + (np.int64(1) << (30 - shift))) >> (31 - shift)
    if bits == 16:
        short = np.where(whole < 0x7FFF0000, (whole + (1 << 15)) >> 16, 0x7FFF)
        return (x * short + (np.int64(1) << (14 - shift))) >> (15 - shift)
    return multiplied(x, whole, shift)


def multiplied(x: np.ndarray, whole: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Sums times the factors of `quantized_multiplier`, rounded twice."""
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    return rounded_shift(high_product(x << left, whole), right)


def requantize(x: Codes, output: Grid) -> Codes:
    """The same numbers on another grid."""
    factor = float(np.float32(x.grid.step)) / float(np.float32(output.step))
    return saturated(rescaled(x.centred, factor) + output.zero_point, output)


def saturated(values: np.ndarray, grid: Grid, activation: str | None = None) -> Codes:
    """Whole numbers as codes, no further out than these or an activation lets them be.

    Args:
        values: Int array.
        grid: The grid.
        activation: `None`, `"relu"` or `"relu6"`.
    """
    low, high = grid.limits
    if activation is not None:
        low = max(low, grid.zero_point)
    if activation == "relu6":
        six = np.asarray(np.float32(6) / np.float32(grid.step))
        high = min(high, grid.zero_point + int(_rounded(six)))
    return Codes(np.clip(values, low, high).astype(f"int{grid.bits}"), grid)


def _rounded(x: np.ndarray) -> np.ndarray:
    """The nearest whole numbers, ties away from zero."""
    wide = np.asarray(x, "float64")
    return np.trunc(wide + np.copysign(0.5, wide))
