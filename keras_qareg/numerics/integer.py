"""What a full-integer file computes, layer by layer: NumPy, to the bit as the runtime does.

The formulas are those of TensorFlow Lite's reference kernels, which TFLite Micro has too (Jacob et al.,
arXiv 1712.05877). Optimized kernels, such as XNNPACK's, round in other places and may be one step away.

A tensor is `codes.Codes`: whole numbers, and the step and zero point that say what they stand for.
Outputs get theirs from a `Grid`.

See also: https://keras-qareg.github.io/keras-qareg/integer.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from keras_qareg.numerics.codes import (
    Codes,
    Grid,
    multiplied,
    quantized_multiplier,
    rescaled,
    saturated,
)
from keras_qareg.numerics.fixed_point import (
    exponential,
    high_product,
    inverse_of_one_plus,
    rounded_shift,
)

# Sums of two tensors are computed with so many bits more than the codes have.
_SUM_BITS = {8: 20, 16: 15}


def dense(
    x: Codes,
    kernel: np.ndarray,
    steps: np.ndarray,
    bias: np.ndarray | None,
    output: Grid,
    activation: str | None = None,
    once: bool = False,
) -> Codes:
    """A fully connected layer.

    Args:
        x: Codes `(..., inputs)`.
        kernel: Int8 array `(units, inputs)`.
        steps: Float32 array `(units,)` or `(1,)`: the steps of the kernel.
        bias: Int array `(units,)` in steps of input and kernel, or `None`.
        output: The grid of the output.
        activation: `None`, `"relu"` or `"relu6"`.
        once: Whether sums are rounded once, as LiteRT 2.3 does here, and XNNPACK nearly everywhere.
            Defaults to `False`: twice, as TFLite Micro does.

    Returns:
        Codes `(..., units)`.
    """
    sums = x.centred @ kernel.astype("int64").T
    return _requantized(sums, x.grid, steps, bias, output, activation, once)


def conv2d(
    x: Codes,
    kernel: np.ndarray,
    steps: np.ndarray,
    bias: np.ndarray | None,
    output: Grid,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    activation: str | None = None,
) -> Codes:
    """A convolution.

    Args:
        x: Codes `(batch, height, width, channels)`.
        kernel: Int8 array `(filters, height, width, channels)`.
        steps: Float32 array `(filters,)`.
        bias: Int array `(filters,)` in steps of input and kernel, or `None`.
        output: The grid of the output.
        strides: Down and across.
        padding: `"valid"` or `"same"`.
        dilation: Down and across.
        activation: `None`, `"relu"` or `"relu6"`.

    Returns:
        Codes `(batch, height, width, filters)`.
    """
    sums = np.zeros((), "int64")
    for row, column, part in _windows(x.centred, kernel.shape[1:3], strides, padding, dilation, 0):
        sums = sums + part @ kernel[:, row, column].astype("int64").T
    return _requantized(sums, x.grid, steps, bias, output, activation)


def depthwise_conv2d(
    x: Codes,
    kernel: np.ndarray,
    steps: np.ndarray,
    bias: np.ndarray | None,
    output: Grid,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    activation: str | None = None,
) -> Codes:
    """A depthwise convolution.

    Args:
        x: Codes `(batch, height, width, channels)`.
        kernel: Int8 array `(1, height, width, channels * multiplier)`.
        steps: Float32 array `(channels * multiplier,)`.
        bias: As in `conv2d`.
        output: The grid of the output.
        strides: Down and across.
        padding: `"valid"` or `"same"`.
        dilation: Down and across.
        activation: `None`, `"relu"` or `"relu6"`.

    Returns:
        Codes `(batch, height, width, channels * multiplier)`.
    """
    multiplier, sums = kernel.shape[3] // x.values.shape[3], np.zeros((), "int64")
    for row, column, part in _windows(x.centred, kernel.shape[1:3], strides, padding, dilation, 0):
        sums = sums + np.repeat(part, multiplier, axis=3) * kernel[0, row, column].astype("int64")
    return _requantized(sums, x.grid, steps, bias, output, activation)


def add(x: Codes, y: Codes, output: Grid, activation: str | None = None) -> Codes:
    """The sum of two tensors.

    Args:
        x: Codes.
        y: Codes that broadcast with these.
        output: The grid of the sum.
        activation: `None`, `"relu"` or `"relu6"`.
    """
    bits = _SUM_BITS[output.bits]
    steps = [float(np.float32(grid.step)) for grid in (x.grid, y.grid, output)]
    most = 2 * max(steps[:2])
    first, second = (
        rescaled(part.centred << bits, step / most)
        for part, step in zip((x, y), steps[:2], strict=True)
    )
    sums = rescaled(first + second, most / ((1 << bits) * steps[2])) + output.zero_point
    return saturated(sums, output, activation)


def multiply(x: Codes, y: Codes, output: Grid, activation: str | None = None) -> Codes:
    """The product of two tensors, elementwise.

    Args:
        x: Codes.
        y: Codes that broadcast with these.
        output: The grid of the product.
        activation: `None`, `"relu"` or `"relu6"`.
    """
    steps = [float(np.float32(grid.step)) for grid in (x.grid, y.grid, output)]
    products = rescaled(x.centred * y.centred, steps[0] * steps[1] / steps[2])
    return saturated(products + output.zero_point, output, activation)


def concatenate(parts: Sequence[Codes], axis: int = -1) -> Codes:
    """Tensors one after the other along an axis.

    Raises:
        ValueError: If they do not have one grid, as the format demands.
    """
    if len({part.grid for part in parts}) != 1:
        raise ValueError(
            f"Expected parts with one grid. Received: {[tuple(part.grid) for part in parts]}"
        )
    return Codes(np.concatenate([part.values for part in parts], axis), parts[0].grid)


def max_pool(
    x: Codes, size: Sequence[int], strides: Sequence[int], padding: str = "valid"
) -> Codes:
    """The largest code of each window, on the grid of the input.

    Args:
        x: Codes `(batch, height, width, channels)`.
        size: The windows, down and across.
        strides: Down and across.
        padding: `"valid"` or `"same"`.
    """
    least = x.grid.limits[0]
    windows = _windows(x.values.astype("int64"), size, strides, padding, (1, 1), least)
    return saturated(np.max([part for _, _, part in windows], axis=0), x.grid)


def average_pool(
    x: Codes, size: Sequence[int], strides: Sequence[int], padding: str = "valid"
) -> Codes:
    """The mean of each window without what is padded, on the grid of the input.

    Args:
        x: Codes `(batch, height, width, channels)`.
        size: The windows, down and across.
        strides: Down and across.
        padding: `"valid"` or `"same"`.
    """
    values = x.values.astype("int64")
    sums, counts = (
        sum(part for _, _, part in _windows(given, size, strides, padding, (1, 1), 0))
        for given in (values, np.ones_like(values))
    )
    means = np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)
    return saturated(means, x.grid)


def mean(x: Codes, axes: Sequence[int], output: Grid, keepdims: bool = False) -> Codes:
    """The mean over axes, as of global average pooling.

    Args:
        x: Codes.
        axes: The axes.
        output: The grid of the mean.
        keepdims: Whether the axes stay, with size 1.
    """
    sums = x.centred.sum(axis=tuple(axes), keepdims=keepdims)
    count = math.prod(x.values.shape[axis] for axis in axes)
    factor = float(np.float32(x.grid.step)) / float(np.float32(output.step))
    whole, shift = (int(part) for part in quantized_multiplier(factor))
    # The count is a part of the factor: its whole number is divided, with more bits before.
    more = min(count.bit_length() - 1, 32, 31 + shift)
    parts = np.asarray((whole << more) // count), np.asarray(shift - more)
    return saturated(multiplied(sums, *parts) + output.zero_point, output)


def softmax(x: Codes) -> Codes:
    """The softmax over the last axis, with the grid that the format fixes: steps of 1/256 from -128 on.

    Args:
        x: Codes of 8 bits.
    """
    factor = min(float(np.float32(x.grid.step)) * 2.0**26, 2.0**31 - 1)
    whole, shift = quantized_multiplier(factor)
    apart = x.values.astype("int64") - x.values.max(axis=-1, keepdims=True)
    near = apart >= -_radius(5, int(shift))
    scaled = high_product(np.where(near, apart, 0) << shift, whole)
    powers = np.where(near, exponential(scaled, 5), 0)
    sums = rounded_shift(powers, 12).sum(axis=-1, keepdims=True)
    above = 32 - np.frexp(sums.astype("float64"))[1].astype("int64")  # zeros before the first bit
    inverse = inverse_of_one_plus((sums << above) - (1 << 31))
    shares = rounded_shift(high_product(inverse, powers), 12 - above + 23)
    output = Grid(1 / 256, -128)
    return saturated(np.where(near, shares, 0) - 128, output)


def sigmoid(x: Codes) -> Codes:
    """The logistic function, with the grid that the format fixes: steps of 1/256 from -128 on.

    Args:
        x: Codes of 8 bits.
    """
    whole, shift = quantized_multiplier(float(np.float32(x.grid.step)) * 2.0**27)
    radius, centred = _radius(4, int(shift)), x.centred
    inside = np.where(np.abs(centred) < radius, centred, 0)
    scaled = multiplied(inside, whole, shift)
    above = inverse_of_one_plus(exponential(-np.abs(scaled), 4))
    values = np.where(scaled < 0, 2**31 - 1 - above, above)
    values = rounded_shift(np.where(scaled == 0, 1 << 30, values), 23) - 128
    output = Grid(1 / 256, -128)
    values = np.where(centred >= radius, 127, np.where(centred <= -radius, -128, values))
    return saturated(values, output)


def _requantized(
    sums: np.ndarray,
    given: Grid,
    steps: np.ndarray,
    bias: np.ndarray | None,
    output: Grid,
    activation: str | None,
    once: bool = False,
) -> Codes:
    if bias is not None:
        sums = sums + bias.astype("int64")
    step = float(np.float32(given.step))
    factors = step * np.asarray(steps, "float32").astype("float64") / float(np.float32(output.step))
    values = rescaled(sums, factors, output.bits, once) + output.zero_point
    return saturated(values, output, activation)


def _radius(integer_bits: int, shift: int) -> int:
    """From which code on a function is at its end."""
    return math.floor(((1 << integer_bits) - 1) * 2.0 ** (31 - integer_bits - shift))


def _windows(
    x: np.ndarray,
    size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    filling: int,
) -> list[tuple[int, int, np.ndarray]]:
    """For each place in a window, what is there in all windows: row, column, and the array."""
    wide = [(n - 1) * d + 1 for n, d in zip(size, dilation, strict=True)]
    inside = x.shape[1:3]
    if padding == "same":
        counts = [-(-n // s) for n, s in zip(inside, strides, strict=True)]
    else:
        counts = [-(-(n - w + 1) // s) for n, w, s in zip(inside, wide, strides, strict=True)]
    missing = [
        max((c - 1) * s + w - n, 0)
        for c, s, w, n in zip(counts, strides, wide, inside, strict=True)
    ]
    around = [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)]
    x = np.pad(x, around, constant_values=filling)
    found = []
    for row in range(size[0]):
        for column in range(size[1]):
            starts = row * dilation[0], column * dilation[1]
            down, across = (
                slice(start, start + (c - 1) * s + 1, s)
                for start, c, s in zip(starts, counts, strides, strict=True)
            )
            found.append((row, column, x[:, down, across]))
    return found
